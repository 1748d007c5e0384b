"""Parts: what makes each part of a code location, so that a project can have its own.

    build_definitions(documents, parts=Parts(drain_sensor=my_sensor, replay_job=None))

Each is called with the pipeline (sensors and schedules also with `running`), and gives what the one
in its place gives; None leaves the part out. Names that others rely on are in `partitions.Names`.
What is left out is missed: without the drain sensor nothing drains or registers, without the
recovery schedule nothing that failed is asked for again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import dagster as dg

from fuploader_dagster.assets.checks import build_check, build_reachable_check
from fuploader_dagster.assets.dead_letters import build_dead_letter_asset, build_dead_letter_check
from fuploader_dagster.assets.pipeline_assets import build_assets
from fuploader_dagster.assets.replay_job import build_replay_job
from fuploader_dagster.assets.seal_job import build_seal_job
from fuploader_dagster.sensors.alert_sensor import build_alert_sensor
from fuploader_dagster.sensors.automation_sensor import build_automation_sensor
from fuploader_dagster.sensors.drain_sensor import build_drain_sensor
from fuploader_dagster.sensors.failure_sensor import build_failure_sensor
from fuploader_dagster.sensors.recovery_schedule import build_recovery_schedule
from fuploader_dagster.sensors.retention_schedule import build_retention_schedule
from fuploader_dagster.sensors.scrub_schedule import build_scrub_schedule
from fuploader_dagster.settings.pipeline import Pipeline


class Build(Protocol):
    """Makes a part of a pipeline."""

    def __call__(self, pipeline: Pipeline, /) -> Any: ...


class BuildRunning(Protocol):
    """Makes a sensor or schedule, or a list; `running`: on without anybody switching it on."""

    def __call__(self, pipeline: Pipeline, /, *, running: bool) -> Any: ...


@dataclass(frozen=True)
class Parts:
    """The parts of a pipeline's definitions; those of this package unless said otherwise."""

    assets: Build = build_assets
    dead_letter_asset: Build | None = build_dead_letter_asset
    check: Build | None = build_check
    reachable_check: Build | None = build_reachable_check
    dead_letter_check: Build | None = build_dead_letter_check
    seal_job: Build | None = build_seal_job
    replay_job: Build | None = build_replay_job
    drain_sensor: BuildRunning | None = build_drain_sensor
    automation_sensor: BuildRunning | None = build_automation_sensor
    failure_sensor: BuildRunning | None = build_failure_sensor
    alert_sensor: BuildRunning | None = build_alert_sensor
    recovery_schedule: BuildRunning | None = build_recovery_schedule
    retention_schedule: BuildRunning | None = build_retention_schedule
    scrub_schedule: BuildRunning | None = build_scrub_schedule

    def all_assets(self, pipeline: Pipeline) -> Sequence[Any]:
        return list(_made(pipeline, self.assets, self.dead_letter_asset))

    def checks(self, pipeline: Pipeline) -> Sequence[dg.AssetChecksDefinition]:
        return list(_made(pipeline, self.check, self.reachable_check, self.dead_letter_check))

    def jobs(self, pipeline: Pipeline) -> Sequence[dg.JobDefinition]:
        return list(_made(pipeline, self.seal_job, self.replay_job))

    def sensors(self, pipeline: Pipeline, *, running: bool) -> Sequence[dg.SensorDefinition]:
        builds = (
            self.drain_sensor,
            self.automation_sensor,
            self.failure_sensor,
            self.alert_sensor,
        )
        return list(_made(pipeline, *builds, running=running))

    def schedules(self, pipeline: Pipeline, *, running: bool) -> Sequence[dg.ScheduleDefinition]:
        builds = (self.recovery_schedule, self.retention_schedule, self.scrub_schedule)
        return list(_made(pipeline, *builds, running=running))


def _made(pipeline: Pipeline, *builds: Any, **arguments: bool) -> Iterator[Any]:
    """What the builds make: each nothing, one, or a list of several."""
    for build in builds:
        made = build(pipeline, **arguments) if build is not None else None
        if isinstance(made, list):  # not any sequence: an AssetSpec is a tuple
            yield from made
        elif made is not None:
            yield made
