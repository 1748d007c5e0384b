"""A person is told through a webhook, in ticks of a real instance, whatever the webhook does."""

from __future__ import annotations

import logging
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._utils.error import serializable_error_info_from_exc_info
from pydantic import ValidationError

from fuploader_dagster.assets.partitions import RANGE_END_TAG, RANGE_START_TAG, Names
from fuploader_dagster.definitions import build_definitions, build_resources
from fuploader_dagster.delivery.store_trouble import end_trouble, note_trouble
from fuploader_dagster.disk.durable import make_dirs
from fuploader_dagster.errors import SourceUnavailable
from fuploader_dagster.health import alert_memory
from fuploader_dagster.health.alert_memory import read_memory
from fuploader_dagster.intake.worker_status import StatusReport
from fuploader_dagster.sensors import alert_sensor
from fuploader_dagster.sensors.alert_sensor import AlertNotSent, build_alert_sensor, tell
from fuploader_dagster.sensors.drain_sensor import DrainTrouble
from fuploader_dagster.settings import pipeline as config_module
from fuploader_dagster.settings.loading import ConfigError, load_pipeline
from fuploader_dagster.settings.pipeline import Pipeline
from tests.lives import no_key
from tests.servers.small_disks import MIB, fill, small_disk
from tests.servers.webhook import Webhook
from tests.settings import pipeline, sealed

NOW = time.time()
MINUTE = 60.0


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as one:
        yield one


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as one:
        yield one


@pytest.fixture
def settings(tmp_path: Path, webhook: Webhook) -> Pipeline:
    return pipeline(tmp_path, alert_webhook=webhook.url, min_free_bytes=0, min_free_inodes=0)


def heard(webhook: Webhook) -> list[str]:
    return [f"{one['state']} {one['alert']}" for one in webhook.posted]


def drain_state(settings: Pipeline, status: InstigatorStatus) -> InstigatorState:
    location = GrpcServerCodeLocationOrigin("node", 4000, location_name="fuploader")
    repository = RemoteRepositoryOrigin(location, "__repository__")
    origin = repository.get_instigator_origin(Names.of(settings).drain_sensor)
    data = SensorInstigatorData(min_interval=1)
    return InstigatorState(origin, InstigatorType.SENSOR, status, data)


def switch(instance: dg.DagsterInstance, settings: Pipeline, status: InstigatorStatus) -> None:
    """What the UI's switch of the drain sensor leaves in the instance."""
    state = drain_state(settings, status)
    if instance.get_instigator_state(state.instigator_origin_id, state.selector_id):
        instance.update_instigator_state(state)
    else:
        instance.add_instigator_state(state)


def test_without_a_webhook_there_is_no_alert_sensor_and_with_one_it_runs(
    tmp_path: Path, settings: Pipeline
) -> None:
    assert build_alert_sensor(pipeline(tmp_path), running=True) is None
    sensor = build_definitions(settings).get_sensor_def("docs_alerts")
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert sensor.minimum_interval_seconds == 60


def test_a_drain_that_is_switched_off_is_no_trouble_and_one_that_stands_still_is(
    instance: dg.DagsterInstance, settings: Pipeline, webhook: Webhook
) -> None:
    """Off on purpose; then on, with ticks that fail before there is a worker; then off again."""

    def ticks(*minutes: int) -> list[str]:
        for minute in minutes:
            tell(settings, instance, running=True, now=NOW + minute * MINUTE)
        return heard(webhook)

    switch(instance, settings, InstigatorStatus.STOPPED)
    assert ticks(0, 1, 2) == []
    switch(instance, settings, InstigatorStatus.RUNNING)
    state = drain_state(settings, InstigatorStatus.RUNNING)
    for seconds in (0, 50):
        try:
            raise DrainTrouble("Redis at redis:6379 is away")
        except DrainTrouble:
            error = serializable_error_info_from_exc_info(sys.exc_info())
        instance.create_tick(
            TickData(
                state.instigator_origin_id,
                state.instigator_name,
                InstigatorType.SENSOR,
                TickStatus.FAILURE,
                NOW + 3 * MINUTE + seconds,
                error=error,
                selector_id=state.selector_id,
            )
        )
    assert ticks(4) == ["trouble drain"]
    assert "Redis at redis:6379 is away" in webhook.posted[0]["text"]
    assert ticks(5, 6) == ["trouble drain"]
    switch(instance, settings, InstigatorStatus.STOPPED)
    assert ticks(7, 8, 9) == ["trouble drain", "over drain"]
    assert "switched off" in webhook.posted[1]["text"]


def test_a_drain_in_trouble_a_dead_store_and_their_ends_are_told_once_each(
    instance: dg.DagsterInstance, settings: Pipeline, webhook: Webhook, tmp_path: Path
) -> None:
    worker = StatusReport(settings.layout, 0, clock=lambda: NOW)
    worker.doing("trouble", SourceUnavailable("could not connect to queue 'documents'"))
    note_trouble(settings.layout, "no route to it")

    def tick(minute: int) -> str:
        return tell(settings, instance, running=True, now=NOW + minute * MINUTE)

    tick(0)
    assert heard(webhook) == []
    tick(1)
    assert sorted(heard(webhook)) == ["trouble drain", "trouble store"]
    assert "could not connect to queue 'documents'" in webhook.posted[0]["text"]
    assert "trouble: drain, store" in tick(2)
    end_trouble(settings.layout)
    worker._clock = lambda: NOW + 3 * MINUTE
    worker.doing("draining")
    tick(3)
    tick(4)
    assert sorted(heard(webhook)[2:]) == ["over drain", "over store"]
    worker.remove()


def test_an_alert_that_was_not_taken_is_posted_with_a_later_tick_and_once(
    instance: dg.DagsterInstance, settings: Pipeline, webhook: Webhook
) -> None:
    pressed = settings.model_copy(update={"min_free_bytes": 1 << 60})
    make_dirs(settings.layout.root)
    for minute, status in enumerate((503, 404, 500)):
        webhook.status = status
        with pytest.raises(AlertNotSent, match=str(status)):
            tell(pressed, instance, running=False, now=NOW + minute * MINUTE)
    webhook.status = 204
    for minute in range(3, 6):
        tell(pressed, instance, running=False, now=NOW + minute * MINUTE)
    assert heard(webhook) == ["trouble disk"]
    assert webhook.asked == 4


@pytest.mark.parametrize("status", [204, 301, 302, 307, 308, 401, 404, 500, 503, None])
def test_neither_the_address_nor_the_answer_is_shown_and_no_redirect_is_followed(
    instance: dg.DagsterInstance,
    settings: Pipeline,
    caplog: pytest.LogCaptureFixture,
    status: int | None,
) -> None:
    """Whatever it answers; None: nobody listens there."""
    hook = Webhook()
    pressed = settings.model_copy(update={"min_free_bytes": 1 << 60})
    others = {"metrics_host": "localhost"}  # its default is the address of the hook
    pressed = Pipeline(**{**dict(pressed), "alert_webhook": hook.url, **others})
    make_dirs(settings.layout.root)
    sensor = build_alert_sensor(pressed, running=False)
    assert sensor
    said = repr(pressed)
    caplog.set_level(logging.DEBUG)
    if status is None:
        hook._server.server_close()
        said += _tick(sensor, instance, settings)
    else:
        hook.status = status
        with hook:
            said += _tick(sensor, instance, settings)
    said += caplog.text
    assert hook.followed == 0
    assert hook.secret not in said
    assert "/hook" not in said
    assert ("127.0.0.1" in said) == (status != 204)


def _tick(sensor: dg.SensorDefinition, instance: dg.DagsterInstance, settings: Pipeline) -> str:
    """A tick as the UI would show it: what it said, or its error with all that caused it."""
    with dg.build_sensor_context(instance=instance, resources=build_resources(settings)) as context:
        try:
            return str(sensor(context))
        except AlertNotSent as error:
            exc_info = (type(error), error, error.__traceback__)
            return serializable_error_info_from_exc_info(exc_info).to_string()


def test_a_failed_run_is_told_with_what_failed_and_why_and_that_it_got_through(
    instance: dg.DagsterInstance, settings: Pipeline, webhook: Webhook
) -> None:
    """A slot without a key, and one whose bytes rotted."""
    failing = settings.model_copy(update={"max_retries": 0, "key": no_key})
    names = Names.of(failing)
    tell(failing, instance, running=False, now=NOW)
    slot = sealed(failing, {"a.json": b"content", "b.json": b"b"})
    damaged = sealed(failing, {"a.json": b"content"})
    damaged.segment.write_bytes(damaged.segment.read_bytes().replace(b"content", b"c0ntent"))
    keys = [slot.seal.partition, damaged.seal.partition]
    instance.add_dynamic_partitions(names.partition_set, keys)
    job = build_definitions(failing).resolve_job_def(names.ship_job)
    tags = {RANGE_START_TAG: keys[0], RANGE_END_TAG: keys[-1]}
    for _ in range(2):
        result = job.execute_in_process(instance=instance, tags=tags, raise_on_error=False)
        for minute in range(1, 3):
            tell(failing, instance, running=False, now=NOW + minute * MINUTE)
    assert heard(webhook) == ["trouble failed_slots", "trouble damaged"]
    slots, damage = webhook.posted
    assert slots["slots_waiting"] == 1
    assert slots["failures"][0]["partition"] == keys[0]
    assert "no key today" in slots["failures"][0]["error"]
    assert "data is kept" in slots["text"]
    assert not result.success
    assert [one["partition"] for one in damage["damaged"]] == [keys[1]]
    assert "a.json" in damage["text"]
    assert str(settings.layout.set_aside) in damage["text"]
    mended = settings.model_copy(update={"key": "{archive}"})
    for path in settings.layout.archives.glob("*.failure.json"):
        path.unlink()
    shutil.rmtree(settings.layout.set_aside)
    tell(mended, instance, running=False, now=NOW + 5 * MINUTE)
    assert heard(webhook)[2:] == ["over failed_slots", "over damaged"]


def test_a_run_that_failed_before_the_first_look_or_of_another_pipeline_is_nobodys_news(
    instance: dg.DagsterInstance, settings: Pipeline, webhook: Webhook, tmp_path: Path
) -> None:
    other = pipeline(tmp_path, name="logs", max_retries=0)
    _fail(settings, instance)
    tell(settings, instance, running=False, now=NOW)
    _fail(other, instance)
    tell(settings, instance, running=False, now=NOW + MINUTE)
    assert heard(webhook) == []
    _fail(settings, instance)
    tell(settings, instance, running=False, now=NOW + 2 * MINUTE)
    tell(settings, instance, running=False, now=NOW + 3 * MINUTE)
    assert heard(webhook) == ["trouble failed_run"]
    assert webhook.posted[0]["run_id"] in webhook.posted[0]["text"]


def _fail(settings: Pipeline, instance: dg.DagsterInstance) -> None:
    """A run that fails: its partition is none of this node's."""
    names, key = Names.of(settings), "20260101T000000000Z-elsewhere-s0-000001"
    instance.add_dynamic_partitions(names.partition_set, [key])
    job = build_definitions(settings).resolve_job_def(names.ship_job)
    tags = {RANGE_START_TAG: key, RANGE_END_TAG: key}
    assert not job.execute_in_process(instance=instance, tags=tags, raise_on_error=False).success


def test_a_full_disk_is_told_once_though_nothing_can_be_written_to_it(
    instance: dg.DagsterInstance, webhook: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a restart, which forgets what only the process remembered."""
    with small_disk(tmp_path / "disk", size_bytes=4 * MIB) as disk:
        settings = pipeline(
            tmp_path,
            alert_webhook=webhook.url,
            storage_root=disk,
            min_free_bytes=64 * 1024,
            min_free_inodes=0,
        )
        make_dirs(settings.layout.root)
        tell(settings, instance, running=False, now=NOW)
        assert heard(webhook) == []
        fill(disk)
        for minute in range(1, 4):
            tell(settings, instance, running=False, now=NOW + minute * MINUTE)
            assert not alert_memory._unwritten
        assert heard(webhook) == ["trouble disk"]
        memory = read_memory(settings.layout)
        assert memory
        assert memory.episodes["disk"].told_at == NOW + MINUTE


def test_the_old_name_of_the_setting_works_and_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_module._warn_of_old_name.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            settings = pipeline(tmp_path, failure_webhook="https://chat.example/hook")
    assert [one.category for one in caught] == [DeprecationWarning]
    assert settings.alert_webhook is not None
    assert settings.alert_webhook.get_secret_value() == "https://chat.example/hook"
    monkeypatch.setenv("HOOK", "https://chat.example/other")
    values: dict[str, Any] = {
        "name": "docs",
        "source": {"kind": "embedded", "path": str(tmp_path / "q")},
        "state": {"kind": "sqlite", "path": str(tmp_path / "s")},
        "store": {"kind": "local", "path": str(tmp_path / "o")},
        "failure_webhook": {"env": "HOOK"},
    }
    loaded = load_pipeline(values, where="here")
    assert loaded.alert_webhook is not None
    assert loaded.alert_webhook.get_secret_value().endswith("other")


@pytest.mark.parametrize("address", ["htp:/bad s3cret", "s3cret", "http://", "https:// s3cret"])
def test_what_is_no_address_is_refused_without_being_shown(tmp_path: Path, address: str) -> None:
    with pytest.raises(ValidationError, match="http://") as caught:
        pipeline(tmp_path, alert_webhook=address)
    assert "s3cret" not in str(caught.value)
    with pytest.raises((ValidationError, ConfigError)) as other:
        pipeline(tmp_path, alert_webhook="https://s3cret/hook", commit_messages=9, prefetch_count=5)
    assert "s3cret" not in str(other.value)


def test_who_tries_the_sensor_by_hand_hears_what_would_be_posted_and_nothing_is(
    instance: dg.DagsterInstance,
    settings: Pipeline,
    webhook: Webhook,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pressed = settings.model_copy(update={"min_free_bytes": 1 << 60})
    make_dirs(settings.layout.root)
    sensor = build_alert_sensor(pressed, running=False)
    assert sensor
    monkeypatch.setattr(alert_sensor, "is_dry_run", lambda _: True)
    said = _tick(sensor, instance, settings)
    assert "a tick would post: docs on local" in said
    assert webhook.asked == 0
    assert read_memory(settings.layout) is None
