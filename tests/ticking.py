"""A drain sensor that tests tick by hand, as the daemon would."""

from __future__ import annotations

from typing import Any

import dagster as dg

from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.definitions import build_resources
from fuploader_dagster.sensors.drain_sensor import (
    IN_TROUBLE,
    DrainTrouble,
    build_drain_sensor,
)
from fuploader_dagster.settings.pipeline import Pipeline


class Ticking:
    """A pipeline's drain sensor in an instance of its own, ticked by hand."""

    def __init__(self, settings: Pipeline) -> None:
        self.settings = settings
        self.names = Names.of(settings)
        self.instance = dg.DagsterInstance.ephemeral()
        self.sensor = build_drain_sensor(settings, running=True)
        self.cursor: str | None = None

    def tick(self) -> dg.SensorResult:
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources=build_resources(self.settings)
        )
        result = self.sensor(context)
        assert isinstance(result, dg.SensorResult)
        said = result.skip_reason.skip_message if result.skip_reason else None
        if said and said.startswith(IN_TROUBLE):  # the tick before failed with it
            raise DrainTrouble(said.removeprefix(IN_TROUBLE))
        self.cursor = result.cursor
        return result

    def accept(self, result: dg.SensorResult) -> None:
        """What the daemon does with an answer."""
        for request in result.dynamic_partitions_requests or []:
            assert isinstance(request, dg.AddDynamicPartitionsRequest)
            assert request.partitions_def_name is not None
            self.instance.add_dynamic_partitions(
                request.partitions_def_name, list(request.partition_keys)
            )

    def start_run(self) -> dg.DagsterRun:
        """A run of this sensor that has begun and does not end."""
        return self.instance.add_run(
            dg.DagsterRun(
                job_name=self.names.ship_job,
                status=dg.DagsterRunStatus.STARTED,
                tags={"dagster/sensor_name": self.sensor.name},
            )
        )

    def store(self) -> Any:
        return self.settings.state.store(pipeline=self.settings.name, node=self.settings.node)


def new_keys(result: dg.SensorResult) -> list[str]:
    return [
        key
        for request in result.dynamic_partitions_requests or []
        for key in request.partition_keys
    ]
