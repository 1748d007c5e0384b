"""The command `find`, and `catalog rebuild` for the catalog that it looks into."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import chain
from typing import Annotated

import typer

from fuploader_dagster.catalog.rebuild import rebuild, remove_catalog
from fuploader_dagster.cli import console
from fuploader_dagster.cli.exit_codes import DAMAGED
from fuploader_dagster.cli.words import counted
from fuploader_dagster.errors import StoreRefused
from fuploader_dagster.lookup.found import Copy, Letter, State, as_builtins
from fuploader_dagster.lookup.search import Search
from fuploader_dagster.lookup.wanted import Wanted
from fuploader_dagster.settings.safe_text import in_a_line

catalog = typer.Typer(
    no_args_is_help=True, help="The catalog, in which `find` looks up file names: rebuild."
)

_PLACES: dict[State, str] = {
    "active": "in slot {copy.slot}, directory {copy.directory}, not sealed yet",
    "sealed": "sealed in slot {copy.slot}, directory {copy.directory}",
    "processed": "processed, not packed yet",
    "packed": "packed, not uploaded yet",
    "stored": "stored",
}


def find(
    name: Annotated[
        str, typer.Argument(help="File name, message id or pattern: prefix*, *, ?, [...].")
    ],
    *,
    config: console.ConfigOption = None,
    pipeline_name: console.OnlyPipelineOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line, for programs.")
    ] = False,
) -> None:
    """Show where the message of this name or id is: in which slot or archive, at which sinks, or
    among the dead letters.

    Reads only this machine's disk. Exit code 4 if nothing is known of it here.
    """
    pipelines = console.chosen_pipelines(config, pipeline_name)
    wanted = Wanted(name, patterns=True)
    if not sum(_find(Search(one, wanted), as_json=as_json) for one in pipelines):
        raise StoreRefused(
            f"no message, archive or dead letter of {', '.join(one.name for one in pipelines)} is "
            f"known here as {name}",
            hint="it may wait in the queue, be on another node, or never have been published; "
            "`fuploader catalog rebuild` adds the names in archives that are missing here",
        )


def _find(search: Search, *, as_json: bool) -> int:
    """Show what is found; return how much that is. Raises `CatalogUnusable`, after all else."""
    count = 0
    letters = search.letters()
    everything: Iterator[Copy | Letter] = chain(search.copies(), letters)
    for found in everything:
        count += 1
        sys.stdout.write(json.dumps(as_builtins(found)) + "\n" if as_json else _as_lines(found))
        if count == 1:
            sys.stdout.flush()
    for sentence in search.incomplete():
        console.complain(f"not looked at: {sentence}")
    if search.catalog_trouble is not None:
        raise search.catalog_trouble
    return count


def _as_lines(found: Copy | Letter) -> str:
    lines = [_line_of_letter(found)] if isinstance(found, Letter) else _lines_of_copy(found)
    return "".join(f"{in_a_line(line)}\n" for line in lines)


def _line_of_letter(letter: Letter) -> str:
    now = "waits" if letter.waits else "sent back" if letter.sent_back else "settled"
    return f"dead letter {letter.id}  {letter.time}  {letter.stage}  {now}: {letter.reason}"


def _lines_of_copy(copy: Copy) -> list[str]:
    place = copy.address or _PLACES[copy.state].format(copy=copy)
    lines = [f"{copy.name}  {copy.sealed_at or '-'}  {copy.partition or '-'}  {place}"]
    if copy.current is False:
        lines.append("    this archive was replaced when its messages were processed again")
    if copy.redo:
        lines.append("    its messages are being processed again")
    if copy.trouble is not None:
        lines.append(
            f"    {copy.trouble.stage} failed {copy.trouble.attempts} times: {copy.trouble.error}"
        )
    for name, at in copy.sinks.items():
        why = f", failed {at.attempts} times" if at.attempts else ""
        why += f": {at.error}" if at.error else ""
        lines.append(f"    sink {name}: {at.state}{why}")
    return lines


@catalog.command(name="rebuild")
def rebuild_command(
    *,
    config: console.ConfigOption = None,
    pipeline_name: console.PipelineOption = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Remove the catalog first, for example a damaged one.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Number of archives to read at once.")] = 8,
    as_json: console.JsonOption = False,
) -> None:
    """Bring the catalog up to date with the object store, reading only the manifests it lacks."""
    pipeline = console.one_pipeline(config, pipeline_name)
    if anew:
        remove_catalog(pipeline.layout)
    with console.counting() as progress:
        task = progress.add_task("reading manifests", total=None)
        report = rebuild(
            pipeline,
            pipeline.store.open(),
            threads=threads,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if as_json:
        console.print_json(vars(report))
    else:
        console.say(
            f"{counted(report.archives, 'archive')} in the store: {report.added:,} added, "
            f"{report.gone:,} gone, {len(report.unreadable):,} not readable"
        )
    console.complain_of_each("not readable", report.unreadable)
    if report.damaged:
        raise typer.Exit(DAMAGED)
