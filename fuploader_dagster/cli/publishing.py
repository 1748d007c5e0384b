"""From lines of a file to messages of a queue: what `fuploader publish` sends.

Each line is a JSON object in one of the forms that FUploader's
producers use:

    {"file_name": "1.json", "payload": ...}     wrapped into an envelope (`content` for `payload`)
    {"file_name": ..., "compression": "gzip", "payload": "..."}     an envelope, passed on as it is

For pipelines of `message_format` json or raw a line is the message as it stands, without the white
space around it. A byte order mark at the file's start is no part of the first line, except for raw,
where every byte is. A file in UTF-16 or UTF-32 is refused before anything is sent: its line breaks
are other bytes.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from fuploader_dagster.contracts.source import MessagePublisher
from fuploader_dagster.errors import BadMessage, MessageRefused
from fuploader_dagster.processing.producer import encode_file_message
from fuploader_dagster.processing.refused_messages import publish_taken
from fuploader_dagster.settings.pipeline import Intake

BATCH_MESSAGES = 2_000
BATCH_BYTES = 16 * 2**20
_WIDE_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_FIRST_CHARACTER_BYTES = 4


@dataclass
class PublishReport:
    """What became of the lines."""

    confirmed: int = 0
    refused: list[tuple[int, MessageRefused]] = field(default_factory=list)
    """Numbers of lines that the queue will never take."""


def publish_lines(
    lines: Iterable[bytes],
    pipeline: Intake,
    publisher: MessagePublisher,
    *,
    progress: Callable[[int], None] | None = None,
) -> PublishReport:
    """Publish each line; `progress` gets how many more are done.

    Raises `BadMessage`, naming the line's number, for a line that cannot become a message, and what
    publishing raises; lines before it may be in the queue then.
    """
    report = PublishReport()
    numbered = numbered_bodies(lines, pipeline)
    while batch := _batch(numbered):
        refused = publish_taken(publisher.publish, [(body, {}) for _, body in batch])
        report.confirmed += len(batch) - len(refused)
        report.refused += [(batch[at][0], error) for at, error in refused.items()]
        if progress:
            progress(len(batch))
    return report


def bodies(lines: Iterable[bytes], pipeline: Intake) -> Iterator[tuple[bytes, dict[str, str]]]:
    """(body, headers) pairs for a publisher, as `publish_lines` makes them."""
    return ((body, {}) for _, body in numbered_bodies(lines, pipeline))


def numbered_bodies(lines: Iterable[bytes], pipeline: Intake) -> Iterator[tuple[int, bytes]]:
    """Number and message of each line that is not empty."""
    for number, line in enumerate(lines, start=1):
        text = _without_mark(line, pipeline.message_format) if number == 1 else line
        text = text.strip()
        if text:
            yield number, _body(text, number, pipeline)


def _without_mark(first: bytes, message_format: str) -> bytes:
    """The first line, which shows what the file is written in."""
    encoding = next((name for mark, name in _WIDE_MARKS if first.startswith(mark)), "")
    if not encoding and message_format != "raw" and b"\0" in first[:_FIRST_CHARACTER_BYTES]:
        encoding = "UTF-16"
    if encoding:
        raise BadMessage(
            f"the file is written in {encoding}; lines are read as UTF-8",
            hint=f"convert it: iconv -f {encoding} -t UTF-8 FILE > NEW; nothing was sent",
        )
    return first if message_format == "raw" else first.removeprefix(codecs.BOM_UTF8)


def _batch(numbered: Iterator[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The next lines, until they are enough by number or by size; empty at the end."""
    batch: list[tuple[int, bytes]] = []
    size_bytes = 0
    for number, body in islice(numbered, BATCH_MESSAGES):
        batch.append((number, body))
        size_bytes += len(body)
        if size_bytes >= BATCH_BYTES:
            break
    return batch


def _body(text: bytes, number: int, pipeline: Intake) -> bytes:
    if pipeline.message_format != "envelope":
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
