"""The command `replay`: archived messages to a queue again."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime, timezone
from typing import Annotated

import typer

from fuploader_dagster.cli import console
from fuploader_dagster.cli.exit_codes import REFUSED
from fuploader_dagster.cli.words import counted
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.replay import Selection, another_queue, select
from fuploader_dagster.delivery.replay import replay as replay_selection
from fuploader_dagster.slots.receipts import find_receipts

_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]


def replay(
    partitions: Annotated[
        list[str] | None, typer.Argument(help="Partition keys of the archives.")
    ] = None,
    *,
    since: Annotated[
        datetime | None,
        typer.Option(
            formats=_FORMATS,
            metavar="TIME",
            help="Only archives sealed at this time or later: 2026-11-20T14:30 or 2026-11-20; UTC.",
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(
            formats=_FORMATS, metavar="TIME", help="Only archives sealed before this time; UTC."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Only files whose names match: *, ?, [...].")
    ] = None,
    queue: Annotated[
        str | None,
        typer.Option(help="Publish to this queue of the same broker. Default: the pipeline's own."),
    ] = None,
    config: console.ConfigOption = None,
    pipeline_name: console.PipelineOption = None,
) -> None:
    """Publish archived messages to a queue again, in their order, each confirmed.

    After an interruption, the same command continues where it stopped.
    """
    pipeline = console.one_pipeline(config, pipeline_name)
    source = another_queue(pipeline.source, queue) if queue else pipeline.source
    selection = Selection(
        select(
            pipeline,
            partitions=partitions or (),
            since=_utc(since),
            until=_utc(until),
            pattern=name,
        ),
        name,
        source.describe(),
    )
    receipts = find_receipts(pipeline.layout, selection.partitions)
    known = name is None and len(receipts) == len(selection.partitions)
    with closing(source.publisher()) as publisher, console.counting() as progress:
        total = sum(one.messages * one.originals for one in receipts.values()) if known else None
        task = progress.add_task("replaying", total=total)
        report = replay_selection(
            selection,
            pipeline,
            publisher,
            ArchiveFinder({pipeline.name: pipeline}).open,
            progress=lambda confirmed: progress.update(task, completed=confirmed),
        )
    earlier = f", {report.before:,} in an earlier attempt" if report.before else ""
    console.say(
        f"{counted(report.published, 'message')} of "
        f"{counted(len(selection.partitions), 'archive')} confirmed by {selection.target}{earlier}"
    )
    console.complain_of_each("unproven", report.unproven)
    console.complain_of_each("cannot become a message", report.refused)
    console.complain_of_each(
        "nothing to replay, its archive holds only results", report.only_results
    )
    if report.refused or report.only_results:
        raise typer.Exit(REFUSED)


def _utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=timezone.utc) if moment else None
