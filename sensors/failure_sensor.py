"""The failure sensor: tells a person when a run gave slots up to the recovery schedule.

A run fails only after its retries. The slots' data is kept and will be asked for again; what a
person gets is what failed, why, and where to look: in the log as an error, and as a POST of JSON to
`failure_webhook` where one is set.
"""

from typing import Any

import dagster as dg

from fuploader_dagster.config import Pipeline
from fuploader_dagster.failures import all_failures
from fuploader_dagster.mending import all_mended
from fuploader_dagster.partitions import Names

TIMEOUT_SECONDS = 10.0
LISTED_FAILURES = 20


def build_failure_sensor(pipeline: Pipeline, *, running: bool) -> dg.SensorDefinition:
    """The failure sensor of a pipeline. A webhook that fails makes its tick fail, nothing else."""
    names = Names.of(pipeline)
    assets = {names.packed_archive, names.uploaded_archive}

    @dg.run_failure_sensor(
        name=f"{names.scope}_failures",
        default_status=(
            dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED
        ),
        description="Reports runs that failed, in the log and to failure_webhook.",
    )
    def report(context: dg.RunFailureSensorContext) -> list[dg.RunRequest] | None:
        run = context.dagster_run
        if run.job_name != names.ship_job and not assets & (run.asset_selection or set()):
            # None of this pipeline's. No SkipReason: with one of its own failures in the same tick
            # Dagster refuses both, and would evaluate them again and again.
            return []
        message = failure_message(pipeline, run.run_id, context.failure_event.message or "")
        context.log.error(message["text"])
        if pipeline.failure_webhook is not None:
            import requests  # noqa: PLC0415  each run loads this module, hardly any posts

            url = pipeline.failure_webhook.get_secret_value()
            requests.post(url, json=message, timeout=TIMEOUT_SECONDS).raise_for_status()
        return None

    return report


def failure_message(pipeline: Pipeline, run_id: str, reason: str) -> dict[str, Any]:
    """What a webhook gets. `text` is for people (and what chat tools show)."""
    failures = list(all_failures(pipeline.layout))
    damaged = [one for one in all_mended(pipeline.layout) if not one.told]
    lost = "".join(f" {one.sentence(pipeline.layout)}." for one in damaged[:LISTED_FAILURES])
    return {
        "text": (
            f"{pipeline.name}: run {run_id} failed: {reason} {len(failures)} slots wait for "
            f"their next attempt; their data is kept. Correct what their errors say, then "
            f"materialise their partitions, or wait for the recovery schedule.{lost}"
        ),
        "pipeline": pipeline.name,
        "node": pipeline.node,
        "run_id": run_id,
        "slots_waiting": len(failures),
        "failures": [
            {
                "partition": one.partition,
                "stage": one.stage,
                "attempts": one.attempts,
                "error": one.error,
            }
            for one in failures[:LISTED_FAILURES]
        ],
        "damaged": [
            {
                "partition": one.partition,
                "messages": one.sealed_messages,
                "stored_again": one.stored,
                "stored_as": one.stored_as,
                "set_aside": one.set_aside,
            }
            for one in damaged[:LISTED_FAILURES]
        ],
    }
