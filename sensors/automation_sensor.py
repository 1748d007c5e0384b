"""The automation sensor: with `runs_by: automation` it is Dagster's conditions that ask for runs.

The assets' conditions are `on_missing`: a partition whose sealed slot was registered and that has
no archive yet is asked for once. Several of them become one backfill, so that they share runs as
they do when the drain sensor asks. What failed is the recovery schedule's, as ever.

It is a sensor of the pipeline's own, because Dagster's default one is off until somebody switches
it on, and evaluates everything else as well.
"""

from __future__ import annotations

import dagster as dg

from fuploader_dagster.assets.partitions import PIPELINE_TAG, Names
from fuploader_dagster.settings.pipeline import Pipeline

MINIMUM_INTERVAL_SECONDS = 10
"""An evaluation reads the events of three assets; backfills start every 30 s at best."""


def build_automation_sensor(
    pipeline: Pipeline, *, running: bool = True
) -> dg.SensorDefinition | None:
    """The automation sensor of a pipeline; None if the drain sensor asks for its runs."""
    if pipeline.runs_by != "automation":
        return None
    names = Names.of(pipeline)
    status = dg.DefaultSensorStatus
    return dg.AutomationConditionSensorDefinition(
        name=f"{names.scope}_automation",
        target=dg.AssetSelection.assets(names.packed_archive, names.uploaded_archive),
        minimum_interval_seconds=MINIMUM_INTERVAL_SECONDS,
        run_tags={PIPELINE_TAG: names.scope},
        default_status=status.RUNNING if running else status.STOPPED,
        description="Evaluates the automation conditions of the archives.",
    )
