"""Items whose dead letters are sent back are processed, and stored, once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.dead_letters.letters import (
    DeadLetter,
    as_message,
    numbered_dead_letters,
    requeue,
    requeued_ids,
)
from fuploader_dagster.delivery.attempts import Done
from fuploader_dagster.delivery.process import process_partitions, unaccounted
from fuploader_dagster.delivery.reprocess import process_again
from fuploader_dagster.delivery.sending_back import SendingBack
from fuploader_dagster.delivery.settled_letters import settled
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.disk.crash_points import CrashPoint, observe
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.processed import find_processed
from fuploader_dagster.slots.sealing import SealedSlot, find_sealed
from tests.processors_for_tests import Script, ScriptWithFolders, calls, later, script
from tests.settings import archived_files, sealed
from tests.unit.delivery.test_mend import flip
from tests.unit.delivery.test_redo import made, receipt_of, redone, shipped, stopped_at

FILES = {"a": script(), "b": script(bad="no"), "c": script()}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    calls.clear()
    yield
    later.clear()
    observe(None)


def waiting(settings: Pipeline) -> list[tuple[str, DeadLetter]]:
    gone = requeued_ids(settings.layout)
    return [pair for pair in numbered_dead_letters(settings.layout) if pair[0] not in gone]


def to_queue(settings: Pipeline) -> SendingBack:
    sending = SendingBack(waiting(settings), settings)
    with closing(EmbeddedQueue(path=settings.storage_root / "queue").publisher()) as publisher:
        for batch in sending.batches():
            messages = [(key, as_message(one, "raw")) for key, one in batch]
            requeue(settings.layout, messages, publisher)
    return sending


def to_stage(settings: Pipeline) -> SendingBack:
    sending = SendingBack(waiting(settings), settings)
    process_again(sending.batches(), settings)
    return sending


@pytest.mark.parametrize("send", [to_queue, to_stage])
def test_a_redo_leaves_out_items_that_were_sent_back(send: Any, tmp_path: Path) -> None:
    settings = made(tmp_path, Script(batch=2), message_format="raw")
    first = shipped(settings, FILES)
    send(settings)
    calls.clear()
    later["b"] = script()  # today's code takes it
    for _ in range(2):
        assert isinstance(redone(settings, first.partition), Done)
        receipt = receipt_of(settings, first.partition)
        assert (receipt.messages, receipt.results) == (3, 2)
    assert calls == Counter({"a": 2, "c": 2})
    assert waiting(settings) == []


def test_a_letter_that_waits_is_about_an_item_that_a_redo_processes(tmp_path: Path) -> None:
    settings = made(tmp_path)
    first = shipped(settings, FILES)
    later["b"] = script()
    assert isinstance(redone(settings, first.partition), Done)
    assert receipt_of(settings, first.partition).results == 3
    assert to_queue(settings).settled.keys() == {waiting(settings)[0][0]}


def test_an_item_with_results_is_processed_again_though_its_letter_was_sent(
    tmp_path: Path,
) -> None:
    settings = made(tmp_path, ScriptWithFolders())
    files = {"task": script(files=["x"], missing=["y"]), "b": script(bad="no")}
    first = shipped(settings, files)
    to_queue(settings)
    assert isinstance(redone(settings, first.partition), Done)
    assert receipt_of(settings, first.partition).results == 1


def stopped_behind_its_letters(folder: Path) -> tuple[Pipeline, SealedSlot]:
    """A slot whose processing ended after its letters were written, and before they counted."""
    settings = made(folder, commit_messages=100, prefetch_count=200)
    slot = sealed(settings, FILES)

    def stop(point: CrashPoint) -> None:
        if point is CrashPoint.DEAD_LETTERS_KEPT:
            raise KeyboardInterrupt

    observe(stop)
    with pytest.raises(KeyboardInterrupt):
        list(process_partitions([slot.seal.partition], settings))
    observe(None)
    return settings, slot


@pytest.mark.parametrize("process", [Script(), Script(edition=2)], ids=["same", "changed"])
def test_a_slot_that_is_resumed_leaves_out_what_was_sent_back_meanwhile(
    process: Script, tmp_path: Path
) -> None:
    settings, slot = stopped_behind_its_letters(tmp_path)
    assert not to_queue(settings).busy
    later["b"] = script()
    again = made(tmp_path, process)
    (outcome,) = process_partitions([slot.seal.partition], again)
    assert isinstance(outcome, Done) and outcome.processed is not None
    assert outcome.processed.results == 2
    assert outcome.processed.failed == (1 if process.edition == 1 else 0)
    assert unaccounted([outcome.processed], settings.layout) == []
    assert waiting(settings) == []


def test_a_letter_that_an_attempt_made_untrue_leaves_nothing_out_of_a_redo(tmp_path: Path) -> None:
    settings, slot = stopped_behind_its_letters(tmp_path)
    later["b"] = script()
    assert all(isinstance(one, Done) for one in ship(settings, settings.store.open()))
    assert receipt_of(settings, slot.seal.partition).results == 3
    assert waiting(settings) == []
    assert isinstance(redone(settings, slot.seal.partition), Done)
    assert receipt_of(settings, slot.seal.partition).results == 3


def test_while_a_partition_is_in_work_its_letters_stay(tmp_path: Path) -> None:
    settings = made(tmp_path)
    first = shipped(settings, FILES)
    lock = FileLock(settings.layout.partition_lock(first.partition))
    with lock:
        sending = to_queue(settings)
        assert "is being processed" in next(iter(sending.busy.values()))
        assert len(waiting(settings)) == 1
    assert not to_queue(settings).busy
    assert waiting(settings) == []
    assert not lock.path.exists()


def test_after_a_redo_that_was_interrupted_letters_stay_until_it_is_finished(
    tmp_path: Path,
) -> None:
    settings = made(tmp_path)
    first = shipped(settings, FILES)
    later["b"] = script()
    with pytest.raises(KeyboardInterrupt):
        stopped_at(CrashPoint.PROCESSED, settings, first.partition)
    sending = to_queue(settings)
    assert "interrupted" in next(iter(sending.busy.values()))
    assert isinstance(redone(settings, first.partition), Done)
    sending = to_queue(settings)
    assert (sending.busy, len(sending.settled)) == ({}, 1)


def test_letters_of_a_damaged_slot_are_settled_by_its_replacement_or_left_out_there(
    tmp_path: Path,
) -> None:
    settings = made(tmp_path)
    slot = sealed(settings, FILES | {"d": script(bad="no")})
    list(process_partitions([slot.seal.partition], settings))
    sent, kept = waiting(settings)
    process_again([[sent]], settings)
    (_, _, _, entry) = slot.entries()
    flip(slot.segment, entry.offset + entry.header_bytes)
    later.update({"b": script(), "d": script()})
    for _ in range(2):
        list(ship(settings, settings.store.open()))
    stored = archived_files(tmp_path / "objects")
    assert {name: len(found) for name, found in stored.items() if name.startswith("results/")} == {
        "results/a": 1,
        "results/b": 1,  # where it was sent to
        "results/c": 1,
    }
    assert settled([sent], settings).keys() == {sent[0]}
    assert settled([kept], settings) == {}, "it was not proven, so its letter has the only copy"


def test_a_finished_slot_is_not_asked_again(tmp_path: Path) -> None:
    settings = made(tmp_path)
    slot = sealed(settings, FILES)
    list(process_partitions([slot.seal.partition], settings))
    to_queue(settings)
    found = find_sealed(settings.layout, slot.seal.partition)
    assert found is not None
    processed = find_processed(found, settings.layout)
    assert processed is not None
    assert (processed.seal.results, processed.seal.failed) == (2, 1)
