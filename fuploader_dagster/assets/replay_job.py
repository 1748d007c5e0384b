"""Replay as a job: a person picks partitions in the UI, the job publishes their messages again.

A backfill of several partitions is a run for each of them. Within a run the order is that of
sealing. If the order across partitions matters, launch one run with `partitions` or a time in its
config, or use `fuploader replay`. A run that is retried goes on where the last one stopped.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of `context` and
# `config`.

from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timezone
from typing import Optional

import dagster as dg
from pydantic import Field

from fuploader_dagster.assets.outcomes import at_intervals
from fuploader_dagster.assets.overrides import queue_and_state, with_resources
from fuploader_dagster.assets.partitions import Names, partitions_of_run
from fuploader_dagster.assets.run_machine import note_machine
from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.replay import ReplayReport, Selection, another_queue, replay, select
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import find_receipts


class ReplayConfig(dg.Config):
    """What a person can say in the launchpad."""

    partitions: list[str] = Field(
        default=[], description="Partitions to replay, for a run that is launched without any."
    )
    since: Optional[str] = Field(  # noqa: UP045 - Dagster reads this annotation
        default="", description="Sealed at or after this time: 2026-11-20T12:00 (UTC)."
    )
    until: Optional[str] = Field(default="", description="Sealed before this time.")  # noqa: UP045
    name: Optional[str] = Field(  # noqa: UP045
        default="", description="Only files whose name matches: *, ?, [...]."
    )
    queue: Optional[str] = Field(  # noqa: UP045
        default="",
        description="Another queue of the same broker. Empty: the pipeline's own, which stores "
        "all of them again.",
    )
    dry_run: bool = Field(
        default=False, description="Only say what would be published, and where to."
    )


def build_replay_job(pipeline: Pipeline) -> dg.JobDefinition:
    """The replay job of a pipeline."""
    names = Names.of(pipeline)
    op_name = f"{names.replay_job}_op"

    @dg.op(name=op_name, required_resource_keys=queue_and_state(pipeline))
    def publish_again(context: dg.OpExecutionContext, config: ReplayConfig) -> None:
        note_machine(context)
        own = with_resources(pipeline, context).source
        source = another_queue(own, config.queue) if config.queue else own
        chosen = _selected(pipeline, partitions_of_run(context) or config.partitions, config)
        selection = Selection(chosen, config.name or None, source.describe())
        plan = _plan(pipeline, selection, own=source is own)
        if config.dry_run:
            context.log.info(f"dry run: {plan}; nothing was published")
            return
        context.log.info(plan)
        with closing(source.publisher()) as publisher:
            done = replay(
                selection,
                pipeline,
                publisher,
                ArchiveFinder({pipeline.name: pipeline}).open,
                progress=at_intervals(
                    lambda confirmed: context.log.info(
                        f"the queue has confirmed {counted(confirmed, 'message')}"
                    )
                ),
            )
        _conclude(context, done, selection)

    @dg.job(
        name=names.replay_job,
        partitions_def=names.partitions(),
        executor_def=dg.in_process_executor,
        description="Publishes the messages of stored archives to a queue again, in order. Into "
        "the pipeline's own queue, they are stored a second time.",
        config=dg.RunConfig(ops={op_name: ReplayConfig()}),
    )
    def replay_messages() -> None:
        publish_again()

    return replay_messages


def _selected(pipeline: Pipeline, partitions: Sequence[str], config: ReplayConfig) -> list[str]:
    """The partitions to replay. Nothing is chosen for a person who has chosen nothing."""
    try:
        return select(
            pipeline,
            partitions=partitions,
            since=_moment(config.since),
            until=_moment(config.until),
            pattern=config.name or None,
        )
    except ConfigError as error:
        raise dg.Failure(f"nothing was published: {error}", allow_retries=False) from None


def _plan(pipeline: Pipeline, selection: Selection, *, own: bool) -> str:
    """How many messages go where, in a sentence."""
    receipts = find_receipts(pipeline.layout, selection.partitions).values()
    messages = sum(one.messages * one.originals for one in receipts)
    many = ("at most " if selection.pattern else "") + counted(messages, "message")
    unknown = len(selection.partitions) - len(receipts)
    more = f" and those of {unknown:,} without a receipt" if unknown else ""
    again = ", the pipeline's own queue, which will store them again as new files" if own else ""
    return (
        f"{many} of {counted(len(selection.partitions), 'archive')}{more} go to "
        f"{selection.target}{again}"
    )


def _conclude(context: dg.OpExecutionContext, done: ReplayReport, selection: Selection) -> None:
    context.log.info(
        f"{selection.target} confirmed {counted(done.published, 'message')} of "
        f"{counted(len(selection.partitions), 'archive')}, after {done.before:,} in an "
        "earlier attempt"
    )
    if done.refused:
        raise dg.Failure(
            f"{counted(len(done.refused), 'file')} could not be published, all others were: "
            + "; ".join(done.refused[:10]),
            allow_retries=False,
        )
    if done.only_results:
        raise dg.Failure(
            f"{counted(len(done.only_results), 'archive holds', 'archives hold')} only "
            "results and no messages, so nothing of "
            f"them was published: {', '.join(done.only_results[:10])}",
            allow_retries=False,
        )


def _moment(text: Optional[str]) -> Optional[datetime]:  # noqa: UP045
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise ConfigError(f"{text!r} is not a time", hint="write 2026-11-20T12:00:00") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
