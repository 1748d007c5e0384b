"""From lines of a file to messages of a queue: what `fuploader publish` sends.

Each line is a JSON object in one of the forms that FUploader's producers use:

    {"file_name": "1.json", "payload": ...}     wrapped into an envelope (`content` for `payload`)
    {"file_name": ..., "compression": "gzip", "payload": "..."}     an envelope, passed on as it is

For pipelines of `message_format` json or raw a line is the message as it stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from fuploader_dagster.config import Intake
from fuploader_dagster.errors import BadMessage
from fuploader_dagster.messages import encode_file_message


def bodies(lines: Iterable[bytes], settings: Intake) -> Iterator[tuple[bytes, dict[str, str]]]:
    """(body, headers) pairs, one for each line that is not empty.

    Raises `BadMessage`, naming the line's number, for a line that cannot become a message.
    """
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text:
            yield _body(text, number, settings), {}


def _body(text: bytes, number: int, settings: Intake) -> bytes:
    if settings.message_format != "envelope":
        return text
    try:
        item = json.loads(text)
        if not isinstance(item, dict):
            raise ValueError("it is no JSON object")
        envelope = encode_file_message(item)
        return json.dumps(envelope, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except (ValueError, TypeError, RecursionError) as error:
        raise BadMessage(
            f"line {number} cannot become a message: {error}",
            hint='a line reads {"file_name": "1.json", "payload": ...}',
        ) from error
