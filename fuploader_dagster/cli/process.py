"""The command `process`: a pipeline's processor on one file, without a queue."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from fuploader_dagster.archives.restore_folder import RestoreFolder
from fuploader_dagster.cli import console
from fuploader_dagster.contracts.processor import Item, Result
from fuploader_dagster.delivery.process import process_item
from fuploader_dagster.errors import ConfigError


def process(
    file: Annotated[Path, typer.Argument(help="The file to process.", exists=True, dir_okay=False)],
    *,
    command: Annotated[
        str | None, typer.Option("--cmd", help="Value of the header `cmd`, which chooses a route.")
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", help="A header of the message, as name=value.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the result here; of several, into this folder."),
    ] = None,
    config: console.ConfigOption = None,
    pipeline_name: console.PipelineOption = None,
) -> None:
    """Process one file with a pipeline's processor and its limits, to try it out.

    Nothing is queued, stored or retried. One result goes to standard output unless --output names
    a file.
    """
    pipeline = console.one_pipeline(config, pipeline_name)
    headers = dict(_header(one) for one in header or [])
    if command is not None:
        headers["cmd"] = command
    item = Item(file.name, file.read_bytes(), headers, key=f"trial-{file.name}")
    results = asyncio.run(process_item(pipeline, item))
    if output is None and len(results) == 1:
        sys.stdout.buffer.write(results[0].content)
    elif output is not None and len(results) == 1 and not output.is_dir():
        output.write_bytes(results[0].content)
        console.say(f"wrote {len(results[0].content):,} bytes to {output}{_type(results[0])}")
    elif output is None:
        for result in results:
            console.say(f"{result.name}: {len(result.content):,} bytes{_type(result)}")
        console.say(f"{len(results)} results; --output FOLDER writes them")
    else:
        with RestoreFolder(output) as folder:
            for result in results:
                folder.write(result.name, [memoryview(result.content)])
        console.say(f"wrote {len(results)} results into {output}")


def _type(result: Result) -> str:
    return f", {result.content_type}" if result.content_type else ""


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"{text!r} is not a header", hint="write --header name=value")
    return name, value
