"""The command `replay`."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated

import typer

from fuploader_dagster.cli.console import (
    ConfigOption,
    PipelineOption,
    complain,
    counting,
    one_pipeline,
    say,
)
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.replay import Selection, another_queue, select
from fuploader_dagster.delivery.replay import replay as replay_selection
from fuploader_dagster.slots.receipts import find_receipts

_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]
_LISTED_TROUBLES = 100
REFUSED = 4


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(replay)


def replay(
    partitions: Annotated[list[str] | None, typer.Argument(help="Partition keys.")] = None,
    *,
    since: Annotated[
        datetime | None, typer.Option(formats=_FORMATS, help="Sealed from then on; UTC.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=_FORMATS, help="Sealed before then; UTC.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only such files: *, ?, [...].")] = None,
    queue: Annotated[
        str | None, typer.Option(help="Another queue of the same broker than the pipeline's own.")
    ] = None,
    config: ConfigOption = None,
    pipeline: PipelineOption = None,
) -> None:
    """Publish messages out of archives to a queue again: in order, confirmed.

    The same command goes on where an interrupted one stopped.
    """
    settings = one_pipeline(config, pipeline)
    source = another_queue(settings.source, queue) if queue else settings.source
    selection = Selection(
        select(
            settings,
            partitions=partitions or (),
            since=_utc(since),
            until=_utc(until),
            pattern=name,
        ),
        name,
        source.describe(),
    )
    receipts = find_receipts(settings.layout, selection.partitions)
    known = name is None and len(receipts) == len(selection.partitions)
    publisher = source.publisher()
    try:
        with counting() as progress:
            total = sum(one.messages for one in receipts.values()) if known else None
            task = progress.add_task("replaying", total=total)
            report = replay_selection(
                selection,
                settings,
                publisher,
                ArchiveFinder({settings.name: settings}).open,
                progress=lambda confirmed: progress.update(task, completed=confirmed),
            )
    finally:
        publisher.close()
    earlier = f", {report.before:,} in an earlier attempt" if report.before else ""
    say(
        f"{report.published:,} messages of {len(selection.partitions):,} archives are confirmed by "
        f"{selection.target}{earlier}"
    )
    for reason in report.unproven[:_LISTED_TROUBLES]:
        complain(f"unproven: {reason}")
    for reason in report.refused[:_LISTED_TROUBLES]:
        complain(f"cannot be a message: {reason}")
    if report.refused:
        raise typer.Exit(REFUSED)


def _utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=timezone.utc) if moment else None
