"""Sealing on request, as a job that a person launches in the UI."""

# No `from __future__ import annotations` here: Dagster reads the annotation of `context`.

import dagster as dg

from fuploader_dagster.assets.partitions import PRIORITY_TAGS, Names
from fuploader_dagster.assets.run_machine import note_machine
from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.delivery.recovery import seal_on_request
from fuploader_dagster.settings.pipeline import Pipeline


def build_seal_job(pipeline: Pipeline) -> dg.JobDefinition:
    """A job that seals every active slot that holds messages."""
    names = Names.of(pipeline)

    @dg.op(name=f"{names.seal_job}_op")
    def request(context: dg.OpExecutionContext) -> None:
        note_machine(context)
        sealed = seal_on_request(pipeline)
        context.log.info(
            f"sealed {counted(len(sealed), 'slot')} that no worker writes. Running workers "
            "seal theirs within "
            f"a second, and the drain sensor registers all of them at its next tick"
        )

    @dg.job(
        name=names.seal_job,
        executor_def=dg.in_process_executor,
        tags=PRIORITY_TAGS,
        description="Seals all active slots that hold messages now, however full they are.",
    )
    def seal_now() -> None:
        request()

    return seal_now
