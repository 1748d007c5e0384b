"""The command `try`: what a pipeline would make of a message, before any is published."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from fuploader_dagster.cli import console, words
from fuploader_dagster.contracts.source import Message
from fuploader_dagster.disk.header_text import folded, from_text, to_text
from fuploader_dagster.disk.layout import PartitionKey, utc
from fuploader_dagster.errors import BadMessage, ConfigError
from fuploader_dagster.processing.decoder import Decoder, File
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.user_functions import object_key
from fuploader_dagster.slots.message_values import Tally

_SHOWN_BYTES = 2_000


def try_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A file with the body of one message; - for standard input."
        ),
    ],
    header: Annotated[
        list[str] | None, typer.Option("--header", help="A header of the message, as name=value.")
    ] = None,
    config: console.ConfigOption = None,
    pipeline_name: console.PipelineOption = None,
    as_json: console.JsonOption = False,
) -> None:
    """Show what a pipeline would make of a message: its file's name, headers, digest and key.

    The message format, your parser and your file name generator are run as a worker runs them; no
    queue, state or store is asked, and nothing is written. Exit code 5 if the message would become
    a dead letter, with its reason.
    """
    pipeline = console.one_pipeline(config, pipeline_name)
    body = _read(file)
    headers = dict(_header(one) for one in header or [])
    made = _decoded(pipeline, body, headers)
    found = {
        "pipeline": pipeline.name,
        "name": made.name,
        "headers": _kept(pipeline, headers),
        "size_bytes": len(made.content),
        "sha256": hashlib.sha256(made.content).hexdigest(),
        "key": _key(pipeline, made.content),
    }
    if as_json:
        console.print_json(found)
        return
    console.say(f"name:    {made.name}")
    for name, value in _kept(pipeline, headers).items():
        console.say(f"header:  {name}: {value}")
    console.say(f"size:    {words.size(len(made.content))}")
    console.say(f"sha256:  {found['sha256']}")
    console.say(f"key:     {found['key']}, if its slot were the first, and sealed now")
    console.say("content:")
    for line in console.text_of(made.content[:_SHOWN_BYTES]):
        console.say(f"    {line}")
    if len(made.content) > _SHOWN_BYTES:
        console.say(f"    ... and {words.size(len(made.content) - _SHOWN_BYTES)} more")


def _read(file: Path) -> bytes:
    return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"{text!r} is not a header", hint="write --header name=value")
    return name, value


def _decoded(pipeline: Pipeline, body: bytes, headers: dict[str, str]) -> File:
    message_id = next((v for k, v in headers.items() if folded(k) == "message-id"), None)
    decoder = Decoder(pipeline)
    try:
        (made,) = decoder.decode([Message(body, 1, False, message_id)])
    finally:
        decoder.close()
    if isinstance(made, BadMessage):
        raise BadMessage(f"it would become a dead letter: {made.message}", hint=made.hint)
    return made


def _kept(pipeline: Pipeline, headers: dict[str, str]) -> dict[str, str]:
    """Those of the headers that the pipeline keeps, under the names of its settings."""
    given = {folded(name): value for name, value in headers.items()}
    kept = {name: given[folded(name)] for name in pipeline.headers if folded(name) in given}
    return from_text(to_text(kept))


def _key(pipeline: Pipeline, content: bytes) -> str:
    """The key of an archive with this message alone, as if it were sealed now."""
    split: dict[str, str] = {}
    if pipeline.split_by:
        tally = Tally(pipeline)
        tally.add(content)
        split = tally.shared()
    partition = PartitionKey(utc(time.time()), pipeline.node, 0, 1)
    archive = f"{partition}{pipeline.archive_suffix}"
    return object_key(
        pipeline.key,
        pipeline=pipeline.name,
        partition=partition,
        archive=archive,
        zone=pipeline.zone,
        split=split,
    )
