"""No run keeps a slot waiting for ever; while one works on it, nobody else asks for it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from fuploader_dagster.assets.partitions import RANGE_END_TAG, RANGE_START_TAG
from fuploader_dagster.definitions import build_resources
from fuploader_dagster.delivery.upload import PartitionLock
from tests.code_location.test_recovery_schedule import NOON, Recovering

NO_PROCESS = ["NOT_STARTED", "STARTING", "STARTED", "CANCELING"]


def said(recovering: Recovering) -> str:
    """Why the tick asks for nothing."""
    with dg.build_schedule_context(
        instance=recovering.instance,
        scheduled_execution_time=NOON + timedelta(minutes=1),
        resources=build_resources(recovering.settings),
    ) as context:
        answer = recovering.schedule(context)
    assert isinstance(answer, dg.SkipReason)
    return str(answer.skip_message)


def unfinished(recovering: Recovering, status: str, keys: list[str]) -> str:
    """A run for these keys of which nothing is heard any more. Not one of this machine."""
    tags = {RANGE_START_TAG: keys[0], RANGE_END_TAG: keys[-1]}
    recovering.run(dg.DagsterRunStatus(status), **tags)
    return recovering.instance.get_runs(limit=1)[0].run_id


@pytest.mark.parametrize("status", NO_PROCESS)
def test_a_run_in_which_nothing_happens_any_more_keeps_no_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """Young it keeps its slots, and the tick names it; later they are asked for all the same."""
    recovering = Recovering(tmp_path)
    keys = recovering.slots(3)
    run_id = unfinished(recovering, status, keys)
    sentence = said(recovering)
    assert f"{keys[0]} and 2 more for run {run_id} ({status} since 20" in sentence
    monkeypatch.setattr("fuploader_dagster.sensors.busy_runs.YOUNG_SECONDS", 0.0)
    assert recovering.tick(2) == [keys]


@pytest.mark.parametrize("status", NO_PROCESS)
def test_while_a_lock_of_its_slots_is_held_a_run_keeps_them_however_old_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    monkeypatch.setattr("fuploader_dagster.sensors.busy_runs.YOUNG_SECONDS", 0.0)
    recovering = Recovering(tmp_path)
    keys = recovering.slots(2)
    run_id = unfinished(recovering, status, keys)
    with PartitionLock(recovering.settings, keys[1]) as receipt:
        assert receipt is None
        assert run_id in said(recovering)
    assert recovering.tick(2) == [keys]


def test_what_waits_in_the_queue_is_not_asked_for_a_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuploader_dagster.sensors.busy_runs.YOUNG_SECONDS", 0.0)
    recovering = Recovering(tmp_path)
    keys = recovering.slots(1)
    run_id = unfinished(recovering, "QUEUED", keys)
    assert f"{keys[0]} for run {run_id} (QUEUED since" in said(recovering)


def test_a_run_that_still_says_something_keeps_its_slots(tmp_path: Path) -> None:
    """Its status is old, its last event is not: it pauses between two attempts."""
    recovering = Recovering(tmp_path)
    keys = recovering.slots(1)
    run_id = unfinished(recovering, "STARTED", keys)
    instance = recovering.instance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fuploader_dagster.sensors.busy_runs.YOUNG_SECONDS", 0.0)
        assert recovering.tick() == [keys]
    run = instance.get_run_by_id(run_id)
    assert run is not None
    instance.report_engine_event("the next attempt begins in a moment", run)
    assert recovering.tick(1) == []
