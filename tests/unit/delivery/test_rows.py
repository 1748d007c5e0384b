"""Rows of slots are stored once, from this disk or from the archive, and what fails is owed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.dead_letters.letters import numbered_dead_letters
from fuploader_dagster.delivery.attempts import Done, Failed, Outcome
from fuploader_dagster.delivery.failures import Failure
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.owed_rows import OwedRows, due, look_at
from fuploader_dagster.delivery.process import process_partitions
from fuploader_dagster.delivery.rows import store_partitions
from fuploader_dagster.delivery.settled_letters import settled
from fuploader_dagster.delivery.ship import ship, upload_partitions
from fuploader_dagster.delivery.sink_notes import SinkNotes, SinkTrouble
from fuploader_dagster.delivery.slot_items import ItemsStored, items_here
from fuploader_dagster.delivery.stored_letters import store_letters
from fuploader_dagster.settings.archive_formats import SUFFIXES, ArchiveFormat
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import receipts_between
from fuploader_dagster.slots.sealing import SealedSlot, sealed_partitions
from tests.processors_for_tests import Script, script
from tests.settings import pipeline, sealed
from tests.sinks_for_tests import RowsFile, calls, meanwhile, stored_rows, two_rows


def made(folder: Path, values: dict[str, Any] | None = None, **sink: Any) -> Pipeline:
    rows = RowsFile(path=folder / "rows.sqlite", **sink)
    return pipeline(folder, sinks={"rows": rows}, **(values or {}))


def store(settings: Pipeline, partitions: Sequence[str], **more: Any) -> list[Outcome]:
    open_archive = ArchiveFinder({settings.name: settings}).open
    return list(store_partitions(partitions, settings, "rows", open_archive, **more))


def upload(settings: Pipeline, partitions: Sequence[str]) -> None:
    for outcome in upload_partitions(partitions, settings, settings.store.open()):
        assert isinstance(outcome, Done), outcome


def items(first: int, count: int) -> dict[str, bytes]:
    return {f"{n}.json": json.dumps({"n": n}).encode() for n in range(first, first + count)}


def notes(settings: Pipeline) -> SinkNotes:
    return SinkNotes(settings.layout, "rows")


def table(folder: Path) -> list[dict[str, Any]]:
    return stored_rows(folder / "rows.sqlite")


def test_rows_of_a_slot_on_this_disk_are_stored_and_receipted_once(tmp_path: Path) -> None:
    settings = made(tmp_path)
    key = sealed(settings, items(0, 9)).seal.partition
    (first,) = store(settings, [key])
    (second,) = store(settings, [key])
    assert isinstance(first, Done) and first.rows is not None
    assert (first.rows.rows, first.rows.rejected) == (9, 0)
    assert isinstance(second, Done) and second.rows == first.rows and "before" in second.note
    assert table(tmp_path) == [{"n": n} for n in range(9)]
    assert len(list(notes(settings).folder.iterdir())) == 1


@pytest.mark.parametrize("slot_format", ["segment", "files"])
def test_rows_of_a_slot_that_is_gone_are_made_of_its_archive(
    tmp_path: Path, slot_format: str
) -> None:
    settings = made(tmp_path, {"slot_format": slot_format})
    key = sealed(settings, items(0, 9)).seal.partition
    upload(settings, [key])
    assert notes(settings).owed() == [key]
    assert isinstance(store(settings, [key])[0], Done)
    assert table(tmp_path) == [{"n": n} for n in range(9)]
    assert notes(settings).owed() == []


@pytest.mark.parametrize("archive_format", SUFFIXES)
def test_rows_are_the_same_from_an_archive_of_any_format(
    tmp_path: Path, archive_format: ArchiveFormat
) -> None:
    settings = made(tmp_path, {"archive_format": archive_format})
    content = items(0, 40) | {
        "bad.json": b"no",
        "large.json": b'{"n": 40, "_": "%b"}' % (b"x" * 2**22),
    }
    here = sealed(settings, content)
    slot = items_here(here.seal.partition, settings)
    assert slot is not None
    expected = list(slot.read())
    upload(settings, [here.seal.partition])
    open_archive = ArchiveFinder({settings.name: settings}).open
    stored = ItemsStored(here.seal.partition, settings, open_archive)
    assert list(stored.read()) == expected
    assert list(stored.read({3, 41})) == [expected[3], expected[41]]
    assert isinstance(store(settings, [here.seal.partition])[0], Done)
    assert [row["n"] for row in table(tmp_path)].count(40) == 1
    assert len(table(tmp_path)) == 41


@pytest.mark.parametrize("slot_format", ["segment", "files"])
def test_a_slot_that_is_uploaded_while_it_is_read_is_read_from_its_archive(
    tmp_path: Path, slot_format: str
) -> None:
    settings = made(tmp_path, {"slot_format": slot_format, "commit_messages": 2})
    content = items(0, 9) | {"bad.json": b"no"}
    key = sealed(settings, content).seal.partition
    meanwhile.append(lambda: upload(settings, [key]))
    (outcome,) = store(settings, [key])
    assert isinstance(outcome, Done), outcome
    assert table(tmp_path) == [{"n": n} for n in range(9)]
    assert len(list(numbered_dead_letters(settings.layout))) == 1
    assert sealed_partitions(settings.layout) == []
    assert notes(settings).owed() == []


def test_two_that_store_the_same_partitions_at_once_store_them_once(tmp_path: Path) -> None:
    settings = made(tmp_path)
    keys = [sealed(settings, items(10 * n, 5) | {"b": b"{"}).seal.partition for n in range(6)]
    calls.clear()
    with ThreadPoolExecutor(3) as threads:
        outcomes = list(threads.map(lambda _: store(settings, keys), range(3)))
    assert all(isinstance(one, Done) for some in outcomes for one in some)
    assert set(calls.values()) == {1}
    assert len(table(tmp_path)) == 30
    assert len(list(numbered_dead_letters(settings.layout))) == 6
    (receipts,) = notes(settings).folder.iterdir()
    assert len(receipts.read_text().splitlines()) == 6


def test_a_required_sink_keeps_the_slot_until_it_has_the_rows(tmp_path: Path) -> None:
    settings = made(tmp_path, required=True)
    key = sealed(settings, items(0, 3)).seal.partition
    upload(settings, [key])
    upload(settings, [key])
    assert sealed_partitions(settings.layout) == [key]
    assert not list(settings.layout.archives.glob("*.tar.zst"))
    assert isinstance(store(settings, [key])[0], Done)
    assert sealed_partitions(settings.layout) == []
    assert notes(settings).owed() == []


def test_a_sink_that_is_added_later_is_owed_nothing_and_can_be_filled(tmp_path: Path) -> None:
    before = pipeline(tmp_path)
    keys = [sealed(before, items(10 * n, 5)).seal.partition for n in range(3)]
    upload(before, keys)
    settings = made(tmp_path)
    upload(settings, keys)
    assert notes(settings).owed() == []
    assert all(isinstance(one, Done) for one in store(settings, keys))
    assert len(table(tmp_path)) == 15


def test_items_without_rows_are_dead_letters_before_the_rows_are_stored(tmp_path: Path) -> None:
    settings = made(tmp_path)
    content = {"no.json": b"{", "refused.json": b'{"refused": 1}', "7.json": b"[7]"}
    key = sealed(settings, items(0, 5) | content).seal.partition
    (outcome,) = store(settings, [key])
    assert isinstance(outcome, Done) and outcome.rows is not None
    assert (outcome.rows.rows, outcome.rows.rejected) == (5, 3)
    letters = [letter for _, letter in numbered_dead_letters(settings.layout)]
    assert {one.item.name: one.body for one in letters if one.item} == content
    assert {one.item.stage for one in letters if one.item} == {"sink:rows"}
    assert {one.item.position for one in letters if one.item} == {5, 6, 7}
    assert {one.item.partition for one in letters if one.item} == {key}


def test_while_the_sink_is_away_nothing_is_lettered_and_the_others_are_not_tried(
    tmp_path: Path,
) -> None:
    switch = tmp_path / "on"
    settings = made(tmp_path, switch=switch)
    keys = [sealed(settings, items(10 * n, 5) | {"bad": b"{"}).seal.partition for n in range(3)]
    calls.clear()
    outcomes = store(settings, keys)
    assert [isinstance(one, Failed) and one.attempted for one in outcomes] == [True, False, False]
    assert sum(calls.values()) == 1
    assert not list(numbered_dead_letters(settings.layout))
    assert notes(settings).owed() == keys
    assert [one.partition for one in notes(settings).failures.all()] == keys[:1]
    trouble = notes(settings).trouble
    assert trouble is not None and trouble.attempts == 1
    switch.touch()
    assert all(isinstance(one, Done) for one in store(settings, keys))
    assert notes(settings).trouble is None
    assert notes(settings).owed() == []
    assert len(table(tmp_path)) == 15


def test_what_is_stored_is_done_though_the_sink_is_away_now(tmp_path: Path) -> None:
    switch = tmp_path / "on"
    settings = made(tmp_path, switch=switch)
    keys = [sealed(settings, items(10 * n, 5)).seal.partition for n in range(3)]
    switch.touch()
    store(settings, keys[2:])
    switch.unlink()
    outcomes = store(settings, keys)
    assert [isinstance(one, Done) for one in outcomes] == [False, False, True]
    assert notes(settings).owed() == keys[:2]


def test_an_error_that_a_sink_did_not_foresee_is_told_without_its_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = made(tmp_path, fails=True)
    key = sealed(settings, items(0, 1)).seal.partition
    (outcome,) = store(settings, [key])
    assert isinstance(outcome, Failed) and not outcome.permanent
    assert "ValueError in line" in outcome.error and "sinks_for_tests.py" in outcome.error
    assert "'n': 0" not in outcome.error + caplog.text
    assert notes(settings).owed() == [key]


def test_a_redo_stores_the_rows_again_in_place_of_the_old_ones(tmp_path: Path) -> None:
    settings = made(tmp_path)
    key = sealed(settings, items(0, 4)).seal.partition
    store(settings, [key])
    upload(settings, [key])
    again = made(tmp_path, rows=two_rows)
    for redo in (1, 2):
        (outcome,) = store(again, [key], redo=True)
        assert isinstance(outcome, Done) and outcome.rows is not None
        assert (outcome.rows.rows, outcome.rows.redo) == (8, redo)
    assert table(tmp_path) == [{"name": f"{n}.json", "part": m} for n in range(4) for m in range(2)]


def test_a_redo_leaves_alone_what_was_sent_back_from_dead_letters(tmp_path: Path) -> None:
    settings = made(tmp_path)
    key = sealed(settings, items(0, 2) | {"r": b'{"refused": 1}'}).seal.partition
    store(settings, [key])
    taken = made(tmp_path, takes_refused=True)
    done = store_letters([list(numbered_dead_letters(settings.layout))], taken)
    assert (done.letters, done.rows, done.refused) == (1, 1, [])
    rows = table(tmp_path)
    assert rows == [{"n": 0}, {"n": 1}, {"refused": 1}]
    store(taken, [key], redo=True)
    assert table(tmp_path) == rows


def test_where_there_is_a_processor_rows_are_made_of_its_results(tmp_path: Path) -> None:
    process = Script()
    settings = made(tmp_path, {"process": process}, rows=two_rows)
    content = {"a": script(results=2), "b": script(results=0), "c": script(bad="no")}
    keys = [sealed(settings, content).seal.partition for _ in range(2)]
    (early,) = store(settings, keys[:1])
    assert isinstance(early, Failed) and "not processed yet" in early.error
    list(process_partitions(keys, settings))
    store(settings, keys[:1])
    here = table(tmp_path)
    upload(settings, keys)
    store(settings, keys[1:])
    assert [row["name"] for row in here] == ["a", "a", "a~2", "a~2"]
    assert table(tmp_path) == sorted([*here, *here], key=json.dumps)


def test_notes_that_name_no_partition_are_nobodys_business(tmp_path: Path) -> None:
    settings = made(tmp_path)
    key = sealed(settings, items(0, 1)).seal.partition
    upload(settings, [key])
    (notes(settings).folder / "somebody's.owed").touch()
    notes(settings).failures.note("another", stage="store rows", error="e", now=1.0)
    assert look_at(notes(settings), ()).owed == [key]


def test_of_1000_owed_partitions_one_is_tried_while_the_sink_takes_nothing(tmp_path: Path) -> None:
    settings = made(tmp_path)
    keys = [f"20261120T120000000Z-local-s0-{n:06d}" for n in range(1, 1001)]
    one = Failure(partition=keys[0], stage="store rows", attempts=1, failed_at=0.0, error="away")
    trouble = SinkTrouble(since=0.0, seen_at=0.0, error="away", attempts=4)
    found = OwedRows(keys, failures={keys[0]: one}, trouble=trouble)
    pause = settings.recovery_base_seconds * 8
    assert due(found, settings, busy=(), now=pause - 1) == []
    assert due(found, settings, busy=(), now=pause + 1) == [keys[1]], "not the one that failed"
    assert due(found, settings, busy=keys[:500], now=pause + 1) == [keys[500]]
    healed = replace(found, trouble=None)
    assert due(healed, settings, busy=(), now=pause + 1) == keys


def rot(slot: SealedSlot) -> None:
    """The second message changes on the disk."""
    entry = slot.entries()[1]
    content = bytearray(slot.segment.read_bytes())
    content[entry.offset + entry.header_bytes] ^= 1
    slot.segment.write_bytes(content)


def test_rows_of_a_slot_that_was_damaged_later_are_not_stored_again(tmp_path: Path) -> None:
    settings = made(tmp_path, required=True)
    slot = sealed(settings, items(0, 3))
    store(settings, [slot.seal.partition])
    rot(slot)
    list(ship(settings, settings.store.open()))
    (replaced,) = receipts_between(settings.layout)
    assert replaced != slot.seal.partition
    (outcome,) = store(settings, [replaced])
    assert isinstance(outcome, Done)
    assert table(tmp_path) == [{"n": n} for n in range(3)]
    assert (sealed_partitions(settings.layout), notes(settings).owed()) == ([], [])


@pytest.mark.parametrize("damage", ["header", "content", "padding", "cut off"])
def test_nothing_of_a_slot_is_stored_if_any_byte_of_its_segment_differs(
    tmp_path: Path, damage: str
) -> None:
    settings = made(tmp_path)
    large = {"large.json": b'{"n": 9, "_": "%b"}' % (b"x" * 3_000_000)}
    slot = sealed(settings, items(0, 3) | large | items(3, 4))
    entries = slot.entries()
    here = items_here(slot.seal.partition, settings)
    assert here is not None
    found = [(at, item.name, len(item.content)) for at, item in here.read()]
    assert found == [(at, one.name, one.size_bytes) for at, one in enumerate(entries)]
    content = bytearray(slot.segment.read_bytes())
    if damage == "cut off":
        del content[-1:]
    else:
        within = {"header": 1, "content": 2_000_000, "padding": 512 + entries[3].size_bytes}
        content[entries[3].offset + within[damage]] ^= 1
    slot.segment.write_bytes(content)
    (outcome,) = store(settings, [slot.seal.partition])
    assert isinstance(outcome, Failed)
    named = "6.json" if damage == "cut off" else "large.json"
    assert f"message '{named}'" in outcome.error and "not what was sealed" in outcome.error
    assert table(tmp_path) == []


def test_what_a_damaged_slot_proves_is_stored_as_rows_of_its_replacement(tmp_path: Path) -> None:
    settings = made(tmp_path, required=True)
    slot = sealed(settings, items(0, 3))
    rot(slot)
    (failed,) = store(settings, [slot.seal.partition])
    assert isinstance(failed, Failed) and "not what was sealed" in failed.error
    assert table(tmp_path) == []
    list(ship(settings, settings.store.open()))
    assert table(tmp_path) == [{"n": 0}, {"n": 2}]
    (outcome,) = store(settings, [slot.seal.partition])
    assert isinstance(outcome, Done) and "moved to" in outcome.note
    assert (sealed_partitions(settings.layout), notes(settings).owed()) == ([], [])
    assert list(notes(settings).failures.all()) == []


def test_archives_of_unprocessed_messages_have_no_rows_of_results(tmp_path: Path) -> None:
    before = pipeline(tmp_path)
    key = sealed(before, items(0, 3)).seal.partition
    upload(before, [key])
    settings = made(tmp_path, {"process": Script()})
    (outcome,) = store(settings, [key])
    assert isinstance(outcome, Failed) and "were not processed" in outcome.error
    assert notes(settings).owed() == []


def test_an_item_that_got_a_letter_is_not_stored_by_a_later_attempt_too(tmp_path: Path) -> None:
    settings = made(tmp_path, fails_late=True)
    key = sealed(settings, items(0, 2) | {"r": b'{"refused": 1}'}).seal.partition
    assert isinstance(store(settings, [key])[0], Failed)
    assert len(list(numbered_dead_letters(settings.layout))) == 1
    taken = made(tmp_path, takes_refused=True)
    (outcome,) = store(taken, [key])
    assert isinstance(outcome, Done) and outcome.rows is not None
    assert (outcome.rows.rows, outcome.rows.rejected) == (2, 1)
    assert len(list(notes(settings).folder.iterdir())) == 1
    store_letters([list(numbered_dead_letters(settings.layout))], taken)
    assert table(tmp_path) == [{"n": 0}, {"n": 1}, {"refused": 1}]


def test_letters_from_before_a_redo_are_not_stored_beside_it(tmp_path: Path) -> None:
    settings = made(tmp_path)
    key = sealed(settings, items(0, 2) | {"r": b'{"refused": 1}', "b": b"{"}).seal.partition
    store(settings, [key])
    taken = made(tmp_path, takes_refused=True)
    store(taken, [key], redo=True)
    rows = table(tmp_path)
    assert rows == [{"n": 0}, {"n": 1}, {"refused": 1}]
    letters = list(numbered_dead_letters(settings.layout))
    done = settled(letters, taken)
    assert ["by redo 1 of sink rows" in done.get(one, "") for one, _ in letters] == [
        True,
        True,
        False,
    ]
    left = store_letters([[pair for pair in letters if pair[0] not in done]], taken)
    assert (left.letters, len(left.refused)) == (0, 1)
    assert table(tmp_path) == rows


def test_letters_of_a_redo_that_failed_wait_only_when_it_is_stored(tmp_path: Path) -> None:
    settings = made(tmp_path, takes_refused=True)
    key = sealed(settings, items(0, 2) | {"r": b'{"refused": 1}', "b": b"{"}).seal.partition
    store(settings, [key])
    failing = made(tmp_path, fails_late=True)
    assert isinstance(store(failing, [key], redo=True)[0], Failed)
    letters = list(numbered_dead_letters(settings.layout))
    of_first, *of_redo = [one for one, _ in letters]
    assert len(of_redo) == 2
    done = settled(letters, settings)
    assert set(done) == set(of_redo)
    assert all("has not stored" in sentence for sentence in done.values())
    assert isinstance(store(settings, [key], redo=True)[0], Done)
    assert set(settled(letters, settings)) == {of_first}
    assert table(tmp_path) == [{"n": 0}, {"n": 1}]


def test_a_redo_is_done_though_the_receipt_of_the_first_store_is_lost(tmp_path: Path) -> None:
    settings = made(tmp_path)
    key = sealed(settings, items(0, 2)).seal.partition
    again = made(tmp_path, rows=two_rows)
    store(settings, [key])
    for redo in (1, 2):
        for receipts in notes(settings).folder.glob("*.jsonl"):
            receipts.unlink()
        (outcome,) = store(again, [key], redo=True)
        assert isinstance(outcome, Done) and outcome.rows is not None
        assert (outcome.rows.rows, outcome.rows.redo) == (4, redo)
    assert len(table(tmp_path)) == 4
