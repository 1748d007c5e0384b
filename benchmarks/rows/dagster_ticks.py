"""One tick of the drain sensor, with few and with very many partitions in the instance.

The sensor is called as the daemon calls it, on an instance with SQLite on the run's disk, with 64
sealed slots waiting to be registered. The workers are not its matter here (`drain_by: command`):
what could grow with the number of partitions is the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone

import dagster as dg

from benchmarks.contenders import Ours
from benchmarks.documents import documents_of, name_of
from benchmarks.ground import Ground, Runs, note
from benchmarks.results import Row, Spread
from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.definitions import build_resources
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.sensors.drain_sensor import build_drain_sensor
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.slot import SlotOwner

FEW, MANY = 100, 100_000
WAITING = 64
_ADDED_AT_ONCE = 10_000
_WARM_UP_TICKS = 2


def rows(ground: Ground) -> Iterator[Row]:
    many = max(1000, round(MANY * min(1.0, ground.sizes.scale)))
    with_few, with_many = _ticks(ground, FEW), _ticks(ground, many)
    few, many_ms = with_few.spread(float), with_many.spread(float)
    # Quotients of the medians: single ticks of milliseconds scatter more than what is looked for.
    times = few and many_ms and Spread.of([many_ms.median / few.median])
    yield Row(
        row=f"one drain tick with {many:,} partitions in the instance",
        unit="ms",
        ours=many_ms,
        note=note(f"{WAITING} sealed slots wait to be registered", with_many),
    )
    yield Row(
        row=f"one drain tick with {many:,} partitions against {FEW}",
        unit="times",
        ours=times or None,
        judge="ours",
        least=1.5,
        aim=1.1,
        more_is_better=False,
        note=note("quotient of the medians", with_few, with_many),
    )


def _ticks(ground: Ground, partitions: int) -> Runs[float]:
    """Milliseconds of single ticks."""
    with ground.folder() as folder:
        settings = {"drain_by": "command", "seal_messages": 10}
        pipeline = Ours(ground, folder, "never-opened", settings).pipeline
        _seal_some(pipeline)
        (folder / "instance").mkdir()
        instance = dg.DagsterInstance.local_temp(str(folder / "instance"))
        logging.getLogger("dagster").setLevel(logging.WARNING)  # a line on the terminal each tick
        with instance:
            _register(instance, pipeline, _keys(partitions))
            sensor = build_drain_sensor(pipeline, running=False)
            for _ in range(_WARM_UP_TICKS):
                _tick(sensor, instance, pipeline)
            return ground.repeat(
                f"a tick with {partitions:,} partitions",
                lambda: _tick(sensor, instance, pipeline),
                ground.sizes.times(30, 10),
            )


def _tick(sensor: dg.SensorDefinition, instance: dg.DagsterInstance, pipeline: Pipeline) -> float:
    context = dg.build_sensor_context(instance=instance, resources=build_resources(pipeline))
    started = time.monotonic()
    result = sensor(context)
    milliseconds = (time.monotonic() - started) * 1000
    assert isinstance(result, dg.SensorResult)
    assert result.dynamic_partitions_requests, "the tick found no sealed slot"
    return milliseconds


def _seal_some(pipeline: Pipeline) -> None:
    documents, partitions = documents_of(2000), []
    with SlotOwner(pipeline.intake(), 0) as slot:
        for number in range(WAITING):
            slot.add(name_of(number), documents.content(number))
            sealed = slot.seal("request")
            assert sealed is not None
            partitions.append(sealed.seal.partition)
    state = pipeline.state.store(pipeline=pipeline.name, node=pipeline.node)
    state.open()
    state.add_sealed(partitions)
    state.close()


def _keys(count: int) -> Sequence[str]:
    """Keys of slots that were sealed long ago."""
    begin = datetime(2026, 1, 1, tzinfo=timezone.utc)
    return [
        str(PartitionKey(begin + timedelta(seconds=number), "local", 0, number + 1))
        for number in range(count)
    ]


def _register(instance: dg.DagsterInstance, pipeline: Pipeline, keys: Sequence[str]) -> None:
    for start in range(0, len(keys), _ADDED_AT_ONCE):
        instance.add_dynamic_partitions(
            Names.of(pipeline).partition_set, keys[start : start + _ADDED_AT_ONCE]
        )
