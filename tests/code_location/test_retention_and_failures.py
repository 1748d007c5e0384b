"""Old verified partitions are folded away, nothing else; a failure of others is passed over."""

from __future__ import annotations

import time
from pathlib import Path

import dagster as dg
from dagster._core.definitions.sensor_definition import SensorExecutionData

from fuploader_dagster.assets.partitions import RANGE_END_TAG, RANGE_START_TAG, Names
from fuploader_dagster.definitions import build_definitions
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.sensors.failure_sensor import build_failure_sensor
from fuploader_dagster.sensors.retention_schedule import build_retention_schedule, foldable, unknown
from fuploader_dagster.settings.pipeline import Pipeline
from tests.settings import pipeline, sealed

DAY = 86_400.0


def persistent_instance(folder: Path) -> dg.DagsterInstance:
    """An instance in a folder: evaluation contexts take no ephemeral one."""
    home = folder / "home"
    home.mkdir()
    return dg.DagsterInstance.local_temp(str(home))


def test_only_verified_partitions_are_folded_away_and_their_history_stays(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, retention_days=1e-9)
    names = Names.of(settings)
    stored = [sealed(settings, {f"{n}": b"x"}).seal.partition for n in range(2)]
    assert len(list(ship(settings, settings.store.open()))) == 2
    unshipped = sealed(settings, {"later": b"x"}).seal.partition
    with persistent_instance(tmp_path) as instance:
        instance.add_dynamic_partitions(names.partition_set, [*stored, unshipped, "a person's"])
        instance.report_runless_asset_event(
            dg.AssetMaterialization(names.uploaded_archive, partition=stored[0])
        )
        with dg.build_schedule_context(instance=instance) as context:
            result = build_retention_schedule(settings, running=True)(context)
        assert isinstance(result, dg.SkipReason)
        left = instance.get_dynamic_partitions(names.partition_set)
        assert sorted(left) == sorted([unshipped, "a person's"])
        assert instance.fetch_materializations(names.uploaded_archive, limit=5).records


def test_the_oldest_go_when_there_are_too_many_and_the_rest_by_age(tmp_path: Path) -> None:
    keys = [f"202601{day:02d}T000000000Z-local-s0-{day:06d}" for day in range(1, 11)]
    now = time.mktime((2026, 1, 11, 0, 0, 0, 0, 0, 0)) - time.timezone
    many = pipeline(tmp_path, retention_days=100, retention_partitions=7)
    assert foldable(keys, many, now=now) == keys[:3]
    old = pipeline(tmp_path, retention_days=5)
    assert foldable(list(reversed(keys)), old, now=now) == keys[:5]


def test_a_failure_sensor_passes_over_the_failures_of_others(tmp_path: Path) -> None:
    """Whichever comes first: a tick that failed over it would post its own again and again."""
    both = [pipeline(tmp_path / name, name=name, max_retries=0) for name in ("docs", "logs")]
    with persistent_instance(tmp_path) as instance:
        sensors = {one.name: build_failure_sensor(one, running=True) for one in both}
        cursors = {name: _tick(sensor, instance, None).cursor for name, sensor in sensors.items()}
        for one in (*both, both[0]):
            _fail(one, instance)
        for name, failures in (("docs", 2), ("logs", 1)):
            told, cursor = 0, cursors[name]
            for _ in range(4):
                tick = _tick(sensors[name], instance, cursor)
                told, cursor = told + len(tick.dagster_run_reactions or []), tick.cursor
                assert all(one.error is None for one in tick.dagster_run_reactions or [])
            assert told == failures


def test_what_a_failed_run_stored_but_could_not_report_is_reported_for_it(tmp_path: Path) -> None:
    """Its slot is gone, so that no later run would: the UI would show it as missing for ever."""
    settings = pipeline(tmp_path, max_retries=0)
    names = Names.of(settings)
    keys = [sealed(settings, {f"{n}": b"x"}).seal.partition for n in range(2)]
    assert len(list(ship(settings, settings.store.open()))) == 2
    keys.append(sealed(settings, {"later": b"x"}).seal.partition)
    sensor = build_failure_sensor(settings, running=True)
    with persistent_instance(tmp_path) as instance:
        instance.add_dynamic_partitions(names.partition_set, keys)
        cursor = _tick(sensor, instance, None).cursor
        _run_that_fails(settings, instance, keys)
        _tick(sensor, instance, cursor)
        assert instance.get_materialized_partitions(names.uploaded_archive) == set(keys[:2])
        _tick(sensor, instance, cursor)
        told = instance.fetch_materializations(names.uploaded_archive, limit=10).records
        assert len(told) == 2, "each is told once"
        assert told[0].asset_materialization is not None
        assert told[0].asset_materialization.metadata["messages"].value == 1


def test_what_a_canceled_run_stored_is_reported_within_the_hour(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    names = Names.of(settings)
    stored = sealed(settings, {"1": b"x"}).seal.partition
    assert len(list(ship(settings, settings.store.open()))) == 1
    unshipped = sealed(settings, {"2": b"x"}).seal.partition
    with persistent_instance(tmp_path) as instance:
        instance.add_dynamic_partitions(names.partition_set, [stored, unshipped])
        with dg.build_schedule_context(instance=instance) as context:
            build_retention_schedule(settings, running=True)(context)
        assert instance.get_materialized_partitions(names.uploaded_archive) == {stored}


def _run_that_fails(settings: Pipeline, instance: dg.DagsterInstance, keys: list[str]) -> None:
    """A run of these partitions whose process is gone."""
    tags = {RANGE_START_TAG: keys[0], RANGE_END_TAG: keys[-1]}
    job = Names.of(settings).ship_job
    run = dg.DagsterRun(job_name=job, status=dg.DagsterRunStatus.STARTED, tags=tags)
    instance.add_run(run)
    instance.report_run_failed(run, "its process was killed")


def _tick(
    sensor: dg.SensorDefinition, instance: dg.DagsterInstance, cursor: str | None
) -> SensorExecutionData:
    with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
        return sensor.evaluate_tick(context)


def _fail(settings: Pipeline, instance: dg.DagsterInstance) -> None:
    """A run that fails: its partition is none of this node's."""
    names, key = Names.of(settings), "20260101T000000000Z-elsewhere-s0-000001"
    instance.add_dynamic_partitions(names.partition_set, [key])
    job = build_definitions(settings).resolve_job_def(names.ship_job)
    tags = {RANGE_START_TAG: key, RANGE_END_TAG: key}
    result = job.execute_in_process(instance=instance, tags=tags, raise_on_error=False)
    assert not result.success


def test_what_was_stored_without_dagster_becomes_partitions_that_it_shows_as_stored(
    tmp_path: Path,
) -> None:
    never = {f"{name}_days": 1e9 for name in ("retention", "run_history", "tick_history")}
    settings = pipeline(tmp_path, retention_partitions=3, **never)
    names = Names.of(settings)
    keys = [sealed(settings, {f"{n}": b"x"}).seal.partition for n in range(4)]
    assert len(list(ship(settings, settings.store.open()))) == 4
    waiting = sealed(settings, {"later": b"x"}).seal.partition
    with persistent_instance(tmp_path) as instance:
        instance.add_dynamic_partitions(names.partition_set, [waiting, "a person's"])
        for _ in range(2):  # what it added it does not fold away again
            with dg.build_schedule_context(instance=instance) as context:
                build_retention_schedule(settings, running=True)(context)
            registered = instance.get_dynamic_partitions(names.partition_set)
            assert sorted(registered) == sorted([*keys[2:], waiting, "a person's"])
            stored = instance.get_materialized_partitions(names.uploaded_archive)
            assert stored == set(keys[2:])


def test_only_what_is_young_enough_to_stay_becomes_a_partition(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, retention_days=10)
    key = sealed(settings, {"1": b"x"}).seal.partition
    assert len(list(ship(settings, settings.store.open()))) == 1
    assert unknown([], settings, now=time.time() + 9.9 * DAY) == [key]
    assert unknown([key], settings, now=time.time() + 9.9 * DAY) == []
    assert unknown([], settings, now=time.time() + 10.1 * DAY) == []
