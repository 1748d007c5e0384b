"""What becomes of a message: this is the file to edit.

`fuploader.yaml` names the functions (`parser: strategies:parser`). A parser gets the body of a
message and returns what to store: bytes, text, or anything that can be written as JSON. If it
raises, that one message becomes a dead letter, with the reason; all others are stored.
"""

from __future__ import annotations

from dataclasses import replace

from fuploader_dagster import DecodedFilePayload, parse_file_message


def parser(body: bytes) -> DecodedFilePayload:
    """Takes a document out of its envelope and counts its words."""
    message = parse_file_message(body)
    document = message.payload
    return replace(message, payload={**document, "words": len(document["text"].split())})
