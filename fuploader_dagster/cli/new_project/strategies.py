"""What becomes of a message: this is the file to edit.

`fuploader.yaml` names the functions (`parser: strategies:parser`). A parser gets a message's body
and returns what is to be stored: bytes as they are, text, or anything that JSON can write. If it
raises, that one message goes to the dead letters, with the reason; the others flow on.
"""

from __future__ import annotations

from dataclasses import replace

from fuploader_dagster import DecodedFilePayload, parse_file_message


def parser(body: bytes) -> DecodedFilePayload:
    """A document out of its envelope, with its words counted."""
    message = parse_file_message(body)
    document = message.payload
    return replace(message, payload={**document, "words": len(document["text"].split())})
