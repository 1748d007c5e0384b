"""What all commands share: their common options, where they write, progress bars.

Results go to stdout, everything else (errors, progress) to stderr. What must always hold: text that
is not ours (names, keys, reasons, answers) reaches a terminal only through this module, which makes
it safe and takes nothing in it for markup.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
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
from rich.table import Table
from rich.text import Text

from fuploader_dagster.contracts import object_store
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.loading import load_pipelines
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.safe_text import in_a_line

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
    console.print(in_a_line(line), highlight=False, markup=False, soft_wrap=True)


def complain(line: str) -> None:
    """Something that went wrong."""
    errors.print(in_a_line(line), highlight=False, markup=False, soft_wrap=True)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Results in columns."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*(Text(in_a_line(cell)) for cell in row))
    console.print(table)


def show_verdict(word: str, colour: str, line: str, hint: str = "") -> None:
    """A result with a word in colour before it, and what to do in a line below."""
    text = Text(f"{word:<11}", style=colour)
    text.append(f" {in_a_line(line)}", style="default")
    if hint:
        text.append(f"\n{'':<24} -> {in_a_line(hint)}", style="default")
    console.print(text, highlight=False, soft_wrap=True)


def show_title(line: str) -> None:
    """What the lines below it are about."""
    console.print(Text(in_a_line(line), style="bold"), highlight=False)


def counting() -> Progress:
    """Progress in things: "3/12"."""
    return _progress(MofNCompleteColumn())


@contextmanager
def bytes_bar(what: str) -> Iterator[object_store.Progress]:
    """Progress in bytes, as the engine reports it; 0 as the total: it is not known."""
    with _progress(DownloadColumn(binary_units=True), TransferSpeedColumn()) as progress:
        task = progress.add_task(in_a_line(what), total=None)
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
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        TimeElapsedColumn(),
        console=errors,
    )
