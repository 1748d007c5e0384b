"""The automation sensor: with `runs_by: automation` Dagster's conditions ask for the runs.

The assets' conditions are `on_missing`: a partition whose slot is registered and that has no
archive yet is asked for once. Several of them become one backfill, so they share runs as they do
when the drain sensor asks. What failed is left to the recovery schedule, as always.

The pipeline has a sensor of its own because Dagster's default one is off until somebody switches it
on, and evaluates everything else as well.
"""

from __future__ import annotations

import dagster as dg

from fuploader_dagster.assets.partitions import PIPELINE_TAG, Names, made_assets
from fuploader_dagster.sensors.default_status import sensor_status
from fuploader_dagster.settings.pipeline import Pipeline

MINIMUM_INTERVAL_SECONDS = 10
"""An evaluation reads the events of three assets; backfills start every 30 s at most."""


def build_automation_sensor(
    pipeline: Pipeline, *, running: bool = True
) -> dg.SensorDefinition | None:
    """The automation sensor of a pipeline; None if the drain sensor asks for its runs."""
    if pipeline.runs_by != "automation":
        return None
    names = Names.of(pipeline)
    return dg.AutomationConditionSensorDefinition(
        name=f"{names.scope}_automation",
        target=made_assets(pipeline),
        minimum_interval_seconds=MINIMUM_INTERVAL_SECONDS,
        run_tags={PIPELINE_TAG: names.scope},
        default_status=sensor_status(running=running),
        description="Asks for runs where the assets' automation conditions say so.",
    )
