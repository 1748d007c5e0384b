"""The failure sensor: says in the log, as an error, that a run gave slots up to recovery.

A run fails only after its retries. The slots' data is kept and will be asked for again; the log
says what failed, why, and where to look. Who is to be called is called by the alert sensor. What
the run stored and could not report any more is reported for it.
"""

import dagster as dg

from fuploader_dagster.assets.partitions import Names, keys_of_run
from fuploader_dagster.assets.unreported import report_unreported
from fuploader_dagster.delivery.failures import all_failures
from fuploader_dagster.delivery.mend import all_mended
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.safe_text import in_a_line

LISTED_FAILURES = 20


def build_failure_sensor(pipeline: Pipeline, *, running: bool = True) -> dg.SensorDefinition:
    """The failure sensor of a pipeline."""
    names = Names.of(pipeline)

    @dg.run_failure_sensor(
        name=f"{names.scope}_failures",
        default_status=(
            dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED
        ),
        description="Reports runs that failed in the log.",
    )
    def report(context: dg.RunFailureSensorContext) -> list[dg.RunRequest] | None:
        run = context.dagster_run
        if not is_of(run, names):
            # None of this pipeline's. No SkipReason: with one of its own failures in the same tick
            # Dagster refuses both, and would evaluate them again and again.
            return []
        registered = context.instance.get_dynamic_partitions(names.partition_set)
        report_unreported(context.instance, pipeline, keys_of_run(run.tags, registered))
        message = context.failure_event.message or ""
        context.log.error(failure_text(pipeline, run.run_id, message))
        return None

    return report


def is_of(run: dg.DagsterRun, names: Names) -> bool:
    """Whether a run packs or uploads slots of the pipeline."""
    assets = {names.packed_archive, names.uploaded_archive}
    return run.job_name in (names.ship_job, names.repack_job) or bool(
        assets & (run.asset_selection or set())
    )


def failure_text(pipeline: Pipeline, run_id: str, reason: str) -> str:
    """What a person should know of a failed run."""
    failures = list(all_failures(pipeline.layout))
    damaged = [one for one in all_mended(pipeline.layout) if not one.told]
    lost = "".join(f" {one.sentence(pipeline.layout)}." for one in damaged[:LISTED_FAILURES])
    return in_a_line(
        f"{pipeline.name}: run {run_id} failed: {reason} {len(failures)} slots wait for "
        f"their next attempt; their data is kept. Correct what their errors say, then "
        f"materialise their partitions, or wait for the recovery schedule.{lost}"
    )
