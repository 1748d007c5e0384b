"""Figures say what is on the disk, in the queue and in the state store, and change nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fuploader_dagster.contracts.state import Commit, SlotCount
from fuploader_dagster.dead_letters.letters import (
    DeadLetterBox,
    note_requeued,
    numbered_dead_letters,
    sink_writer,
)
from fuploader_dagster.delivery.ship import pack_partitions, upload_partitions
from fuploader_dagster.errors import SourceUnavailable
from fuploader_dagster.health import remembered
from fuploader_dagster.health.figures import (
    Figures,
    Queue,
    ask_queue,
    disk_days_left,
    figures_of,
    rates,
    reading_of,
)
from fuploader_dagster.health.remembered import KEPT_SECONDS, Reading, readings, remember
from fuploader_dagster.processing.envelope import encode
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.slot import SlotOwner
from tests.settings import pipeline, sealed
from tests.unit.dead_letters.test_letters import letter

FILES = {f"{n}.json": b"%d" % n for n in range(20)}


def embedded(folder: Path, **values: Any) -> Pipeline:
    return pipeline(folder, source=EmbeddedQueue(path=folder / "queue"), **values)


def ship(settings: Pipeline, keys: Sequence[str]) -> None:
    list(pack_partitions(keys, settings))
    list(upload_partitions(keys, settings, settings.store.open()))


def reading(at: float, **values: Any) -> Reading:
    totals = {"messages_in": 0, "stored_messages": 0, "archive_bytes": 0, "free_bytes": 1000}
    return Reading(**{"at": at, "waiting": 0, **totals, **values})


def test_an_idle_pipeline_has_nothing_waiting_and_nothing_is_made_by_looking(
    tmp_path: Path,
) -> None:
    settings = embedded(tmp_path)
    with closing(settings.source.publisher()) as publisher:
        publisher.publish([(encode("a.json", b"1", "bytes"), {})])
    found = figures_of(settings)
    assert found.queue.waiting == 1
    assert (found.consumers, found.sealed_slots, found.oldest_unshipped_seconds) == (0, 0, 0.0)
    assert (found.messages_in, found.stored.archives, dict(found.letters)) == (0, 0, {})
    assert found.space.free_bytes > 0
    assert not settings.storage_root.exists()


def test_what_waits_and_what_is_stored_is_counted_apart(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    waits = sealed(settings, FILES, seconds_ago=500)
    stored = sealed(settings, FILES, slot=1, seconds_ago=9_000)
    ship(settings, [stored.seal.partition])
    with SlotOwner(settings, 2) as slot:
        slot.add("new.json", b"x")
        slot.commit()
        found = figures_of(settings)
    assert (found.sealed_slots, found.sealed_messages) == (1, 20)
    assert 500 <= found.oldest_unshipped_seconds < 9_000
    assert found.space.unshipped_bytes > 0
    assert (found.stored.archives, found.stored.messages) == (1, 20)
    assert found.stored.archive_bytes > 0
    ship(settings, [waits.seal.partition])
    after = figures_of(settings)
    assert (after.sealed_slots, after.stored.archives) == (0, 2)
    assert after.oldest_unshipped_seconds < 500  # the active directory is left


def test_totals_come_from_the_state_store_and_are_unknown_without_it(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    with closing(settings.state.store(pipeline=settings.name, node=settings.node)) as state:
        state.open()
        state.claim([0], "root", 30)
        commit = Commit(
            [SlotCount(0, 1, 5, 50)], stored_messages=5, stored_bytes=50, duplicates=2,
            dead_letters=1,
        )  # fmt: skip
        state.record(commit, root_id="root", ttl_seconds=30)
    found = figures_of(settings)
    assert (found.messages_in, found.active_messages, found.state_trouble) == (8, 5, None)
    path = tmp_path / "state.sqlite"
    for one in tmp_path.glob("state.sqlite*"):
        one.unlink()
    path.mkdir()
    unknown = figures_of(settings)
    assert (unknown.messages_in, unknown.active_messages) == (None, None)
    assert "state.sqlite" in str(unknown.state_trouble)


def test_letters_wait_by_stage_until_they_are_sent_back_and_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = embedded(tmp_path)
    layout = settings.layout
    DeadLetterBox(layout, 0).keep([letter(b"1"), letter(b"2")])
    DeadLetterBox(layout, "process").keep([letter(b"3")])
    DeadLetterBox(layout, sink_writer("rows")).keep([letter(b"4")])
    first = figures_of(settings)
    assert dict(first.letters) == {"drain": 2, "process": 1, "sink:rows": 1}
    assert first.dead_letters_waiting == 4
    note_requeued(layout, [next(iter(numbered_dead_letters(layout, "*-w0")))[0]])
    DeadLetterBox(layout, 1).keep([letter(b"5")])
    with next(layout.dead_letters.glob("*-w1.jsonl")).open("ab") as file:
        file.write(b'{"torn')
    assert figures_of(settings).letters["drain"] == 2

    remembered.remember(layout, reading_of(first))
    remembered._memories.clear()  # another process
    read: list[str] = []
    counted = remembered._counted_on

    def noted(path: Path, known: remembered._Lines) -> remembered._Lines:
        read.append(path.name)
        return counted(path, known)

    monkeypatch.setattr(remembered, "_counted_on", noted)
    assert figures_of(settings).letters["drain"] == 2
    assert {name.partition("-")[2] for name in read} == {"w1.jsonl"}  # its torn end
    layout.figures.write_bytes(b"\xff nonsense")
    remembered._memories.clear()
    assert figures_of(settings).letters["drain"] == 2


def test_a_file_of_letters_that_was_removed_does_not_count(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    DeadLetterBox(settings.layout, 0).keep([letter(b"1"), letter(b"2")])
    assert figures_of(settings).dead_letters_waiting == 2
    for path in settings.layout.dead_letters.glob("*.jsonl"):
        path.unlink()
    assert figures_of(settings).dead_letters_waiting == 0


def test_receipts_of_a_partition_that_was_packed_again_count_once(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    ship(settings, [sealed(settings, FILES).seal.partition])
    (path,) = settings.layout.receipts.glob("*.jsonl")
    path.write_bytes(path.read_bytes() * 2)
    assert figures_of(settings).stored.archives == 1


def test_a_queue_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = EmbeddedQueue(path=tmp_path / "queue")

    class Hanging:
        def depth(self) -> None:
            time.sleep(60)

        def close(self) -> None:
            """Nothing is open."""

    class Refusing(Hanging):
        def depth(self) -> None:
            raise SourceUnavailable("no broker")

    monkeypatch.setattr(EmbeddedQueue, "publisher", lambda _: Hanging())
    assert "did not answer within 0.1 s" in ask_queue(source, 0.1).trouble
    monkeypatch.setattr(EmbeddedQueue, "publisher", lambda _: Refusing())
    assert "no broker" in ask_queue(source).trouble


def test_rates_are_differences_and_unknown_where_something_counts_anew() -> None:
    before = reading(1000.0, messages_in=100, stored_messages=50, archive_bytes=500)
    now = reading(1060.0, messages_in=700, stored_messages=110, archive_bytes=1100)
    found = rates(before, now)
    assert found is not None
    assert (found.messages_in, found.messages_out, found.bytes_out) == (10.0, 1.0, 10.0)
    assert rates(before, reading(1005.0)) is None
    assert rates(now, reading(1120.0)) is None  # receipts are gone
    emptied = rates(before, reading(1060.0, messages_in=3, stored_messages=50, archive_bytes=500))
    assert emptied is not None
    assert emptied.messages_in is None
    unknown = rates(before, reading(1060.0, messages_in=None, stored_messages=50))
    assert unknown is not None
    assert unknown.messages_in is None


def test_days_left_go_by_how_the_disk_fills() -> None:
    before = reading(0.0, free_bytes=10_000)
    assert disk_days_left(before, reading(86_400.0, free_bytes=9_000), 0) == 9.0
    assert disk_days_left(before, reading(86_400.0, free_bytes=9_000), 8_000) == 1.0
    assert disk_days_left(before, reading(86_400.0, free_bytes=9_000), 9_500) == 0.0
    assert disk_days_left(before, reading(86_400.0, free_bytes=10_000), 0) is None
    assert disk_days_left(before, reading(1.0, free_bytes=9_000), 0) is None


def test_figures_are_ready_for_json(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    sealed(settings, FILES)
    found = figures_of(settings, Queue(None, "not asked"))
    assert isinstance(found, Figures)
    assert msgspec.json.decode(msgspec.json.encode(found))["sealed_messages"] == 20


def test_readings_are_kept_for_an_hour_and_those_of_a_clock_that_was_set_back_are_not(
    tmp_path: Path,
) -> None:
    layout = embedded(tmp_path).layout
    layout.root.mkdir(parents=True)
    for at in (0.0, 60.0, KEPT_SECONDS + 30):
        remember(layout, reading(at))
    assert [one.at for one in readings(layout)] == [60.0, KEPT_SECONDS + 30]
    remember(layout, reading(100.0))
    assert [one.at for one in readings(layout)] == [60.0, 100.0]
