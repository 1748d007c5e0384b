"""One place where the parts of a code location meet.

    defs = build_definitions(Pipeline(name="documents", source=..., state=..., store=...))

The result merges with other definitions: every name in it begins with the pipeline's.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from fuploader_dagster.assets import build_assets
from fuploader_dagster.checks import build_check
from fuploader_dagster.config import Pipeline
from fuploader_dagster.dead_letter_asset import build_dead_letter_asset, build_dead_letter_check
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.partitions import Names
from fuploader_dagster.replay_job import build_replay_job
from fuploader_dagster.resources.object_stores.resource import as_resource
from fuploader_dagster.seal_job import build_seal_job
from fuploader_dagster.sensors.drain_sensor import build_drain_sensor
from fuploader_dagster.sensors.failure_sensor import build_failure_sensor
from fuploader_dagster.sensors.recovery_schedule import build_recovery_schedule
from fuploader_dagster.sensors.retention_schedule import build_retention_schedule
from fuploader_dagster.sensors.scrub_schedule import build_scrub_schedule


def build_definitions(*pipelines: Pipeline, running: bool = True) -> dg.Definitions:
    """Assets, jobs, sensors, schedules and store resources of the pipelines.

    `running`: sensors and schedules are on as soon as Dagster loads them. Raises `ConfigError`
    where two pipelines would share a name or a folder.
    """
    _check_apart(pipelines)
    return dg.Definitions.merge(*(_definitions_of(pipeline, running) for pipeline in pipelines))


def _definitions_of(pipeline: Pipeline, running: bool) -> dg.Definitions:
    pipeline = pipeline.model_copy(update={"store": as_resource(pipeline.store)})
    names = Names.of(pipeline)
    ship = dg.define_asset_job(
        names.ship_job,
        selection=dg.AssetSelection.assets(names.packed_archive, names.uploaded_archive),
        executor_def=dg.in_process_executor,
        description="Packs sealed slots and uploads their archives.",
    )
    resources: dict[str, Any] = {names.store: pipeline.store}
    return dg.Definitions(
        assets=[*build_assets(pipeline), build_dead_letter_asset(pipeline)],
        asset_checks=[build_check(pipeline), build_dead_letter_check(pipeline)],
        jobs=[ship, build_seal_job(pipeline), build_replay_job(pipeline)],
        sensors=[
            build_drain_sensor(pipeline, running=running),
            build_failure_sensor(pipeline, running=running),
        ],
        schedules=[
            build_recovery_schedule(pipeline, running=running),
            build_retention_schedule(pipeline, running=running),
            *build_scrub_schedule(pipeline, running=running),
        ],
        resources=resources,
    )


def _check_apart(pipelines: tuple[Pipeline, ...]) -> None:
    scopes = [Names.of(pipeline).scope for pipeline in pipelines]
    folders = [str(pipeline.layout.root) for pipeline in pipelines]
    for what, seen in (("name", scopes), ("folder", folders)):
        twice = {one for one in seen if seen.count(one) > 1}
        if twice:
            raise ConfigError(
                f"two pipelines have the same {what}: {', '.join(sorted(twice))}",
                hint="give each pipeline a name of its own",
            )
