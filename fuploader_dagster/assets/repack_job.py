"""Re-packing as a job: a person picks stored partitions in the UI, their archives are packed again.

A backfill of several partitions is a run for each of them. One run takes many with `partitions` in
its config, which may also name those that retention has folded away.
"""

# No `from __future__ import annotations` here: Dagster reads the annotations of `context` and
# `config`.

import dagster as dg
from pydantic import Field

from fuploader_dagster.assets import outcomes
from fuploader_dagster.assets.overrides import object_store_of
from fuploader_dagster.assets.partitions import SHIP_TAG, Names, partitions_of_run
from fuploader_dagster.assets.run_machine import note_machine
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.repack import repack_partitions
from fuploader_dagster.settings.pipeline import Pipeline


class RepackConfig(dg.Config):
    """What a person can say in the launchpad."""

    partitions: list[str] = Field(
        default=[], description="Partitions to re-pack, for a run that is launched without any."
    )


def build_repack_job(pipeline: Pipeline) -> dg.JobDefinition:
    """The re-packing job of a pipeline."""
    names = Names.of(pipeline)

    @dg.op(
        name=f"{names.repack_job}_op",
        required_resource_keys={names.store},
        retry_policy=outcomes.retry_policy(pipeline),
    )
    def pack_again(context: dg.OpExecutionContext, config: RepackConfig) -> None:
        note_machine(context)
        partitions = partitions_of_run(context) or config.partitions
        if not partitions:
            raise dg.Failure(
                "No partitions to re-pack were given: launch the job with a partition, or list "
                "them in its config (partitions).",
                allow_retries=False,
            )
        with outcomes.ended_by_interrupts("partitions that were not re-packed keep their archives"):
            tried = repack_partitions(
                partitions,
                pipeline,
                object_store_of(context.resources, pipeline).open(),
                ArchiveFinder({pipeline.name: pipeline}).open,
                outcomes.log_progress(context.log),
                tell=context.log.warning,
            )
            done, failed = outcomes.sorted_outcomes(context.log, tried)
        for event in outcomes.materialized(names.archives, done, names):
            context.log_event(event)
        if failed:
            raise outcomes.failure(failed, final=all(one.permanent for one in failed))

    @dg.job(
        name=names.repack_job,
        partitions_def=names.partitions(),
        executor_def=dg.in_process_executor,
        tags={SHIP_TAG: names.scope},
        description="Fetches stored archives back, packs them as the settings say today and "
        "uploads them under today's key. The old objects stay.",
    )
    def repack() -> None:
        pack_again()

    return repack
