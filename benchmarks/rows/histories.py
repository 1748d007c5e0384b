"""Dagster's history in Postgres beside that in SQLite: a tick, a run, and the retention schedule.

Both instances have 50,000 partitions, and are measured in turns, in this process: a tick of the
drain sensor with 64 sealed slots that wait to be registered, the ship job of 64 slots, and an
evaluation of the retention schedule, which folds 5,000 keys away. Seconds have what the database
costs; CPU is that of this process alone.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import yaml
from dagster._core.events import DagsterEvent, StepMaterializationData
from dagster._core.events.log import EventLogEntry

from benchmarks.documents import documents_of, name_of
from benchmarks.ground import Ground, Runs, note, row_of_rounds
from benchmarks.results import Row
from fuploader_dagster.assets.partitions import RANGE_END_TAG, RANGE_START_TAG, Names
from fuploader_dagster.definitions import build_definitions, build_resources
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.sensors.drain_sensor import build_drain_sensor
from fuploader_dagster.sensors.retention_schedule import (
    KEYS_PER_EVALUATION,
    build_retention_schedule,
)
from fuploader_dagster.settings.loading import load_pipeline
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import Receipt
from fuploader_dagster.slots.slot import SlotOwner

PARTITIONS, SLOTS = 50_000, 64
TICKS = 15
"""In a round; their median counts."""
_ADDED_AT_ONCE = 5_000
_QUIET = {"loggers": {"console": {"config": {"log_level": "WARNING"}}}}
_NEVER_DAYS = 36_500


@dataclass(frozen=True)
class Measured:
    tick_ms: float
    run_seconds: float
    run_cpu_seconds: float
    retention_seconds: float


def rows(ground: Ground) -> Iterator[Row]:
    partitions = max(10_000, round(PARTITIONS * min(1.0, ground.sizes.scale)))
    runs = _measured(ground, partitions)
    said = f"{partitions:,} partitions in the instance; bare is SqliteHistory"
    figures: Sequence[tuple[str, str, Callable[[Measured], float], float]] = (
        (f"a drain tick, {SLOTS} sealed slots wait", "ms", lambda one: one.tick_ms, 2.0),
        (f"CPU of a run of {SLOTS} slots", "s", lambda one: one.run_cpu_seconds, 1.3),
        (f"a run of {SLOTS} slots", "s", lambda one: one.run_seconds, 2.0),
        (
            f"retention of {KEYS_PER_EVALUATION:,} keys",
            "s",
            lambda one: one.retention_seconds,
            3.0,
        ),
    )
    for what, unit, figure, most in figures:
        yield row_of_rounds(
            Row(
                row=f"history in Postgres: {what}",
                unit=unit,
                least=most,
                more_is_better=False,
            ),
            runs,
            "sqlite",
            figure,
            said,
        )
    theirs = runs.spread(lambda one: one["dagster"].run_seconds / one["ours"].run_seconds)
    yield Row(
        row=f"history in Postgres: a run of {SLOTS} slots with Dagster's own storage",
        unit="times that with PostgresHistory",
        ours=theirs,
        judge="ours",
        note=note("higher is worse for Dagster's own", runs),
    )


def _measured(ground: Ground, partitions: int) -> Runs[dict[str, Measured]]:
    with ExitStack() as stack:
        sides = {}
        for name in ("ours", "sqlite", "dagster"):
            side = Side(stack.enter_context(ground.folder()), name, ground)
            stack.enter_context(side.instance)
            side.fill(partitions)
            side.measure()  # the first run imports, and knows no tables
            sides[name] = side
        measures = {name: side.measure for name, side in sides.items()}
        return ground.rounds(
            "tick, run and retention with each history", measures, ground.sizes.times(5, 3)
        )


@dataclass
class Side:
    """A pipeline with an instance of its own."""

    folder: Path
    name: str
    ground: Ground
    instance: dg.DagsterInstance = field(init=False)
    pipeline: Pipeline = field(init=False)
    _made: int = 0

    def __post_init__(self) -> None:
        settings = {"storage": self._storage(), "telemetry": {"enabled": False}}
        (self.folder / "dagster.yaml").write_text(yaml.safe_dump(settings))
        self.instance = dg.DagsterInstance.from_config(str(self.folder))
        self.pipeline = load_pipeline(
            {
                "name": f"bench_{self.name}",
                "storage_root": str(self.folder / "data"),
                "source": {"kind": "embedded", "path": str(self.folder / "queue")},
                "state": {"kind": "sqlite", "path": str(self.folder / "state.sqlite")},
                "store": {"kind": "local", "path": str(self.folder / "objects")},
                "drain_by": "command",
                "retention_days": _NEVER_DAYS,
                "run_history_days": _NEVER_DAYS,
                "retention_partitions": 1_000,
            },
            where="benchmark",
        )
        logging.getLogger("dagster").setLevel(logging.WARNING)

    @property
    def names(self) -> Names:
        return Names.of(self.pipeline)

    def fill(self, partitions: int) -> None:
        for _ in range(0, partitions, _ADDED_AT_ONCE):
            self._add(_ADDED_AT_ONCE)

    def measure(self) -> Measured:
        keys = self._seal()
        sensor = build_drain_sensor(self.pipeline, running=False)
        tick_ms = statistics.median(self._tick(sensor) for _ in range(TICKS))
        state = self.pipeline.state.store(pipeline=self.pipeline.name, node=self.pipeline.node)
        state.open()
        state.forget_sealed(keys)
        state.close()
        self.instance.add_dynamic_partitions(self.names.partition_set, keys)
        job = build_definitions(self.pipeline).resolve_job_def(self.names.ship_job)
        tags = {RANGE_START_TAG: keys[0], RANGE_END_TAG: keys[-1]}
        started, cpu = time.monotonic(), time.process_time()
        done = job.execute_in_process(instance=self.instance, tags=tags, run_config=_QUIET)
        assert done.success
        run_seconds, run_cpu = time.monotonic() - started, time.process_time() - cpu
        retention_seconds = self._retain()
        self._add(KEYS_PER_EVALUATION - len(keys))
        return Measured(tick_ms, run_seconds, run_cpu, retention_seconds)

    def _tick(self, sensor: dg.SensorDefinition) -> float:
        """With an instance of its own, as a code server makes one for each."""
        started = time.monotonic()
        with dg.DagsterInstance.from_ref(self.instance.get_ref()) as instance:
            result = sensor(
                dg.build_sensor_context(instance=instance, resources=build_resources(self.pipeline))
            )
        milliseconds = (time.monotonic() - started) * 1000
        assert isinstance(result, dg.SensorResult)
        assert result.dynamic_partitions_requests, "the tick found no sealed slot"
        return milliseconds

    def _retain(self) -> float:
        schedule = build_retention_schedule(self.pipeline, running=False)
        before = len(self.instance.get_dynamic_partitions(self.names.partition_set))
        started = time.monotonic()
        with dg.build_schedule_context(instance=self.instance) as context:
            schedule(context)
        seconds = time.monotonic() - started
        after = len(self.instance.get_dynamic_partitions(self.names.partition_set))
        assert before - after == KEYS_PER_EVALUATION
        return seconds

    def _seal(self) -> Sequence[str]:
        documents, keys = documents_of(2000), []
        with SlotOwner(self.pipeline.intake(), 0) as slot:
            for number in range(SLOTS):
                slot.add(name_of(number), documents.content(number))
                sealed = slot.seal("request")
                assert sealed is not None
                keys.append(str(sealed.seal.partition))
        state = self.pipeline.state.store(pipeline=self.pipeline.name, node=self.pipeline.node)
        state.open()
        state.add_sealed(keys)
        state.close()
        return keys

    def _add(self, count: int) -> None:
        """Keys of slots that were sealed long ago and are stored and reported."""
        begin = datetime(2026, 1, 1, tzinfo=timezone.utc)
        numbers = range(self._made, self._made + count)
        parts = [
            PartitionKey(begin + timedelta(seconds=one), "local", 0, one + 1) for one in numbers
        ]
        keys = list(map(str, parts))
        self._made += count
        folder = self.pipeline.layout.receipts
        folder.mkdir(parents=True, exist_ok=True)
        for part, key in zip(parts, keys, strict=True):  # as `keep_receipt`, which syncs each
            with (folder / f"{part.sealed_at:%Y%m%dT%H}.jsonl").open("ab") as file:
                file.write(msgspec.json.encode(_receipt(key)) + b"\n")
        self.instance.add_dynamic_partitions(self.names.partition_set, keys)
        events = [_event(self.names.uploaded_archive, key) for key in keys]
        self.instance.event_log_storage.store_event_batch(events)

    def _storage(self) -> Mapping[str, Any]:
        if self.name == "sqlite":
            return {
                "custom": {
                    "module": "fuploader_dagster.sqlite_history",
                    "class": "SqliteHistory",
                    "config": {"base_dir": str(self.folder / "history")},
                }
            }
        server = self.ground.postgresql
        server.execute(f"CREATE DATABASE {self.name}")
        address = server.url().replace("postgresql://", "postgresql+psycopg2://")
        config = {"postgres_url": f"{address.rpartition('/')[0]}/{self.name}"}
        if self.name == "dagster":
            return {"postgres": config}
        return {
            "custom": {
                "module": "fuploader_dagster.postgres_history",
                "class": "PostgresHistory",
                "config": config,
            }
        }


def _receipt(key: str) -> Receipt:
    return Receipt(
        messages=1,
        payload_bytes=2_000,
        partition=key,
        address="file:///objects",
        key=f"{key}.tar.zst",
        size_bytes=1_000,
        sha256="0" * 64,
        stored_at="2026-01-01T00:00:00Z",
    )


def _event(asset: dg.AssetKey, key: str) -> EventLogEntry:
    """What `report_runless_asset_event` stores, for many at once."""
    stored = StepMaterializationData(dg.AssetMaterialization(asset, partition=key))
    event = DagsterEvent(
        event_type_value=dg.DagsterEventType.ASSET_MATERIALIZATION.value,
        event_specific_data=stored,
        job_name="",
    )
    return EventLogEntry(
        error_info=None,
        level=20,
        user_message="",
        run_id="",
        timestamp=time.time(),
        dagster_event=event,
    )
