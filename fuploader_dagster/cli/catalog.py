"""Commands of the catalog: `find` and `catalog rebuild`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from fuploader_dagster.catalog.catalog import Catalog, Hit
from fuploader_dagster.catalog.rebuild import rebuild, remove_catalog
from fuploader_dagster.cli.console import (
    ConfigOption,
    JsonOption,
    PipelineOption,
    complain,
    counting,
    one_pipeline,
    say,
)
from fuploader_dagster.errors import StoreRefused
from fuploader_dagster.settings.loading import load_pipelines
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.safe_text import in_a_line

_LISTED_TROUBLES = 100

catalog_app = typer.Typer(
    no_args_is_help=True, help="Which archive holds the file of which name: keeping that."
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(find)
    app.add_typer(catalog_app, name="catalog")


def find(
    name: Annotated[str, typer.Argument(help="A name, or a pattern: prefix*, *, ?, [...].")],
    *,
    config: ConfigOption = None,
    pipeline: PipelineOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Which archives hold the file of this name: with the time of sealing and the address.

    Exit code 4 if there is none.
    """
    chosen = [one_pipeline(config, pipeline)] if pipeline else [*load_pipelines(config).values()]
    cataloged = [settings for settings in chosen if settings.layout.catalog.exists()]
    if not cataloged:
        raise StoreRefused(
            "there is no catalog yet", hint="fuploader catalog rebuild makes one from the store"
        )
    if not sum(_find(name, settings, as_json=as_json) for settings in cataloged):
        raise StoreRefused(
            f"no archive of {', '.join(settings.name for settings in cataloged)} is known to hold "
            f"{name}",
            hint="of archives that others stored, fuploader catalog rebuild learns the names",
        )


def _find(name: str, pipeline: Pipeline, *, as_json: bool) -> int:
    count = 0
    with Catalog.to_read(pipeline.layout.catalog) as catalog:
        for hit in catalog.find(name):
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


@catalog_app.command(name="rebuild")
def rebuild_command(
    *,
    config: ConfigOption = None,
    pipeline: PipelineOption = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Forget what is known first; for a damaged catalog.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Archives read at once.")] = 8,
    as_json: JsonOption = False,
) -> None:
    """Make the catalog say what the object store holds: reads the manifests that it lacks."""
    settings = one_pipeline(config, pipeline)
    if anew:
        remove_catalog(settings.layout)
    with counting() as progress:
        task = progress.add_task("reading manifests", total=None)
        report = rebuild(
            settings,
            settings.store.open(),
            threads=threads,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if as_json:
        sys.stdout.write(json.dumps(vars(report)) + "\n")
    else:
        say(
            f"{report.archives:,} archives in the store: {report.added:,} added, "
            f"{report.gone:,} are gone, {len(report.unreadable):,} cannot be listed"
        )
    for reason in report.unreadable[:_LISTED_TROUBLES]:
        complain(f"not listed: {reason}")
    if report.damaged:
        raise typer.Exit(5)
