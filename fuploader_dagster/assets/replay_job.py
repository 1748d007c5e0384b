"""Replay as a job: a person picks partitions in the UI, their messages go to a queue again.

A backfill of several partitions is a run for each of them. Within a run the order is that of
sealing; where it matters across partitions, launch one run with `partitions` or a time in its
config (or `fuploader replay`). A run that is tried again goes on where the last one stopped.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of `context` and
# `config`.

import time
from datetime import datetime, timezone
from typing import Optional

import dagster as dg
from pydantic import Field

from fuploader_dagster.assets.partitions import Names, partitions_of_run
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.replay import ReplayReport, Selection, another_queue, replay, select
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.pipeline import Pipeline

PROGRESS_SECONDS = 5.0


class ReplayConfig(dg.Config):
    """What a person can say in the launchpad."""

    partitions: list[str] = Field(default=[], description="Where the run itself has none.")
    since: Optional[str] = Field(  # noqa: UP045 - Dagster reads this annotation
        default=None, description="Sealed from then on: 2026-11-20T12:00 (UTC)."
    )
    until: Optional[str] = Field(default=None, description="Sealed before then.")  # noqa: UP045
    name: Optional[str] = Field(  # noqa: UP045
        default=None, description="Only files of such a name: *, ?, [...]."
    )
    queue: Optional[str] = Field(  # noqa: UP045
        default=None, description="Another queue of the same broker than the pipeline's own."
    )


def build_replay_job(pipeline: Pipeline) -> dg.JobDefinition:
    """The replay job of a pipeline."""
    names = Names.of(pipeline)

    @dg.op(name=f"{names.replay_job}_op")
    def publish_again(context: dg.OpExecutionContext, config: ReplayConfig) -> None:
        source = another_queue(pipeline.source, config.queue) if config.queue else pipeline.source
        selection = Selection(
            select(
                pipeline,
                partitions=partitions_of_run(context) or config.partitions,
                since=_moment(config.since),
                until=_moment(config.until),
                pattern=config.name,
            ),
            config.name,
            source.describe(),
        )
        last = time.monotonic()

        def report(confirmed: int) -> None:
            nonlocal last
            if time.monotonic() - last >= PROGRESS_SECONDS:
                last = time.monotonic()
                context.log.info(f"{confirmed:,} messages are confirmed")

        publisher = source.publisher()
        try:
            done = replay(
                selection,
                pipeline,
                publisher,
                ArchiveFinder({pipeline.name: pipeline}).open,
                progress=report,
            )
        finally:
            publisher.close()
        _conclude(context, done, selection)

    @dg.job(
        name=names.replay_job,
        partitions_def=names.partitions(),
        executor_def=dg.in_process_executor,
        description="Publishes the messages of archives to a queue again, in order, confirmed.",
    )
    def replay_messages() -> None:
        publish_again()

    return replay_messages


def _conclude(context: dg.OpExecutionContext, done: ReplayReport, selection: Selection) -> None:
    context.log.info(
        f"{done.published:,} messages of {len(selection.partitions):,} archives are confirmed by "
        f"{selection.target}; {done.before:,} were in an earlier attempt"
    )
    if done.refused:
        raise dg.Failure(
            f"{len(done.refused)} files cannot be messages, all others are published: "
            + "; ".join(done.refused[:10]),
            allow_retries=False,
        )


def _moment(text: Optional[str]) -> Optional[datetime]:  # noqa: UP045
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise ConfigError(f"{text!r} is no time", hint="write 2026-11-20T12:00:00") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
