"""A paused pipeline in Dagster: no runs, ticks that say who paused it, jobs, no alerts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fuploader_dagster import build_definitions
from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.control.wishes import PARTS, Part, current, wish
from fuploader_dagster.definitions import build_resources
from fuploader_dagster.health.alert_look import Draining, look
from fuploader_dagster.health.doctor import pauses
from fuploader_dagster.health.status import status_of
from fuploader_dagster.intake.supervisor import supervisor_for
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.sensors.recovery_schedule import build_recovery_schedule
from fuploader_dagster.settings.pipeline import Pipeline
from tests.settings import pipeline, sealed
from tests.ticking import Ticking, new_keys

REASON = "the index is rebuilt"


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline whose workers are nobody's business here."""
    made = pipeline(
        tmp_path,
        source=EmbeddedQueue(path=tmp_path / "queue"),
        min_free_bytes=0,
        drain_by="command",
        recovery_base_seconds=100.0,
    )
    yield made
    supervisor_for(made.intake()).stop()


def say(settings: Pipeline, paused: bool, *, parts: tuple[Part, ...] = PARTS) -> None:
    wish(settings, parts, paused=paused, by="ada", reason=REASON)


def queued(settings: Pipeline, ticking: Ticking, *, seconds_ago: float = 0.0) -> list[str]:
    keys = [
        sealed(settings, {f"{n}.json": b"x" * n}, seconds_ago=seconds_ago).seal.partition
        for n in range(1, 4)
    ]
    ticking.store().add_sealed(keys)
    return keys


def said(result: dg.SensorResult) -> str:
    assert result.skip_reason is not None
    return str(result.skip_reason.skip_message)


def test_while_the_shipping_is_paused_a_tick_asks_for_no_run_and_after_it_for_all(
    settings: Pipeline,
) -> None:
    ticking = Ticking(settings)
    keys = queued(settings, ticking)
    say(settings, True, parts=("shipping",))
    for _ in range(2):
        result = ticking.tick()
        assert not result.run_requests
        assert new_keys(result) == []
        assert "3 sealed slots wait for the end of the pause" in said(result)
        assert "shipping is paused since" in said(result)
        assert f"by ada: {REASON}" in said(result)
    say(settings, False)
    result = ticking.tick()
    assert new_keys(result) == keys
    assert len(result.run_requests or []) == 1


def test_while_only_the_intake_is_paused_runs_are_asked_for(settings: Pipeline) -> None:
    ticking = Ticking(settings)
    keys = queued(settings, ticking)
    say(settings, True, parts=("intake",))
    assert new_keys(ticking.tick()) == keys


def test_the_queue_asset_gets_what_is_wanted_once_for_each_change(settings: Pipeline) -> None:
    ticking = Ticking(settings)

    def observed() -> list[Any]:
        events = ticking.tick().asset_events or []
        return [one for one in events if isinstance(one, dg.AssetObservation)]

    assert observed() == []
    say(settings, True, parts=("intake",))
    (one,) = observed()
    assert one.asset_key == ticking.names.queue
    assert REASON in str(one.metadata["intake"].value)
    assert one.metadata["shipping"].value == "runs"
    assert observed() == []
    say(settings, False)
    (one,) = observed()
    assert one.metadata["intake"].value == "runs"


def test_recovery_asks_for_nothing_while_the_shipping_is_paused(
    settings: Pipeline, tmp_path: Path
) -> None:
    keys = queued(settings, Ticking(settings), seconds_ago=5_000)
    instance = dg.DagsterInstance.local_temp(str(tmp_path))
    instance.add_dynamic_partitions(Names.of(settings).partition_set, keys)
    schedule = build_recovery_schedule(settings, running=True)

    def tick() -> Any:
        noon = datetime(2026, 11, 21, 12, 1, tzinfo=timezone.utc)
        with dg.build_schedule_context(
            instance, scheduled_execution_time=noon, resources=build_resources(settings)
        ) as context:
            return schedule(context)

    say(settings, True)
    answer = tick()
    assert isinstance(answer, dg.SkipReason)
    assert REASON in answer.skip_message
    say(settings, False)
    assert not isinstance(tick(), dg.SkipReason)


def test_jobs_pause_and_resume_with_what_the_launchpad_shows_by_default(
    settings: Pipeline,
) -> None:
    repository = build_definitions(settings).get_repository_def()
    pause, resume = (repository.get_job(f"docs_{one}") for one in ("pause", "resume"))
    assert pause.execute_in_process().success
    assert [current(settings).of(part).paused for part in PARTS] == [True, True]
    assert current(settings).intake.by.startswith("run ")
    config = {"ops": {"docs_resume_op": {"config": {"what": "shipping", "by": "bob"}}}}
    assert resume.execute_in_process(run_config=config).success
    assert [current(settings).of(part).paused for part in PARTS] == [True, False]
    assert current(settings).shipping.by == "bob"


def test_a_paused_drain_that_stands_still_is_no_alert(settings: Pipeline) -> None:
    now = time.time()
    settings.layout.root.mkdir(parents=True)

    def kinds() -> list[str]:
        found = look(settings, Draining(wanted=True), [], now=now)
        return [one.kind for one in found.troubles]

    assert kinds() == ["drain"]  # no worker is running
    say(settings, True, parts=("shipping",))
    assert kinds() == ["drain"]
    say(settings, True)
    assert kinds() == []
    endings = look(settings, Draining(wanted=True), [], now=now).endings
    assert REASON in endings["drain"]
    say(settings, False)
    assert kinds() == ["drain"]


def test_status_says_what_is_wanted_and_what_is_done(settings: Pipeline) -> None:
    intake = status_of(settings)["parts"]["intake"]
    assert (intake["wanted"], intake["actual"]) == ("runs", "stands still")
    say(settings, True)
    for part in status_of(settings)["parts"].values():
        assert (part["wanted"], part["actual"]) == ("paused", "stands still")
        assert (part["by"], part["reason"]) == ("ada", REASON)
        assert part["since"] == pytest.approx(time.time(), abs=600)


def test_the_doctor_names_a_pause_and_calls_a_damaged_file_wrong(settings: Pipeline) -> None:
    assert pauses(settings).verdict == "good"
    say(settings, True)
    found = pauses(settings)
    assert (found.verdict, REASON in found.found) == ("warning", True)
    say(settings, False)
    assert pauses(settings).verdict == "good"
    for path in settings.layout.root.parent.parent.glob("state.sqlite*"):
        path.unlink()
    settings.layout.pause.write_bytes(b"{")
    assert pauses(settings).verdict == "wrong"
