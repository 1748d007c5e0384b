"""The failure sensor: logs an error for a run that failed and left slots to recovery.

A run fails only after its retries. The slots' data is kept and will be asked for again; the log
line says what failed, why, and what to do. The alert sensor calls the person. What the run stored
but could no longer report is reported for it.
"""

import dagster as dg

from fuploader_dagster.assets.partitions import Names, keys_of_run
from fuploader_dagster.assets.unreported import report_unreported
from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.delivery.failures import all_failures
from fuploader_dagster.delivery.mended import all_mended
from fuploader_dagster.delivery.sink_notes import all_sinks
from fuploader_dagster.health.alert_look import WHAT_TO_DO
from fuploader_dagster.sensors.default_status import sensor_status
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.safe_text import in_a_line

LISTED_FAILURES = 20


def build_failure_sensor(pipeline: Pipeline, *, running: bool = True) -> dg.SensorDefinition:
    """The failure sensor of a pipeline."""
    names = Names.of(pipeline)

    @dg.run_failure_sensor(
        name=f"{names.scope}_failures",
        default_status=sensor_status(running=running),
        description="Logs an error for each failed run, and reports what it had stored.",
    )
    def report(context: dg.RunFailureSensorContext) -> list[dg.RunRequest] | None:
        run = context.dagster_run
        if not is_of(run, names):
            # Another pipeline's. No SkipReason: together with one of this pipeline's failures in
            # the same tick Dagster refuses both, and would evaluate them again and again.
            return []
        registered = context.instance.get_dynamic_partitions(names.partition_set)
        report_unreported(context.instance, pipeline, keys_of_run(run.tags, registered))
        message = context.failure_event.message or ""
        context.log.error(failure_text(pipeline, run.run_id, message))
        return None

    return report


def is_of(run: dg.DagsterRun, names: Names) -> bool:
    """Whether a run processes, packs or uploads slots of the pipeline."""
    selected = run.asset_selection or set()
    ours = run.job_name in (names.ship_job, names.repack_job)
    return ours or any(map(names.is_made_by_runs, selected))


def failure_text(pipeline: Pipeline, run_id: str, reason: str) -> str:
    """What a person should know about a failed run."""
    failures = list(all_failures(pipeline.layout))
    damaged = [one for one in all_mended(pipeline.layout) if not one.told]
    lost = "".join(f" {one.sentence(pipeline.layout)}." for one in damaged[:LISTED_FAILURES])
    owed = [(notes.sink, len(notes.owed())) for notes in all_sinks(pipeline)]
    rows = "".join(
        f" Sink {sink} is owed rows of {counted(count, 'slot')}." for sink, count in owed if count
    )
    return in_a_line(
        f"{pipeline.name}: run {run_id} failed: {reason} "
        f"{counted(len(failures), 'slot waits', 'slots wait')} for the "
        f"next attempt; {WHAT_TO_DO}.{rows}{lost}"
    )
