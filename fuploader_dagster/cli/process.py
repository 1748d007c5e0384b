"""The command `process`: a pipeline's processor on one file, without a queue."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from fuploader_dagster.archives.restore_folder import RestoreFolder
from fuploader_dagster.cli import console
from fuploader_dagster.cli.exit_codes import REFUSED
from fuploader_dagster.cli.words import counted, size
from fuploader_dagster.contracts.processor import Item, Result
from fuploader_dagster.delivery.direct import process_item
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.slots.item_folders import CheckedFile

PIECE_BYTES = 2**20


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
    a file. Of an item that lacks some of its results, these are named, and the exit code is 4.
    """
    pipeline = console.one_pipeline(config, pipeline_name)
    headers = dict(_header(one) for one in header or [])
    if command is not None:
        headers["cmd"] = command
    with TemporaryDirectory() as work:
        item = Item(
            file.name, file.read_bytes(), headers, key=f"trial-{file.name}", folder=Path(work)
        )
        answer = asyncio.run(process_item(pipeline, item))
        _write([_Named(item, result) for result in answer.results], output)
    for failure in answer.failures:
        console.complain(f"no result for {failure.name}: {failure.reason}")
    if answer.failures:
        raise typer.Exit(REFUSED)


class _Named:
    """A result with its name."""

    def __init__(self, item: Item, result: Result | CheckedFile) -> None:
        stated = result if isinstance(result, Result) else result.result
        self.name = stated.name or item.name
        self.size_bytes = len(stated.content) if isinstance(stated, Result) else stated.size_bytes
        self.kind = f", {stated.content_type}" if stated.content_type else ""
        self._stated = stated

    def pieces(self) -> Iterator[memoryview]:
        if isinstance(self._stated, Result):
            yield memoryview(self._stated.content)
            return
        with self._stated.path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield memoryview(piece)


def _write(results: Sequence[_Named], output: Path | None) -> None:
    if output is None and len(results) == 1:
        sys.stdout.buffer.writelines(results[0].pieces())
    elif output is not None and len(results) == 1 and not output.is_dir():
        with output.open("wb") as file:
            file.writelines(results[0].pieces())
        console.say(f"wrote {size(results[0].size_bytes)} to {output}{results[0].kind}")
    elif output is None:
        for result in results:
            console.say(f"{result.name}: {size(result.size_bytes)}{result.kind}")
        console.say(f"{counted(len(results), 'result')}; --output FOLDER writes them")
    else:
        with RestoreFolder(output) as folder:
            for result in results:
                folder.write(result.name, result.pieces())
        console.say(f"wrote {counted(len(results), 'result')} into {output}")


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"{text!r} is not a header", hint="write --header name=value")
    return name, value
