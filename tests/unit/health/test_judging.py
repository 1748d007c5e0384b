"""Each judgement fails when its trouble is there, passes when it is not, and says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fuploader_dagster.cli.status import _print_status
from fuploader_dagster.contracts.source import Depth
from fuploader_dagster.control.wishes import wish
from fuploader_dagster.dead_letters.letters import DeadLetterBox
from fuploader_dagster.delivery.store_trouble import (
    end_refusal,
    end_trouble,
    note_refusal,
    note_trouble,
)
from fuploader_dagster.errors import StateUnavailable
from fuploader_dagster.health import doctor
from fuploader_dagster.health.figures import Queue
from fuploader_dagster.health.judging import Judgement, Look, judge, look
from fuploader_dagster.health.status import part_status, status_of
from fuploader_dagster.intake.worker_status import StatusReport, WorkerStatus
from fuploader_dagster.processing.envelope import encode
from fuploader_dagster.settings.pipeline import Pipeline
from tests.settings import sealed
from tests.unit.dead_letters.test_letters import letter
from tests.unit.health.test_figures import FILES, embedded, reading

CHECKS = (
    "being_drained", "keeping_up", "disk_room", "nothing_lost", "store_reachable",
    "dead_letters_below_limit",
)  # fmt: skip


def judged(settings: Pipeline, check: str, waiting: int = 0, **values: Any) -> Judgement:
    return of(settings, look(settings, Queue(Depth(waiting))), check, **values)


def of(settings: Pipeline, seen: Look, check: str, **values: Any) -> Judgement:
    found = {one.check: one for one in judge(settings, replace(seen, **values))}
    assert tuple(found) == CHECKS
    for one in found.values():
        assert one.diagnosis().verdict == (
            "good" if one.passed else "wrong" if one.serious else "warning"
        )
    return found[check]


def with_workers(seen: Look, workers: Sequence[WorkerStatus]) -> Look:
    return replace(seen, figures=msgspec.structs.replace(seen.figures, workers=workers))


def draining(updated_at: float) -> WorkerStatus:
    return WorkerStatus(worker=0, pid=1, pid_namespace=1, doing="draining", updated_at=updated_at)


def test_a_pipeline_that_is_well_passes_all(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    assert all(one.passed for one in judge(settings, look(settings)))
    sealed(settings, FILES)
    assert all(one.passed for one in judge(settings, look(settings)))


def test_messages_that_nobody_drains_fail(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    found = judged(settings, "being_drained", 3)
    assert not found.passed
    assert "3 messages wait in" in found.found
    assert "nobody drains it: no worker is running" in found.found
    assert "drain sensor" in found.hint
    assert judged(settings, "being_drained", 0).passed
    report = StatusReport(settings.layout, 0)
    report.doing("draining")
    assert judged(settings, "being_drained", 3).passed
    report.remove()
    assert not judged(settings, "being_drained", 3).passed
    by_command = embedded(tmp_path, drain_by="command")
    assert "fuploader drain" in judged(by_command, "being_drained", 3).hint


def test_a_worker_in_trouble_is_named_and_a_pause_is_no_mistake(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    seen = look(settings, Queue(Depth(7)))
    worker = WorkerStatus(
        worker=0, pid=1, pid_namespace=1, doing="trouble", updated_at=1.0, problem="no broker"
    )
    found = of(settings, with_workers(seen, [worker]), "being_drained")
    assert "nobody drains it: worker 0: no broker" in found.found
    wish(settings, ["intake"], paused=True, by="ann", reason="a move")
    paused = judged(settings, "being_drained", 7)
    assert (paused.passed, paused.serious) == (False, False)
    assert "by ann: a move" in paused.found
    assert paused.hint == "`fuploader resume docs` ends the pause"
    assert judged(settings, "being_drained", 0).passed


def test_other_nodes_may_drain_and_a_queue_that_does_not_answer_may_not_be_drained(
    tmp_path: Path,
) -> None:
    several = embedded(tmp_path, node_id="a")
    seen = look(several, Queue(Depth(5, in_hand=9)))
    assert of(several, seen, "being_drained").passed
    assert not of(embedded(tmp_path), seen, "being_drained").passed
    silent = look(several, Queue(None, "no broker at amqp://x"))
    found = of(several, silent, "being_drained")
    assert not found.passed
    assert "no broker at amqp://x" in found.found


def test_what_waits_too_long_for_the_store_fails(tmp_path: Path) -> None:
    settings = embedded(tmp_path, seal_age_seconds=60, late_after_seconds=100)
    sealed(settings, FILES, seconds_ago=150)
    assert judged(settings, "keeping_up").passed
    sealed(settings, FILES, slot=1, seconds_ago=170)
    found = judged(settings, "keeping_up")
    assert not found.passed
    assert found.serious
    assert "longer than seal_age_seconds and late_after_seconds together (160 s)" in found.found
    wish(settings, ["shipping"], paused=True, by="ann", reason="the bucket moves")
    paused = judged(settings, "keeping_up")
    assert not paused.serious
    assert "the bucket moves" in paused.found


@pytest.mark.parametrize(
    ("before", "drained", "after", "passed"),
    [
        (1_000, 60_000, 50_000, True),  # 16.7 a second: an hour's work, but see below
        (1_000, 60_000, 10_000, True),
        (60_000, 60_000, 50_000, True),  # it shrinks
        (1_000, 60_000, 16_000, False),
        (1_000, 0, 2_000, False),
    ],
)
def test_a_queue_that_grows_faster_than_it_is_drained_fails(
    tmp_path: Path, before: int, drained: int, after: int, passed: bool
) -> None:
    late = 3_600.0 if after == 50_000 else 900.0
    settings = embedded(tmp_path, late_after_seconds=late)
    seen = look(settings, Queue(Depth(after)))
    begun = reading(seen.figures.at - 3_600, waiting=before, messages_in=0)
    figures = msgspec.structs.replace(seen.figures, workers=[draining(seen.figures.at)])
    assert figures.snapshot is not None
    figures = msgspec.structs.replace(
        figures, snapshot=replace(figures.snapshot, stored_messages=drained)
    )
    found = of(settings, seen, "keeping_up", figures=figures, before=begun)
    assert found.passed is passed
    assert passed or "more than 3,600 s ago" in found.found
    young = msgspec.structs.replace(begun, at=seen.figures.at - 60)
    assert of(settings, seen, "keeping_up", figures=figures, before=young).passed


def test_while_nobody_drains_what_waits_nobody_says_that_it_is_stored_in_time(
    tmp_path: Path,
) -> None:
    settings = embedded(tmp_path)
    assert judged(settings, "keeping_up", 0).passed
    found, drained = judged(settings, "keeping_up", 3), judged(settings, "being_drained", 3)
    assert (found.passed, found.serious) == (False, False)
    assert found.found.endswith(f"cannot be told: {drained.found}")
    assert found.hint == drained.hint
    silent = of(settings, look(settings, Queue(None, "no broker at amqp://x")), "keeping_up")
    assert not silent.passed
    assert "no broker at amqp://x" in silent.found
    report = StatusReport(settings.layout, 0)
    report.doing("draining")
    assert judged(settings, "keeping_up", 3).passed
    report.remove()
    wish(settings, ["intake"], paused=True, by="ann", reason="a move")
    assert "by ann: a move" in judged(settings, "keeping_up", 3).found
    assert judged(settings, "keeping_up", 0).passed
    sealed(settings, FILES, seconds_ago=1e6)
    late = judged(settings, "keeping_up", 3)
    assert late.serious
    assert "longer than seal_age_seconds" in late.found


def test_a_worker_that_has_not_reported_for_long_drains_nothing(tmp_path: Path) -> None:
    """It may hang in a parser: the alert says so, so the checks do."""
    settings = embedded(tmp_path)
    seen = look(settings, Queue(Depth(7)))
    now = seen.figures.at
    for checked in ("being_drained", "keeping_up"):
        hanging = of(settings, with_workers(seen, [draining(now - 61)]), checked)
        assert not hanging.passed
        assert "1 worker has not reported for 60 s or longer" in hanging.found
        assert of(settings, with_workers(seen, [draining(now - 59)]), checked).passed
    for age, does in ((61, "stands still"), (1, "works")):
        part = part_status("intake", seen.figures.wishes, [draining(now - age)], settings.layout)
        assert part["actual"] == does
    both = with_workers(seen, [draining(now - 61), draining(now)])
    assert of(settings, both, "being_drained").found == "1 worker takes messages; 7 wait"


def test_what_only_the_state_store_knows_does_not_pass_while_it_does_not_answer(
    tmp_path: Path,
) -> None:
    settings = embedded(tmp_path)
    seen = with_workers(look(settings, Queue(Depth(7))), [draining(2.0**40)])
    unknown = msgspec.structs.replace(
        seen.figures, snapshot=None, state_trouble=StateUnavailable("no redis")
    )
    for checked in ("keeping_up", "nothing_lost"):
        assert of(settings, seen, checked).passed
        found = of(settings, seen, checked, figures=unknown)
        assert (found.passed, found.serious) == (False, False)
        assert "the state store" in found.found
        assert found.hint == "see what `fuploader doctor` says of the state store"
    nothing = msgspec.structs.replace(unknown, queue=Queue(Depth(0)))
    assert of(settings, seen, "keeping_up", figures=nothing).passed
    shutil.rmtree(sealed(settings, FILES).directory)
    lost = of(settings, look(settings), "nothing_lost", figures=unknown)
    assert lost.serious


def test_a_full_disk_fails_and_one_that_fills_warns(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    settings.layout.root.mkdir(parents=True)
    assert judged(settings, "disk_room").passed
    full = embedded(tmp_path, min_free_bytes=1 << 62)
    found = judged(full, "disk_room")
    assert (found.passed, found.serious) == (False, True)
    assert "min_free_bytes" in found.found
    seen = look(settings, Queue(Depth(0)))
    free = seen.figures.space.free_bytes
    filling = reading(seen.figures.at - 3_600, free_bytes=free + free // 10)
    warned = of(settings, seen, "disk_room", before=filling)
    assert (warned.passed, warned.serious) == (False, False)
    assert "the drain pauses for lack of space in" in warned.found
    slowly = reading(seen.figures.at - 3_600, free_bytes=free + free // 10_000)
    assert "as it fills now" in of(settings, seen, "disk_room", before=slowly).found
    assert of(settings, seen, "disk_room", before=slowly).passed


def test_a_slot_that_somebody_removed_fails_and_the_hint_says_how_to_accept_it(
    tmp_path: Path,
) -> None:
    settings = embedded(tmp_path)
    slot = sealed(settings, FILES)
    assert judged(settings, "nothing_lost").passed
    shutil.rmtree(slot.directory)
    found = judged(settings, "nothing_lost")
    assert (found.passed, found.serious) == (False, True)
    assert slot.seal.partition in found.found
    assert found.numbers["lost"] == 20
    (path,) = settings.layout.seal_log.iterdir()
    assert f"seal-log/{path.name}" in found.hint
    path.unlink()
    assert judged(settings, "nothing_lost").passed


def test_a_store_that_does_not_answer_fails(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    note_trouble(settings.layout, "connection refused")
    found = judged(settings, "store_reachable")
    assert not found.passed
    assert "connection refused" in found.found
    end_trouble(settings.layout)
    assert judged(settings, "store_reachable").passed


def test_a_store_that_was_reached_and_refuses_us_fails_with_what_it_said(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    note_refusal(settings.layout, "403 AccessDenied (check the key)", by_upload=True)
    found = judged(settings, "store_reachable")
    assert (found.passed, found.serious) == (False, True)
    assert "was reached, but refuses us: 403 AccessDenied (check the key)" in found.found
    note_trouble(settings.layout, "connection refused")
    assert "does not answer: connection refused" in judged(settings, "store_reachable").found
    end_trouble(settings.layout)
    end_refusal(settings.layout)
    assert judged(settings, "store_reachable").passed


def test_too_many_dead_letters_within_an_hour_warn(tmp_path: Path) -> None:
    settings = embedded(tmp_path, max_dead_letters_per_hour=1)
    box = DeadLetterBox(settings.layout, 0)
    box.keep([letter(b"1")])
    assert judged(settings, "dead_letters_below_limit").passed
    box.keep([letter(b"2")])
    found = judged(settings, "dead_letters_below_limit")
    assert (found.passed, found.serious) == (False, False)
    assert found.found == "2 dead letters within the last hour; the limit is 1"


def test_status_and_doctor_say_what_the_checks_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = embedded(tmp_path)
    with closing(settings.source.publisher()) as publisher:
        publisher.publish([(encode("a.json", b"1", "bytes"), {})])
    slot = sealed(settings, FILES)
    shutil.rmtree(slot.directory)
    found = {one.check: one for one in judge(settings, look(settings))}
    failed = [one for one in found.values() if not one.passed]
    assert [one.check for one in failed] == ["being_drained", "keeping_up", "nothing_lost"]
    status = status_of(settings)
    assert [one["check"] for one in status["judgements"]] == list(CHECKS)
    _print_status(status)
    printed = " ".join(capsys.readouterr().out.split())
    diagnoses = {one.check: one for one in doctor.judgements(settings)}
    for one in failed:
        assert " ".join(f"{one.found}. What to do: {one.hint}".split()) in printed
        assert (diagnoses[one.check].found, diagnoses[one.check].hint) == (one.found, one.hint)
    assert diagnoses["being_drained"].verdict == "warning"
    assert diagnoses["nothing_lost"].verdict == "wrong"
    assert diagnoses["keeping_up"].verdict == "warning"
