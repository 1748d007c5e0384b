"""The command `publish`: from the lines of a file to messages of a queue.

For pipelines of `message_format` envelope a line is a JSON object in one of the forms that
FUploader's producers use:

    {"file_name": "1.json", "payload": ...}     wrapped into an envelope (`content` for `payload`)
    {"file_name": ..., "compression": "gzip", "payload": "..."}     an envelope, passed on unchanged

For json and raw the line is the message, without the white space around it. A byte order mark at
the start of the file is not part of the first line, except for raw, where every byte counts. A file
in UTF-16 or UTF-32 is refused before anything is sent: its line breaks are other bytes.
"""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from fuploader_dagster.cli import console
from fuploader_dagster.cli.exit_codes import REFUSED
from fuploader_dagster.cli.words import counted
from fuploader_dagster.contracts.refused_messages import publish_accepted
from fuploader_dagster.contracts.source import MessagePublisher
from fuploader_dagster.errors import BadMessage, ConfigError, MessageRefused
from fuploader_dagster.processing.producer import encode_file_message
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
_STDIN = Path("-")


def publish(
    file: Annotated[
        Path, typer.Argument(help="File with one message in each line; - for standard input.")
    ],
    config: console.ConfigOption = None,
    pipeline_name: console.PipelineOption = None,
) -> None:
    """Publish messages to a pipeline's queue, each confirmed."""
    pipeline = console.one_pipeline(config, pipeline_name)
    with _open_lines(file) as lines, console.counting() as progress:
        total = None if file == _STDIN else _count_lines(file)
        task = progress.add_task("publishing", total=total)
        with closing(pipeline.source.publisher()) as publisher:
            report = publish_lines(
                lines, pipeline, publisher, progress=lambda more: progress.advance(task, more)
            )
    confirmed = counted(report.confirmed, "message is confirmed", "messages are confirmed")
    console.say(f"{confirmed} by {pipeline.source.describe()}")
    for number, error in report.refused:
        console.complain(f"line {number} was not sent: {error}")
    if report.refused:
        raise typer.Exit(REFUSED)


@dataclass
class PublishReport:
    """How many messages the queue confirmed, and what it refused."""

    confirmed: int = 0
    refused: list[tuple[int, MessageRefused]] = field(default_factory=list)
    """The lines that the queue will never take, by their numbers."""


def publish_lines(
    lines: Iterable[bytes],
    pipeline: Intake,
    publisher: MessagePublisher,
    *,
    progress: Callable[[int], None] | None = None,
) -> PublishReport:
    """Publish each line; `progress` is called with the number of lines in each batch.

    Raises `BadMessage` with the line's number for a line that cannot become a message, and whatever
    publishing raises. The lines before it may then be in the queue.
    """
    report = PublishReport()
    numbered = numbered_bodies(lines, pipeline)
    while batch := _batch(numbered):
        refused = publish_accepted(publisher.publish, [(body, {}) for _, body in batch])
        report.confirmed += len(batch) - len(refused)
        report.refused += [(batch[at][0], error) for at, error in refused.items()]
        if progress:
            progress(len(batch))
    return report


def numbered_bodies(lines: Iterable[bytes], pipeline: Intake) -> Iterator[tuple[int, bytes]]:
    """The line number and the message of each line that is not empty."""
    for number, line in enumerate(lines, start=1):
        text = _without_mark(line, pipeline.message_format) if number == 1 else line
        text = text.strip()
        if text:
            yield number, _body(text, number, pipeline)


def _without_mark(first: bytes, message_format: str) -> bytes:
    """The first line without a byte order mark. Its bytes tell the file's encoding."""
    encoding = next((name for mark, name in _WIDE_MARKS if first.startswith(mark)), "")
    if not encoding and message_format != "raw" and b"\0" in first[:_FIRST_CHARACTER_BYTES]:
        encoding = "UTF-16"
    if encoding:
        raise BadMessage(
            f"the file is in {encoding}, but lines are read as UTF-8; nothing was sent",
            hint=f"convert it: iconv -f {encoding} -t UTF-8 FILE > NEW",
        )
    return first if message_format == "raw" else first.removeprefix(codecs.BOM_UTF8)


def _batch(numbered: Iterator[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The next lines, up to `BATCH_MESSAGES` or about `BATCH_BYTES`; empty at the end."""
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
            raise ValueError("it is not a JSON object")
        envelope = encode_file_message(item)
        return json.dumps(envelope, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except (ValueError, TypeError, RecursionError) as error:
        raise BadMessage(
            f"line {number} cannot become a message: {error}",
            hint='a line looks like {"file_name": "1.json", "payload": ...}',
        ) from error


def _open_lines(file: Path) -> AbstractContextManager[Any]:
    if file == _STDIN:
        return nullcontext(sys.stdin.buffer)
    try:
        return file.open("rb")
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error


def _count_lines(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(1 for line in lines if line.strip())
