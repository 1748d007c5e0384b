"""Commands of the catalog, which knows the archive of each file: `find` and `catalog rebuild`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from fuploader_dagster.catalog.catalog import Catalog, Hit
from fuploader_dagster.catalog.rebuild import rebuild, remove_catalog
from fuploader_dagster.cli import console
from fuploader_dagster.cli.exit_codes import DAMAGED
from fuploader_dagster.errors import StoreRefused
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.safe_text import in_a_line

catalog = typer.Typer(
    no_args_is_help=True, help="The catalog, in which `find` looks up file names: rebuild."
)


def find(
    name: Annotated[str, typer.Argument(help="File name or pattern: prefix*, *, ?, [...].")],
    *,
    config: console.ConfigOption = None,
    pipeline_name: console.OnlyPipelineOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line, for programs.")
    ] = False,
) -> None:
    """Show which archives hold a file of this name, when they were sealed and where they are.

    Exit code 4 if there is none.
    """
    pipelines = console.chosen_pipelines(config, pipeline_name)
    cataloged = [pipeline for pipeline in pipelines if pipeline.layout.catalog.exists()]
    if not cataloged:
        raise StoreRefused(
            "there is no catalog yet",
            hint="`fuploader catalog rebuild` makes one from the object store",
        )
    if not sum(_find(name, pipeline, as_json=as_json) for pipeline in cataloged):
        raise StoreRefused(
            f"no archive of {', '.join(pipeline.name for pipeline in cataloged)} is known to hold "
            f"{name}",
            hint="`fuploader catalog rebuild` adds the names in archives that other machines "
            "stored",
        )


def _find(name: str, pipeline: Pipeline, *, as_json: bool) -> int:
    count = 0
    with Catalog.to_read(pipeline.layout.catalog) as opened:
        for hit in opened.find(name):
            count += 1
            sys.stdout.write(_as_json(hit, pipeline) if as_json else _as_line(hit))
            if count == 1:
                sys.stdout.flush()
    return count


def _as_line(hit: Hit) -> str:
    one = hit.archive
    line = f"{hit.name}  {one.sealed_at or '-'}  {one.partition or '-'}  {one.address}"
    return in_a_line(line) + "\n"


def _as_json(hit: Hit, pipeline: Pipeline) -> str:
    one = hit.archive
    found = {
        "name": hit.name,
        "pipeline": pipeline.name,
        "sealed_at": one.sealed_at or None,
        "partition": one.partition or None,
        "address": one.address,
    }
    return json.dumps(found) + "\n"


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
            f"{report.archives:,} archives in the store: {report.added:,} added, "
            f"{report.gone:,} gone, {len(report.unreadable):,} not readable"
        )
    console.complain_of_each("not readable", report.unreadable)
    if report.damaged:
        raise typer.Exit(DAMAGED)
