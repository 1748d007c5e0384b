"""What all commands share: common options, output, progress bars.

Results go to stdout, everything else (errors, progress) to stderr. What must always hold: text that
is not ours (names, keys, reasons, answers) reaches a terminal only through this module, which makes
it safe and never interprets it as markup.

`fuploader --help` imports this module, so whatever only some commands need is imported where it is
used.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.places import CONFIG_VARIABLE, DEFAULT_FILE, MODULE_VARIABLE
from fuploader_dagster.settings.safe_text import in_a_line

if TYPE_CHECKING:
    from rich import progress as bars

    from fuploader_dagster.contracts.object_store import Progress
    from fuploader_dagster.settings.pipeline import Pipeline

console = Console()
errors = Console(stderr=True)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="Configuration file, or the defs.yaml of a component. "
        f"Default: ${CONFIG_VARIABLE}, else {DEFAULT_FILE}.",
    ),
]
PipelineOption = Annotated[
    str | None,
    typer.Option("--pipeline", "-p", help="Name of the pipeline. Required if there are several."),
]
OnlyPipelineOption = Annotated[
    str | None,
    typer.Option("--pipeline", "-p", help="Name of one pipeline. Default: all of them."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

_REFRESH_SECONDS = 0.1
_LISTED_TROUBLES = 100
_SHOWN_BYTES = 32


class _Chosen:
    """What the options before the command say. Set anew for each command line."""

    config: Path | None = None
    module: str | None = None


_chosen = _Chosen()


def choose(config: Path | None, module: str | None) -> None:
    """Take the pipelines of all that follows from this file or module; by default from the
    environment. Raises `ConfigError` if both are named."""
    if config and module:
        raise ConfigError("--config and --module are both given", hint="leave one of them out")
    _chosen.config, _chosen.module = config, module


def configuration_file(config: Path | None) -> Path | None:
    """The file that the command or the command line names; None for the default, or a module."""
    return config or _chosen.config


def chosen_module(config: Path | None) -> str | None:
    """The module whose definitions have the pipelines, unless a file is named."""
    if configuration_file(config):
        return None
    of_environment = os.environ.get(MODULE_VARIABLE)
    if of_environment and not _chosen.module and os.environ.get(CONFIG_VARIABLE):
        raise ConfigError(
            f"{CONFIG_VARIABLE} and {MODULE_VARIABLE} are both set",
            hint="unset one of them, or say --config or --module before the command",
        )
    return _chosen.module or of_environment


def configured(config: Path | None) -> dict[str, Pipeline]:
    """All pipelines, by name: of the command's own file, else as `choose` was told."""
    if module := chosen_module(config):
        from fuploader_dagster.settings.modules import pipelines_of_module  # noqa: PLC0415

        return pipelines_of_module(module)
    from fuploader_dagster.settings.loading import load_pipelines  # noqa: PLC0415

    return load_pipelines(configuration_file(config))


def read_configured(
    config: Path | None,
) -> tuple[dict[str, Pipeline], dict[str, ConfigError]]:
    """The pipelines that can be used, and what is wrong with the others, by name. Raises
    `ConfigError` for what concerns all of them."""
    if chosen_module(config):
        return configured(config), {}
    from fuploader_dagster.settings.loading import read_pipelines  # noqa: PLC0415

    return read_pipelines(configuration_file(config))


def is_configured(config: Path | None) -> bool:
    """Whether there is anything that names pipelines."""
    named = configuration_file(config) or chosen_module(config) or CONFIG_VARIABLE in os.environ
    return bool(named) or Path(DEFAULT_FILE).exists()


def one_pipeline(
    config: Path | None, name: str | None, *, option: str = "with --pipeline"
) -> Pipeline:
    """The pipeline of this name, or the only one. Raises `ConfigError` if neither exists."""
    pipelines = configured(config)
    if name is None and len(pipelines) == 1:
        return next(iter(pipelines.values()))
    if name is None:
        raise ConfigError(
            "there are several pipelines", hint=f"choose one of {', '.join(pipelines)} {option}"
        )
    if name not in pipelines:
        hint = f"{choice(name, pipelines)} {option}"
        raise ConfigError(f"there is no pipeline {name!r}", hint=hint)
    return pipelines[name]


def choice(given: str, known: Iterable[str]) -> str:
    """For a hint: what was probably meant, and what there is."""
    names = list(known)
    near = difflib.get_close_matches(given, names, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{meant}choose one of {', '.join(names)}"


def chosen_pipelines(config: Path | None, name: str | None) -> list[Pipeline]:
    """The pipeline of this name; without a name all of them."""
    return [one_pipeline(config, name)] if name else list(configured(config).values())


def print_json(value: Any) -> None:
    """A result for programs. Names that are not UTF-8 are kept, as escapes."""
    import msgspec  # noqa: PLC0415

    sys.stdout.write(json.dumps(value, default=msgspec.to_builtins) + "\n")


def say(line: str) -> None:
    """A line of the result. Names and addresses may contain what rich takes for markup."""
    console.print(in_a_line(line), highlight=False, markup=False, soft_wrap=True)


def complain(line: str) -> None:
    """Something that went wrong."""
    errors.print(in_a_line(line), highlight=False, markup=False, soft_wrap=True)


def complain_of_each(what: str, troubles: Sequence[object]) -> None:
    """Each of several things that went wrong, a line each; of very many the first ones."""
    for trouble in troubles[:_LISTED_TROUBLES]:
        complain(f"{what}: {trouble}")
    if len(troubles) > _LISTED_TROUBLES:
        complain(f"{what}: {len(troubles) - _LISTED_TROUBLES:,} more")


def text_of(content: bytes) -> list[str]:
    """Content for people: the lines of a text, or how bytes that are no text begin."""
    try:
        return content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        return [f"{len(content):,} bytes that are no text: {content[:_SHOWN_BYTES].hex(' ')} ..."]


_BROKEN_ABOVE = 30
"""Characters of a word in the last column of a table."""


def show_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, none: str = "none"
) -> None:
    """Results in columns. Without any row, `none` says so.

    No word is cut, because people copy keys and ids: where the terminal is too narrow for them the
    table is wider than it. Only the last column, for free text, may break a long word.
    """
    from rich.table import Table  # noqa: PLC0415

    lines = [[Text(in_a_line(cell)) for cell in row] for row in rows]
    if not lines:
        say(none)
        return
    table = Table()
    width = 1
    for column, *cells in zip(map(Text, columns), *lines, strict=True):
        longest = max(Text(word).cell_len for one in (column, *cells) for word in _words(one))
        if column.plain == columns[-1]:
            longest = min(longest, _BROKEN_ABOVE)
        table.add_column(column, min_width=longest, overflow="fold")
        width += longest + 3
    for line in lines:
        table.add_row(*line)
    if width > console.width:
        table.width = width
    console.print(table, crop=False)


def _words(cell: Text) -> list[str]:
    return cell.plain.split(" ")


def show_verdict(word: str, colour: str, line: str, hint: str = "") -> None:
    """A result after a word in colour, with what to do about it on a line below."""
    text = Text(f"{word:<11}", style=colour)
    text.append(f" {in_a_line(line)}", style="default")
    if hint:
        text.append(f"\n{'':<24} -> {in_a_line(hint)}", style="default")
    console.print(text, highlight=False, soft_wrap=True)


def show_title(line: str) -> None:
    """A heading for the lines below it."""
    console.print(Text(in_a_line(line), style="bold"), highlight=False)


def counting() -> bars.Progress:
    """Progress in things: "3/12"."""
    from rich import progress as bars  # noqa: PLC0415

    return _progress(bars.MofNCompleteColumn())


@contextmanager
def bytes_bar(what: str) -> Iterator[Progress]:
    """Progress in bytes, as the engine reports it; a total of 0 means that it is not known."""
    from rich import progress as bars  # noqa: PLC0415

    with _progress(bars.DownloadColumn(binary_units=True), bars.TransferSpeedColumn()) as progress:
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


def _progress(*columns: bars.ProgressColumn) -> bars.Progress:
    from rich import progress as bars  # noqa: PLC0415

    return bars.Progress(
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        *columns,
        bars.TimeElapsedColumn(),
        console=errors,
    )
