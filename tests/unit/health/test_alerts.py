"""What is told is told once, at its beginning and at its end, whatever looks and posts do."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from fuploader_dagster.dead_letters.counts import DeadLetterCounts, write_worker_counts
from fuploader_dagster.delivery.failures import Failure, note_failure
from fuploader_dagster.delivery.processor_trouble import (
    end_processor_trouble,
    note_processor_trouble,
)
from fuploader_dagster.delivery.sink_notes import SinkNotes
from fuploader_dagster.delivery.store_trouble import end_trouble, note_trouble
from fuploader_dagster.disk.durable import make_dirs
from fuploader_dagster.errors import DiskFailed
from fuploader_dagster.health import alert_look
from fuploader_dagster.health.alert_look import (
    Draining,
    FailedRun,
    damage,
    disk_trouble,
    drain_trouble,
    letter_trouble,
    look,
    slot_trouble,
    store_trouble,
)
from fuploader_dagster.health.alert_memory import SPARE_BYTES, read_memory, write_memory
from fuploader_dagster.health.alerts import Findings, Kind, Memory, Trouble, due, noticed, told
from fuploader_dagster.health.status import status_of
from fuploader_dagster.intake.worker_status import Doing, WorkerStatus
from fuploader_dagster.slots.slot import SlotOwner
from tests.processors_for_tests import Script
from tests.settings import pipeline, sealed
from tests.sinks_for_tests import RowsFile

NOW = 1_764_000_000.0
MINUTE = 60.0


def trouble(
    kind: Kind = "drain", *causes: str, since: float = NOW, sentence: str = "broken"
) -> Trouble:
    return Trouble(kind, sentence, since, causes)


@dataclass
class Person:
    """Looks once a minute; whoever posts may fail."""

    memory: Memory = field(default_factory=Memory)
    heard: list[str] = field(default_factory=list)
    now: float = NOW

    def looks(self, *troubles: Trouble, delivers: bool = True, **values: object) -> list[str]:
        """What is heard after a look."""
        looked = Findings(troubles, **values)  # type: ignore[arg-type]
        self.memory = noticed(self.memory, looked, self.now)
        # What outlives the process is only what can be written down.
        self.memory = msgspec.json.decode(msgspec.json.encode(self.memory), type=Memory)
        heard = []
        for alert in list(due(self.memory, self.now)):
            if not delivers:
                break
            heard.append(f"{alert.state} {alert.episode.kind}")
            self.memory = told(self.memory, alert, self.now)
        self.now += MINUTE
        return heard


DRAIN, DISK = trouble("drain"), trouble("disk")

TABLE: dict[str, list[tuple[tuple[Trouble, ...], list[str]]]] = {
    "told once however long it lasts, and its end once": [
        ((DISK,), ["trouble disk"]),
        ((DISK,), []),
        ((DISK,), []),
        ((), ["over disk"]),
        ((), []),
    ],
    "what passes within its grace calls nobody": [((DRAIN,), []), ((), []), ((), [])],
    "what lasts longer does": [((DRAIN,), []), ((DRAIN,), ["trouble drain"]), ((DRAIN,), [])],
    "how long it has lasted may be known at the first look": [
        ((trouble("drain", since=NOW - MINUTE),), ["trouble drain"])
    ],
    "what comes again before its end was told is the same trouble": [
        ((DRAIN,), []),
        ((DRAIN,), ["trouble drain"]),
        ((), []),
        ((DRAIN,), []),
        ((), []),
        ((), ["over drain"]),
    ],
    "what comes again later is told again": [
        ((DISK,), ["trouble disk"]),
        ((), ["over disk"]),
        ((DISK,), ["trouble disk"]),
    ],
    "each kind on its own": [
        ((DISK, trouble("dead_letters")), ["trouble disk", "trouble dead_letters"]),
        ((DISK,), ["over dead_letters"]),
    ],
    "another cause is told while the first lasts, and once": [
        ((trouble("failed_slots", "a"),), ["trouble failed_slots"]),
        ((trouble("failed_slots", "b", "a"),), ["trouble failed_slots"]),
        ((trouble("failed_slots", "b"),), []),
        ((trouble("failed_slots", "a"),), []),
        ((), ["over failed_slots"]),
    ],
    "a run that failed has no end, and its like are not told within the hour": [
        ((trouble("failed_run", "a"),), ["trouble failed_run"]),
        ((), []),
        ((trouble("failed_run", "a"), trouble("failed_run", "b")), ["trouble failed_run"]),
        ((), []),
    ],
}


@pytest.mark.parametrize("steps", TABLE.values(), ids=TABLE)
def test_each_trouble_is_told_once_and_its_end_once(
    steps: list[tuple[tuple[Trouble, ...], list[str]]],
) -> None:
    person = Person()
    assert [person.looks(*found) for found, _ in steps] == [heard for _, heard in steps]


def test_what_could_not_be_delivered_is_told_later_even_when_it_is_over() -> None:
    person = Person()
    assert person.looks(DISK, delivers=False) == []
    assert person.looks(DISK, delivers=False) == []
    assert person.looks(delivers=False) == []
    assert person.looks() == ["trouble disk", "over disk"]
    assert person.looks() == []


def test_a_kind_that_could_not_be_looked_at_is_neither_over_nor_new() -> None:
    person = Person()
    assert person.looks(DISK) == ["trouble disk"]
    assert person.looks(unknown=("disk",)) == []
    assert person.looks(DISK) == []
    assert person.looks() == ["over disk"]


def test_a_failed_run_is_told_again_after_an_hour_and_then_forgotten() -> None:
    person, run = Person(), trouble("failed_run", "a")
    assert person.looks(run) == ["trouble failed_run"]
    assert [person.looks(run) for _ in range(59)] == [[]] * 59
    assert person.looks(run) == ["trouble failed_run"]
    assert [person.looks() for _ in range(60)] == [[]] * 60
    assert person.memory.episodes == {}


def test_memory_is_bounded_by_whatever_number_of_causes() -> None:
    person = Person()
    for number in range(500):
        person.looks(trouble("failed_slots", *(f"{number} {n}" for n in range(50))))
    assert len(msgspec.json.encode(person.memory)) < SPARE_BYTES
    assert person.looks(trouble("failed_slots", "one more")) == []


def test_an_alert_is_one_line_and_says_whose_since_when_and_why() -> None:
    memory = noticed(Memory(), Findings((trouble("disk", sentence="a\x1b[2J\nb\u202ec"),)), NOW)
    (alert,) = due(memory, NOW)
    message = alert.message(pipeline="docs", node="n1")
    assert message["text"] == "docs on n1: a\\x1b[2J\\nb\\u202ec (since 2025-11-24 16:00 UTC)"
    assert (message["alert"], message["state"]) == ("disk", "trouble")
    assert message["since"] == "2025-11-24T16:00:00+00:00"


def status(doing: Doing, worker: int = 0, problem: str = "", age: float = 0.0) -> WorkerStatus:
    return WorkerStatus(
        worker=worker,
        pid=1,
        pid_namespace=1,
        doing=doing,
        updated_at=NOW - age,
        problem=problem,
        problem_since=NOW - 90 if problem else 0.0,
    )


DRAINS, TROUBLED = status("draining"), status("trouble", problem="no broker")
PAUSED = status("paused", problem="12 bytes free")
ON, OFF = Draining(wanted=True), Draining(wanted=False)
FAILING = Draining(wanted=True, problem="Redis is away", since=NOW - 100)


@pytest.mark.parametrize(
    ("draining", "workers", "said", "since"),
    [
        (ON, [DRAINS], "", 0),
        (ON, [TROUBLED], "no broker", NOW - 90),
        (ON, [TROUBLED, status("starting", 1)], "no broker", NOW - 90),
        (ON, [TROUBLED, status("draining", 0)], "", 0),  # of one place, the newer drains
        (ON, [], "no worker is running", NOW),
        (ON, [status("draining", age=200)], "has not reported", NOW - 200),
        (ON, [PAUSED], "", 0),  # the disk's, and told as such
        (FAILING, [PAUSED], "", 0),
        (FAILING, [], "Redis is away", NOW - 100),
        (FAILING, [DRAINS], "Redis is away", NOW - 100),
        (OFF, [], "", 0),
        (OFF, [TROUBLED], "", 0),
    ],
)
def test_a_drain_that_stands_still_is_trouble_unless_it_is_switched_off(
    tmp_path: Path, draining: Draining, workers: list[WorkerStatus], said: str, since: float
) -> None:
    found = drain_trouble(pipeline(tmp_path), draining, workers, NOW)
    assert bool(found) == bool(said)
    if found:
        assert said in found.sentence
        assert found.since == since


def test_a_trouble_that_was_told_ends_with_the_word_that_the_drain_was_switched_off(
    tmp_path: Path,
) -> None:
    settings, person = pipeline(tmp_path, min_free_bytes=0, min_free_inodes=0), Person()
    memory = noticed(Memory(), look(settings, ON, [], now=NOW), NOW)
    memory = noticed(memory, look(settings, ON, [], now=NOW + MINUTE), NOW + MINUTE)
    (alert,) = due(memory, NOW + MINUTE)
    assert alert.episode.kind == "drain"
    memory = told(memory, alert, NOW + MINUTE)
    for minute in (2, 3):
        person.now = NOW + minute * MINUTE
        memory = noticed(memory, look(settings, OFF, [], now=person.now), person.now)
    (alert,) = due(memory, person.now)
    assert "switched off" in alert.message(pipeline="docs", node="n")["text"]


def failure(attempts: int, error: str = "no route to store 17") -> Failure:
    return Failure(
        partition="20260101T000000000Z-n-s0-000001",
        stage="upload",
        attempts=attempts,
        failed_at=NOW - 5,
        error=error,
    )


RUN = FailedRun("run-1", "Steps failed.")


@pytest.mark.parametrize(
    ("failures", "runs", "going_on", "causes"),
    [
        ([], [], False, None),
        ([failure(2)], [], False, None),  # two of three attempts: the run goes on
        ([failure(3)], [], False, ("no route to store …",)),
        ([failure(1)], [RUN], False, ("no route to store …",)),  # for good at once
        ([failure(1)], [], True, ()),  # an old one's next attempt, or a new one's first
        ([failure(3), failure(3, "no route to store 18")], [], True, ("no route to store …",)),
        ([], [], True, None),
    ],
)
def test_slots_count_as_failed_when_their_run_gave_them_up(
    tmp_path: Path,
    failures: list[Failure],
    runs: list[FailedRun],
    going_on: bool,
    causes: tuple[str, ...] | None,
) -> None:
    settings = pipeline(tmp_path, max_retries=2)
    found = slot_trouble(failures, runs, settings, NOW + 3600, going_on=going_on)
    assert (found.causes if found else None) == causes
    if found:
        assert found.details["slots_waiting"] == len(failures)
        assert "data is kept" in found.sentence


def test_dead_letters_above_the_mark_are_told_with_their_reasons(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, max_dead_letters_per_hour=2)
    counts = DeadLetterCounts()
    make_dirs(settings.layout.dead_letters)
    for number, expected in ((2, False), (1, True)):
        counts.add(["it is no JSON"] * number, NOW)
        write_worker_counts(settings.layout.dead_letters / "counts-w0.json", counts)
        assert bool(found := letter_trouble(settings, NOW)) is expected
    assert found
    assert found.details == {"last_hour": 3, "reasons": {"it is no JSON": 3}}
    assert letter_trouble(settings, NOW + 2 * 3600) is None


def test_too_little_room_is_told_also_where_no_worker_runs(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, min_free_bytes=1 << 60)
    assert disk_trouble(settings, NOW, paused=False) is None  # nothing was drained here yet
    make_dirs(settings.layout.root)
    found = disk_trouble(settings, NOW, paused=False)
    assert found
    assert "min_free_bytes" in found.sentence
    assert not damage(settings.layout, NOW)


def test_a_damaged_directory_that_a_worker_found_is_told_until_somebody_removes_it(
    tmp_path: Path,
) -> None:
    settings = pipeline(tmp_path)
    with SlotOwner(settings, 0) as slot:
        slot.add("a.json", b"content")
        slot.commit()
    segment = settings.layout.active(0, 1) / "segment.tar"
    segment.write_bytes(segment.read_bytes().replace(b"content", b"c0ntent"))
    with SlotOwner(settings, 0):
        pass
    make_dirs(settings.layout.set_aside / "1-processed-slot-0-dir-000002")  # made again by itself
    (settings.layout.set_aside / "1-slot-0-dir-000003-notes.txt").touch()
    (aside,) = settings.layout.set_aside.glob("*-slot-0-dir-000001")
    found = damage(settings.layout, NOW)
    assert found
    assert str(settings.layout.set_aside) in found.sentence
    assert aside.name in found.sentence
    assert found.details == {"damaged": [{"set_aside": f"set-aside/{aside.name}"}]}
    assert status_of(settings)["set_aside"] == [str(aside)]
    shutil.rmtree(aside)
    assert damage(settings.layout, NOW) is None
    assert status_of(settings)["set_aside"] == []


def test_a_store_that_does_not_answer_is_told_as_such_and_its_runs_are_not(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, min_free_bytes=0, min_free_inodes=0)
    make_dirs(settings.layout.root)
    assert store_trouble(settings) is None
    note_trouble(settings.layout, "no route to it")
    found = look(settings, OFF, [RUN], now=NOW)
    assert [one.kind for one in found.troubles] == ["store"]
    assert "no route to it" in found.troubles[0].sentence
    end_trouble(settings.layout)
    assert [one.kind for one in look(settings, OFF, [RUN], now=NOW).troubles] == ["failed_run"]


def test_a_processor_that_works_for_no_item_is_told_as_such_and_its_slots_are_not(
    tmp_path: Path,
) -> None:
    settings = pipeline(tmp_path, min_free_bytes=0, min_free_inodes=0, process=Script())
    make_dirs(settings.layout.root)
    note_processor_trouble(settings.layout, "http://handler works for no item: refused")
    note_failure(settings.layout, "one", stage="process", error="refused", now=NOW)
    found = look(settings, OFF, [RUN], now=NOW)
    assert [one.kind for one in found.troubles] == ["processor"]
    assert "http://handler works for no item" in found.troubles[0].sentence
    note_failure(settings.layout, "two", stage="upload", error="no such bucket", now=NOW)
    found = look(settings, OFF, [RUN], now=NOW)
    assert [one.kind for one in found.troubles] == ["processor", "failed_slots"]
    end_processor_trouble(settings.layout)
    assert "processor" not in [one.kind for one in look(settings, OFF, [], now=NOW).troubles]


def test_a_sink_that_takes_nothing_is_told_with_its_error_and_ends_with_it(tmp_path: Path) -> None:
    sinks = {name: RowsFile(path=tmp_path / f"{name}.sqlite") for name in ("rows", "more")}
    settings = pipeline(tmp_path, min_free_bytes=0, min_free_inodes=0, sinks=sinks)
    notes = SinkNotes(settings.layout, "rows")
    notes.note_trouble("there is no such table")
    (trouble,) = look(settings, OFF, [RUN], now=NOW).troubles
    assert (trouble.kind, trouble.causes) == ("sinks", ("rows",))
    assert "sink rows (rows in rows.sqlite): there is no such table" in trouble.sentence
    SinkNotes(settings.layout, "more").failures.note("one", stage="store rows", error="e", now=NOW)
    (trouble,) = look(settings, OFF, [], now=NOW).troubles
    assert trouble.causes == ("rows", "more")
    notes.end_trouble()
    SinkNotes(settings.layout, "more").settle("one")
    assert look(settings, OFF, [], now=NOW).troubles == ()


def test_a_look_that_fails_hides_nothing_that_others_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> DeadLetterCounts:
        raise DiskFailed("the disk failed")

    settings = pipeline(tmp_path, min_free_bytes=1 << 60)
    make_dirs(settings.layout.root)
    monkeypatch.setattr(alert_look, "read_counts", fail)
    found = look(settings, OFF, [], now=NOW)
    assert [one.kind for one in found.troubles] == ["disk"]
    assert list(found.unknown) == ["dead_letters"]


def test_memory_outlives_a_restart_and_damage_to_it_tells_again(tmp_path: Path) -> None:
    layout = pipeline(tmp_path).layout
    make_dirs(layout.root)
    assert read_memory(layout) is None
    memory = noticed(Memory(), Findings((DISK,)), NOW)
    write_memory(layout, memory)
    assert read_memory(layout) == memory
    assert layout.alerts.stat().st_size == SPARE_BYTES
    layout.alerts.write_bytes(layout.alerts.read_bytes()[:40])
    assert read_memory(layout) is None


def test_every_kind_of_alert_is_in_the_table_that_operators_read() -> None:
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text("utf-8")
    assert [kind for kind in get_args(Kind) if f"| `{kind}` |" not in page] == []


def test_messages_that_went_missing_are_told_and_the_end_too(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    slots = [sealed(settings, {"a": b"a", "b": b"b"}, slot=slot) for slot in range(2)]

    def looked() -> list[str]:
        return [one.kind for one in look(settings, Draining(wanted=False), [], now=NOW).troubles]

    assert looked() == []
    aside = tmp_path / "elsewhere"
    slots[0].directory.rename(aside)
    assert looked() == ["lost"]
    found = alert_look.loss(settings, NOW)
    assert found is not None
    assert "2 acknowledged messages are neither on the disk nor stored" in found.sentence
    assert found.causes == (f"slot {slots[0].seal.partition}",)
    aside.rename(slots[0].directory)
    assert looked() == []
