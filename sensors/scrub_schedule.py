"""The scrub: reads stored archives back in part, picked at random, as long as they exist.

Each result is an observation of the archive's partition. Anything wrong fails the run and names the
archive's address: nothing else would find it before somebody needs the archive.
"""

# No `from __future__ import annotations` here: Dagster reads the annotation of `context`.

import random
from typing import Any

import dagster as dg

from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.assets.run_machine import note_machine
from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.scrub import Finding, examine
from fuploader_dagster.sensors.default_status import schedule_status
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import receipts_between

LISTED_PROBLEMS = 10


def build_scrub_schedule(
    pipeline: Pipeline, *, running: bool = True
) -> dg.ScheduleDefinition | None:
    """The schedule of a pipeline's scrub job; None if the scrub is switched off."""
    if not pipeline.scrub_archives:
        return None
    names = Names.of(pipeline)
    return dg.ScheduleDefinition(
        name=f"{names.scope}_scrub_schedule",
        job_name=names.scrub_job,
        cron_schedule=pipeline.scrub_cron,
        execution_timezone="UTC",
        default_status=schedule_status(running=running),
        description=f"Checks {pipeline.scrub_archives} stored archives by reading parts of them.",
    )


def build_scrub_job(pipeline: Pipeline) -> dg.JobDefinition:
    """A job that checks some of the stored archives."""
    names = Names.of(pipeline)

    @dg.op(name=f"{names.scrub_job}_op", retry_policy=dg.RetryPolicy(max_retries=2, delay=60))
    def read_back(context: dg.OpExecutionContext) -> None:
        note_machine(context)
        rng = random.Random()  # noqa: S311 - a sample
        stored = list(receipts_between(pipeline.layout).values())
        finder = ArchiveFinder({pipeline.name: pipeline})
        findings = []
        for receipt in rng.sample(stored, min(pipeline.scrub_archives, len(stored))):
            found = examine(
                receipt,
                lambda one: finder.of_receipt(one, pipeline).source,
                rng,
                members=pipeline.scrub_members,
            )
            context.log_event(
                dg.AssetObservation(
                    names.uploaded_archive, partition=found.partition, metadata=_metadata(found)
                )
            )
            findings.append(found)
        bad = [one for one in findings if one.problems]
        context.log.info(
            f"checked {len(findings):,} of {counted(len(stored), 'archive')}: "
            f"{counted(sum(one.members_read for one in findings), 'member')}, "
            f"{sum(one.bytes_read for one in findings):,} bytes in "
            f"{sum(one.requests for one in findings):,} requests; {len(bad)} are damaged"
        )
        if bad:
            listed = "; ".join(f"{one.address}: {one.problems[0]}" for one in bad[:LISTED_PROBLEMS])
            raise dg.Failure(
                f"{counted(len(bad), 'stored archive is', 'stored archives are')} damaged: "
                f"{listed}",
                allow_retries=False,
            )

    @dg.job(
        name=names.scrub_job,
        executor_def=dg.in_process_executor,
        description="Checks stored archives, picked at random, by reading parts of them.",
    )
    def scrub() -> None:
        read_back()

    return scrub


def _metadata(found: Finding) -> dict[str, Any]:
    return {
        "scrub": "; ".join(found.problems) or "intact",
        "intact": not found.problems,
        "members_read": found.members_read,
        "bytes_read": found.bytes_read,
        "requests": found.requests,
        **({"note": found.note} if found.note else {}),
    }
