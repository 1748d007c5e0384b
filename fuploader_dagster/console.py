"""What all commands share: their common options, where they write, progress bars.

Results go to stdout, everything else (errors, progress) to stderr.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from fuploader_dagster import storage
from fuploader_dagster.config import Pipeline
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.loading import load_pipelines

console = Console()
errors = Console(stderr=True)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Configuration file; default $FUPLOADER_CONFIG."),
]
PipelineOption = Annotated[
    str | None,
    typer.Option("--pipeline", "-p", help="Which pipeline; needed where there are several."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON for programs.")]

_REFRESH_SECONDS = 0.1


def one_pipeline(config: Path | None, name: str | None) -> Pipeline:
    """The pipeline that is meant. Raises `ConfigError` if that is not clear."""
    pipelines = load_pipelines(config)
    if name is None and len(pipelines) == 1:
        return next(iter(pipelines.values()))
    if name not in pipelines:
        raise ConfigError(
            f"there is no pipeline {name!r}" if name else "there are several pipelines",
            hint=f"name one of {', '.join(pipelines)} with --pipeline",
        )
    return pipelines[name]


def say(line: str) -> None:
    """A result, as it stands: names and addresses may hold what rich takes for markup."""
    console.print(shown(line), highlight=False, markup=False, soft_wrap=True)


def complain(line: str) -> None:
    """Something that went wrong."""
    errors.print(shown(line), highlight=False, markup=False, soft_wrap=True)


def counting() -> Progress:
    """Progress in things: "3/12"."""
    return _progress(MofNCompleteColumn())


@contextmanager
def bytes_bar(what: str) -> Iterator[storage.Progress]:
    """Progress in bytes, as the engine reports it; 0 as the total: it is not known."""
    with _progress(DownloadColumn(binary_units=True), TransferSpeedColumn()) as progress:
        task = progress.add_task(what, total=None)
        shown = 0.0
        last = (0, 0)

        def report(done: int, total: int) -> None:
            nonlocal shown, last
            last = (done, total)
            if time.monotonic() - shown >= _REFRESH_SECONDS:  # members come by the million
                shown = time.monotonic()
                progress.update(task, completed=done, total=total or None)

        yield report
        progress.update(task, completed=last[0], total=last[1] or None)


def _progress(*columns: ProgressColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        TimeElapsedColumn(),
        console=errors,
    )


def shown(name: str) -> str:
    """A file's name on a line of its own: what a terminal would obey is escaped."""
    if name.isprintable():
        return name
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name
    )
