"""The Dagster objects of a pipeline: a function for each kind, and all of them together.

    defs = build_definitions(Pipeline(name="documents", source=..., state=..., store=...))

The result merges with other definitions: every name in it begins with the pipeline's. A project
that wants to leave one out, or to have its own, composes the other functions as `build_definitions`
does (docs/adding-a-backend.md). Names that the objects rely on are in `Names.of(pipeline)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster_shared.libraries import DagsterLibraryRegistry

import fuploader_dagster
from fuploader_dagster.assets.archive_reader import build_archive_reader
from fuploader_dagster.assets.checks import build_check, build_judged_checks, build_reachable_check
from fuploader_dagster.assets.dead_letter_jobs import (
    build_discard_job,
    build_export_letters_job,
    build_requeue_job,
)
from fuploader_dagster.assets.dead_letters import build_dead_letter_asset, build_dead_letter_check
from fuploader_dagster.assets.find_job import build_find_job
from fuploader_dagster.assets.overrides import build_backend_resource
from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.assets.pause_jobs import build_pause_job, build_resume_job
from fuploader_dagster.assets.pipeline_assets import build_archive_assets
from fuploader_dagster.assets.repack_job import build_repack_job
from fuploader_dagster.assets.replay_job import build_replay_job
from fuploader_dagster.assets.seal_job import build_seal_job
from fuploader_dagster.assets.ship_job import build_ship_job
from fuploader_dagster.assets.sink_assets import build_sink_assets
from fuploader_dagster.dagster_internals.code_server import watch_code_server
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.resources.object_stores.resource import as_resource
from fuploader_dagster.sensors.alert_sensor import build_alert_sensor
from fuploader_dagster.sensors.automation_sensor import build_automation_sensor
from fuploader_dagster.sensors.drain_sensor import build_drain_sensor
from fuploader_dagster.sensors.failure_sensor import build_failure_sensor
from fuploader_dagster.sensors.recovery_schedule import build_recovery_schedule
from fuploader_dagster.sensors.retention_schedule import build_retention_schedule
from fuploader_dagster.sensors.scrub_schedule import build_scrub_job, build_scrub_schedule
from fuploader_dagster.sensors.watch_schedule import build_watch_schedule
from fuploader_dagster.settings.apart import refuse_shared_folders
from fuploader_dagster.settings.built import note_built
from fuploader_dagster.settings.pipeline import Pipeline

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import (
        UnresolvedAssetJobDefinition,
    )


# For the UI, which shows the libraries of a code location. Our versions are not those of Dagster's
# own packages.
DagsterLibraryRegistry.register(
    "fuploader_dagster", fuploader_dagster.__version__, is_dagster_package=False
)


def build_definitions(*pipelines: Pipeline, running: bool = True) -> dg.Definitions:
    """Everything that the pipelines have in Dagster.

    `running`: sensors and schedules are on as soon as Dagster loads them. Raises `ConfigError`
    if two pipelines would share a name or a folder.
    """
    _check_apart(pipelines)
    refuse_shared_folders(pipelines)
    watch_code_server()
    return dg.Definitions.merge(
        *(
            dg.Definitions(
                assets=build_assets(pipeline),
                asset_checks=build_asset_checks(pipeline),
                jobs=build_jobs(pipeline),
                sensors=build_sensors(pipeline, running=running),
                schedules=build_schedules(pipeline, running=running),
                resources=build_resources(pipeline),
            )
            for pipeline in pipelines
        )
    )


def build_assets(pipeline: Pipeline) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """`queue`, `sealed_slot`, `packed_archive`, `uploaded_archive` and `dead_letters`; where the
    pipeline has a processor, also `processed_slot`; and `sink_NAME` for each sink."""
    _note(pipeline)
    return [
        *build_archive_assets(pipeline),
        *build_sink_assets(pipeline),
        build_dead_letter_asset(pipeline),
    ]


def build_asset_checks(pipeline: Pipeline) -> list[dg.AssetChecksDefinition]:
    """`archive_matches_seal`, `store_reachable`, `dead_letters_below_limit`, and of queue and slots
    `being_drained`, `keeping_up`, `disk_room` and `nothing_lost`.

    The ship job needs `store_reachable`: it names it, to leave it out of its runs. The watch
    schedule reports all but the first.
    """
    builds = (build_check, build_reachable_check, build_dead_letter_check)
    return [*(build(pipeline) for build in builds), *build_judged_checks(pipeline)]


def build_jobs(pipeline: Pipeline) -> list[dg.JobDefinition | UnresolvedAssetJobDefinition]:
    """Ship, seal now, pause, resume, find, replay, repack, and of dead letters requeue, export and
    discard; and scrub, unless `scrub_archives` is 0.

    Sensors and schedules name the ship job, and the scrub schedule the scrub job.
    """
    _note(pipeline)
    return [
        build_ship_job(pipeline),
        build_seal_job(pipeline),
        build_pause_job(pipeline),
        build_resume_job(pipeline),
        build_find_job(pipeline),
        build_replay_job(pipeline),
        build_repack_job(pipeline),
        build_requeue_job(pipeline),
        build_export_letters_job(pipeline),
        build_discard_job(pipeline),
        *([build_scrub_job(pipeline)] if pipeline.scrub_archives else []),
    ]


def build_sensors(pipeline: Pipeline, *, running: bool = True) -> list[dg.SensorDefinition]:
    """Drain and failures; with `runs_by: automation` that one, with `alert_webhook` the alerts.

    Without the drain sensor nothing is drained or registered.
    """
    _note(pipeline)
    sensors = [
        build_drain_sensor(pipeline, running=running),
        build_automation_sensor(pipeline, running=running),
        build_failure_sensor(pipeline, running=running),
        build_alert_sensor(pipeline, running=running),
    ]
    return [sensor for sensor in sensors if sensor is not None]


def build_schedules(pipeline: Pipeline, *, running: bool = True) -> list[dg.ScheduleDefinition]:
    """Recovery, retention and watch; and scrub, unless `scrub_archives` is 0.

    Without the recovery schedule nothing that failed is asked for again. Without the watch nothing
    is reported of the queue.
    """
    schedules = [
        build_watch_schedule(pipeline, running=running),
        build_recovery_schedule(pipeline, running=running),
        build_retention_schedule(pipeline, running=running),
        build_scrub_schedule(pipeline, running=running),
    ]
    return [schedule for schedule in schedules if schedule is not None]


def build_resources(pipeline: Pipeline) -> dict[str, Any]:
    """`documents_store`, `documents_archives` (reader and IO manager of the archives),
    `documents_queue` and `documents_state`: assets, jobs, sensors and schedules ask for them."""
    _note(pipeline)
    names = Names.of(pipeline)
    return {
        names.store: as_resource(pipeline.store),
        names.archives_resource: build_archive_reader(pipeline),
        names.queue_resource: build_backend_resource(pipeline.source),
        names.state_resource: build_backend_resource(pipeline.state),
    }


def _note(pipeline: Pipeline) -> None:
    """So that commands find the pipeline by the definitions it is in."""
    names = Names.of(pipeline)
    assets = (names.queue.to_user_string(), names.uploaded_archive.to_user_string())
    note_built(pipeline, {names.store, *names.jobs, *names.instigators, *assets})


def _check_apart(pipelines: tuple[Pipeline, ...]) -> None:
    scopes = [Names.of(pipeline).scope for pipeline in pipelines]
    for one in sorted({each for each in scopes if scopes.count(each) > 1}):
        whose = [
            f"{pipeline.name} on node {pipeline.node!r}"
            for pipeline, scope in zip(pipelines, scopes, strict=True)
            if scope == one
        ]
        raise ConfigError(
            f"two pipelines have the same name in Dagster, {one}: {', '.join(whose)}",
            hint="names begin with the pipeline's, '_' and the node's id; give each pipeline a "
            "name and each node an id of its own",
        )
