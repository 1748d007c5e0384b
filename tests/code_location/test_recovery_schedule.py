"""The recovery schedule: asks for what has no verified object, and for nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)

from fuploader_dagster.assets.partitions import (
    PARTITION_TAG,
    PIPELINE_TAG,
    RANGE_END_TAG,
    RANGE_START_TAG,
    Names,
    keys_of_run,
)
from fuploader_dagster.definitions import build_resources
from fuploader_dagster.delivery import store_trouble
from fuploader_dagster.delivery.failures import clear_failure, note_failure
from fuploader_dagster.delivery.recovery import seal_on_request
from fuploader_dagster.delivery.store_trouble import find_trouble, note_trouble
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.resources.states.redis import RedisState
from fuploader_dagster.sensors.recovery_schedule import build_recovery_schedule
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import Receipt, keep_receipt
from fuploader_dagster.slots.sealing import sealed_partitions
from fuploader_dagster.slots.slot import SlotOwner
from tests.servers.ports import free_port
from tests.settings import pipeline, sealed

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=timezone.utc)
PATIENCE_SECONDS = 100.0


class Recovering:
    """A pipeline's recovery schedule in an instance of its own."""

    def __init__(self, folder: Path, **values: Any) -> None:
        self.settings: Pipeline = pipeline(
            folder, **{"recovery_base_seconds": PATIENCE_SECONDS, **values}
        )
        self.names = Names.of(self.settings)
        # A schedule's context opens its instance by reference, which an ephemeral one has not.
        self.instance = dg.DagsterInstance.local_temp(str(folder))
        self.schedule = build_recovery_schedule(self.settings, running=True)
        self.requests: list[dg.RunRequest] = []

    def slots(
        self, count: int, *, registered: bool = True, seconds_ago: float = 20 * PATIENCE_SECONDS
    ) -> list[str]:
        """Sealed slots, which are old enough to be asked for."""
        keys = [
            sealed(self.settings, {"a": b"a"}, seconds_ago=seconds_ago).seal.partition
            for _ in range(count)
        ]
        if registered:
            self.instance.add_dynamic_partitions(self.names.partition_set, keys)
        return keys

    def tick(self, minute: int = 0) -> list[list[str]]:
        """The keys of each run that it asks for; empty if it skips."""
        with dg.build_schedule_context(
            instance=self.instance,
            scheduled_execution_time=NOON + timedelta(minutes=minute),
            resources=build_resources(self.settings),
        ) as context:  # left open, its instance would be the one of all later tests
            answer = self.schedule(context)
        self.requests = [] if isinstance(answer, dg.SkipReason) else list(answer)  # type: ignore[arg-type]
        registered = self.instance.get_dynamic_partitions(self.names.partition_set)
        return [list(keys_of_run(request.tags, registered)) for request in self.requests]

    def run(self, status: dg.DagsterRunStatus, **tags: str) -> None:
        """A run of that status in the instance."""
        location = RegisteredCodeLocationOrigin("here")  # a queued run must say where it is from
        origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, "definitions"), "any")
        self.instance.add_run(
            dg.DagsterRun(job_name="any", status=status, tags=tags, remote_job_origin=origin)
        )

    def waiting(self) -> Sequence[str]:
        store = self.settings.state.store(pipeline=self.settings.name, node=self.settings.node)
        return store.sealed(100)


def test_sealed_slots_are_asked_for_once_they_are_old_enough(tmp_path: Path) -> None:
    recovering = Recovering(tmp_path, recovery_base_seconds=1_000)
    recovering.slots(1, seconds_ago=500)
    assert recovering.tick() == []
    old = recovering.slots(2, seconds_ago=1_001)
    assert recovering.tick() == [old]


def test_a_run_takes_neighbours_only_and_at_most_its_number_of_slots(tmp_path: Path) -> None:
    recovering = Recovering(tmp_path, partitions_per_run=3)
    keys = recovering.slots(8)
    recovering.run(dg.DagsterRunStatus.STARTED, **{PARTITION_TAG: keys[4]})
    assert recovering.tick() == [keys[:3], keys[3:4], keys[5:]]


def test_each_minute_asks_with_run_keys_of_its_own(tmp_path: Path) -> None:
    recovering = Recovering(tmp_path)
    recovering.slots(1)
    run_keys = set()
    for minute in range(3):
        assert recovering.tick(minute)
        run_keys |= {request.run_key for request in recovering.requests}
    assert len(run_keys) == 3


def test_slots_in_runs_that_are_queued_or_running_are_left_to_them(tmp_path: Path) -> None:
    recovering = Recovering(tmp_path)
    keys = recovering.slots(9)
    ours = {PIPELINE_TAG: recovering.names.scope}
    of_a_backfill: dict[str, str] = {}
    for number, (status, tags) in enumerate(
        [
            ("QUEUED", ours),
            ("STARTED", ours),
            ("NOT_STARTED", of_a_backfill),
            ("STARTING", of_a_backfill),
        ]
    ):
        start, end = keys[2 * number], keys[2 * number + 1]
        range_tags = {RANGE_START_TAG: start, RANGE_END_TAG: end}
        recovering.run(dg.DagsterRunStatus(status), **tags, **range_tags)
    assert recovering.tick() == [keys[8:]]


def test_a_run_that_ended_without_a_verified_object_makes_nobody_wait(tmp_path: Path) -> None:
    recovering = Recovering(tmp_path)
    keys = recovering.slots(2)
    tags = {RANGE_START_TAG: keys[0], RANGE_END_TAG: keys[1]}
    for status in ("SUCCESS", "FAILURE", "CANCELED"):
        recovering.run(
            dg.DagsterRunStatus(status), **tags, **{PIPELINE_TAG: recovering.names.scope}
        )
    assert recovering.tick() == [keys]


def test_runs_of_another_pipeline_do_not_hold_a_slot_up(tmp_path: Path) -> None:
    recovering = Recovering(tmp_path)
    keys = recovering.slots(1)
    recovering.run(dg.DagsterRunStatus.STARTED, **{PARTITION_TAG: keys[0], PIPELINE_TAG: "other"})
    assert recovering.tick() == [keys]


def test_a_failed_slot_is_asked_for_again_after_pauses_that_double_up_to_the_cap(
    tmp_path: Path,
) -> None:
    recovering = Recovering(tmp_path, recovery_base_seconds=100, recovery_cap_seconds=300)
    (key,) = recovering.slots(1)
    layout = recovering.settings.layout

    def fail(times: int, *, seconds_ago: float) -> None:
        clear_failure(layout, key)
        for _ in range(times):
            note_failure(layout, key, stage="upload", error="no", now=time.time() - seconds_ago)

    for attempts, pause in enumerate((100, 200, 300, 300), start=1):
        fail(attempts, seconds_ago=pause - 30)
        assert recovering.tick() == [], f"asked before {pause} s were over"
        fail(attempts, seconds_ago=pause + 1)
        assert recovering.tick() == [[key]]


def test_a_slot_that_the_store_has_is_not_asked_for_and_its_local_data_goes(
    tmp_path: Path,
) -> None:
    recovering = Recovering(tmp_path)
    stored, other = recovering.slots(2)
    receipt = Receipt(
        partition=stored,
        address="file:///objects/a",
        key="a",
        size_bytes=1,
        sha256="0" * 64,
        messages=1,
        payload_bytes=1,
        stored_at="2026-11-21T12:00:00.000+00:00",
    )
    keep_receipt(recovering.settings.layout, receipt)
    assert recovering.tick() == [[other]]
    assert sealed_partitions(recovering.settings.layout) == [other]


def test_slots_that_the_instance_does_not_know_go_back_to_the_sensor(tmp_path: Path) -> None:
    recovering = Recovering(tmp_path)
    unknown = recovering.slots(2, registered=False)
    known = recovering.slots(1)
    assert recovering.tick() == [known]
    assert recovering.waiting() == unknown


def test_slots_of_workers_that_are_no_more_are_sealed_and_go_to_the_sensor(tmp_path: Path) -> None:
    recovering = Recovering(tmp_path)
    for number in (0, 3):
        with SlotOwner(recovering.settings, number) as slot:
            slot.add("a", b"a")
            slot.commit()
    assert recovering.tick() == []
    (key,) = recovering.waiting()
    assert "-s3-" in key
    assert [slot.seal.slot for slot in seal_on_request(recovering.settings)] == [0]


def test_without_its_state_store_it_asks_for_what_it_can_and_else_says_what_is_wrong(
    tmp_path: Path,
) -> None:
    state = RedisState(url=f"redis://:top-secret@127.0.0.1:{free_port()}/0", timeout_seconds=1)
    recovering = Recovering(tmp_path, state=state)
    recovering.slots(1, registered=False)
    with pytest.raises(Exception, match="is Redis running") as trouble:
        recovering.tick()
    assert "top-secret" not in str(trouble.value)
    known = recovering.slots(1)
    assert recovering.tick() == [known]


def test_a_store_that_is_down_is_looked_at_and_nothing_is_asked_for_until_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then at once, however often it failed meanwhile. While a run waits, that one looks."""
    recovering = Recovering(tmp_path, recovery_base_seconds=1, recovery_cap_seconds=3600)
    layout = recovering.settings.layout
    keys = recovering.slots(2)
    monkeypatch.setattr(store_trouble, "look", lambda _: "connection refused")
    note_trouble(layout, "no answer")
    for _ in range(9):
        note_failure(layout, keys[0], stage="upload", error="no answer", now=time.time())
    assert recovering.tick() == []
    assert "connection refused" in str(find_trouble(layout)), "it was looked at, and noted anew"
    monkeypatch.setattr(store_trouble, "look", lambda _: "")
    with FileLock(layout.store_wait_lock):
        assert recovering.tick(1) == []
        assert find_trouble(layout) is not None
    deadline = time.monotonic() + 60
    while (asked := recovering.tick(2)) != [keys]:
        assert time.monotonic() < deadline, asked
    assert find_trouble(layout) is None
