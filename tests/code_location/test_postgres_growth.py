"""Nothing that a pipeline leaves in Dagster's history grows without end or goes too soon."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
import yaml
from dagster._core.remote_origin import (
    InProcessCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    TickData,
    TickStatus,
)
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from fuploader_dagster.assets.partitions import RANGE_END_TAG, RANGE_START_TAG, Names
from fuploader_dagster.definitions import build_definitions
from fuploader_dagster.sensors.retention_schedule import build_retention_schedule
from fuploader_dagster.settings.pipeline import Pipeline
from tests.servers.postgresql import PostgresqlServer
from tests.settings import pipeline, sealed

SLOTS = 3
TIMES = {
    "event_logs": "timestamp",
    "asset_check_executions": "evaluation_event_timestamp",
    "asset_event_tags": "event_timestamp",
    "runs": "update_timestamp",
    "job_ticks": "timestamp",
}
TABLES = (*TIMES, "dynamic_partitions", "run_tags", "asset_keys", "instigators")


@pytest.fixture(params=["postgres", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The block of a dagster.yaml."""
    if request.param == "sqlite":
        config: dict[str, Any] = {"base_dir": str(tmp_path / "history")}
        module, name = "fuploader_dagster.sqlite_history", "SqliteHistory"
        yield {"custom": {"module": module, "class": name, "config": config}}
        return
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    database = f"growth_{secrets.token_hex(4)}"
    server.execute(f"CREATE DATABASE {database}")
    config = {"postgres_url": f"{server.url().rpartition('/')[0]}/{database}"}
    module, name = "fuploader_dagster.postgres_history", "PostgresHistory"
    yield {"custom": {"module": module, "class": name, "config": config}}
    server.execute(f"DROP DATABASE {database} WITH (FORCE)")


@dataclass
class Life:
    """A pipeline that keeps everything for a day, and somebody else's assets beside it."""

    instance: dg.DagsterInstance
    settings: Pipeline
    days: int = 0

    @property
    def names(self) -> Names:
        return Names.of(self.settings)

    def day(self) -> list[str]:
        """What sensors report, a run, and ticks; all of it a day old when this returns."""
        names, instance = self.names, self.instance
        self.days += 1
        keys = [
            sealed(self.settings, {f"{self.days}-{n}": b"x"}).seal.partition for n in range(SLOTS)
        ]
        instance.add_dynamic_partitions(names.partition_set, keys)
        for key in keys:
            self.report(dg.AssetMaterialization(names.sealed_slot, partition=key))
            self.report(dg.AssetObservation(names.queue, metadata={"waiting": 1}))
            self.report(
                dg.AssetCheckEvaluation(
                    asset_key=names.uploaded_archive, check_name="store_reachable", passed=True
                )
            )
            self.report(dg.AssetMaterialization(names.dead_letters))
            self.report(dg.AssetMaterialization("somebody_elses", partition=key))
        job = build_definitions(self.settings).resolve_job_def(names.ship_job)
        tags = {RANGE_START_TAG: keys[0], RANGE_END_TAG: keys[-1]}
        quiet = {"loggers": {"console": {"config": {"log_level": "WARNING"}}}}
        assert job.execute_in_process(instance=instance, tags=tags, run_config=quiet).success
        self.tick()
        for table, column in TIMES.items():
            self.earlier(table, column)
        return keys

    def report(self, event: Any) -> None:
        self.instance.report_runless_asset_event(event)

    def tick(self) -> None:
        target = LoadableTargetOrigin(module_name="anything")
        repository = RemoteRepositoryOrigin(InProcessCodeLocationOrigin(target), "repository")
        origin = RemoteInstigatorOrigin(repository, self.names.drain_sensor)
        state = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING)
        if not self.instance.all_instigator_state():
            self.instance.add_instigator_state(state)
        self.instance.create_tick(
            TickData(
                state.instigator_origin_id,
                state.name,
                InstigatorType.SENSOR,
                TickStatus.SUCCESS,
                time.time(),
                run_ids=[],
                run_keys=[],
                selector_id=state.selector_id,
            )
        )

    def retain(self) -> None:
        with dg.build_schedule_context(instance=self.instance) as context:
            build_retention_schedule(self.settings, running=True)(context)

    def rows(self) -> dict[str, int]:
        found = {}
        for table in TABLES:
            with self.connected(table) as connection:
                query = f"select count(*) from {table}"  # noqa: S608
                found[table] = int(connection.execute(sa.text(query)).scalar_one())
        return found

    def earlier(self, table: str, column: str) -> None:
        """All of it happened a day earlier than it says."""
        with self.connected(table) as connection:
            if connection.dialect.name == "sqlite":
                moved = f"strftime('%Y-%m-%d %H:%M:%f', {column}, '-25 hours')"
            else:
                moved = f"{column} - interval '25 hours'"
            connection.execute(sa.text(f"update {table} set {column} = {moved}"))  # noqa: S608

    def connected(self, table: str) -> Any:
        storages: dict[str, Any] = {
            "runs": self.instance.run_storage,
            "run_tags": self.instance.run_storage,
            "job_ticks": self.instance._schedule_storage,
            "instigators": self.instance._schedule_storage,
        }
        found = storages.get(table)
        return found.connect() if found else self.instance.event_log_storage.index_connection()

    def reported(self, asset: dg.AssetKey) -> list[str | None]:
        records = self.instance.fetch_materializations(asset, limit=1000).records
        return [record.partition_key for record in records]


@pytest.fixture
def life(tmp_path: Path, storage: dict[str, Any]) -> Iterator[Life]:
    (tmp_path / "dagster.yaml").write_text(
        yaml.safe_dump({"storage": storage, "telemetry": {"enabled": False}})
    )
    settings = pipeline(
        tmp_path,
        retention_days=1.0,
        run_history_days=1.0,
        tick_history_days=1.0,
        retention_partitions=SLOTS,
    )
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield Life(instance, settings)


def test_rows_stay_constant_over_days_but_for_those_of_others(life: Life) -> None:
    after = []
    for _ in range(4):
        life.day()
        life.retain()
        after.append(life.rows())
    foreign = len(life.reported(dg.AssetKey("somebody_elses")))
    assert foreign == 4 * SLOTS
    for number, rows in enumerate(after):
        rows["event_logs"] -= (number + 1) * SLOTS
    assert after[1] == after[2] == after[3]
    assert after[3]["runs"] == 1, "that of the newest materialization"
    assert after[3]["job_ticks"] == 0
    assert after[3]["dynamic_partitions"] == SLOTS


def test_an_asset_keeps_its_newest_events_however_old_they_are(life: Life) -> None:
    life.day()
    keys = life.day()
    life.settings = life.settings.model_copy(update={"retention_partitions": 1})
    for _ in range(2):
        life.retain()
    names = life.names
    assert life.reported(names.dead_letters) == [None]
    for asset in (names.packed_archive, names.uploaded_archive):
        assert set(life.reported(asset)) == set(keys), "one run reported them"
    assert set(life.reported(names.sealed_slot)) == {keys[-1]}
    observed = life.instance.fetch_observations(names.queue, limit=100).records
    assert len(observed) == 1
    for asset in (names.uploaded_archive, names.sealed_slot, names.dead_letters):
        assert life.instance.get_latest_materialization_event(asset) is not None
    checks = life.instance.event_log_storage.get_asset_check_execution_history(
        names.reachable_check, limit=100
    )
    assert len(checks) == 1
    assert len(life.reported(dg.AssetKey("somebody_elses"))) == 2 * SLOTS


def test_what_is_young_and_what_is_still_registered_stays(life: Life) -> None:
    keys = life.day()
    before = life.rows()
    short = life.settings
    longer = {"run_history_days": 3.0, "tick_history_days": 3.0}
    life.settings = short.model_copy(update=longer)
    life.retain()
    assert life.rows() == before
    life.settings = short
    life.retain()
    assert life.rows() != before
    assert set(life.reported(life.names.sealed_slot)) == set(keys)


def test_in_sqlite_the_copies_go_too(life: Life) -> None:
    """Of what no run reported: in the file of no run, which nobody else ever shortens."""
    for _ in range(2):
        life.day()
    life.retain()
    storage = life.instance.event_log_storage
    with storage.run_connection("") as connection:  # type: ignore[attr-defined]
        left = connection.execute(
            sa.select(sa.func.count())
            .select_from(SqlEventLogStorageTable)
            .where(SqlEventLogStorageTable.c.run_id == "")
        ).scalar_one()
    newest = 2  # of queue and dead letters; that of the check is the last one of a run
    others, registered = 2 * SLOTS, SLOTS
    assert left == others + registered + newest
