"""Whether a message is stored already, told by its position in the queue."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuploader_dagster.contracts.source import Position
from fuploader_dagster.contracts.state import SlotCount
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.slots.index import INDEX_NAME
from fuploader_dagster.slots.slot import SlotOwner
from fuploader_dagster.slots.stored_positions import (
    POSITIONS_NAME,
    PositionsFile,
    StoredPositions,
)
from tests.settings import intake

NINE, TEN = Position("topic[0]", "reading", 9), Position("topic[0]", "reading", 10)


@pytest.fixture
def settings(tmp_path: Path) -> Intake:
    return intake(tmp_path)


def store(slot: SlotOwner, name: str, *positions: Position) -> None:
    assert slot.add(name, name.encode())
    slot.commit(positions)


def held(settings: Intake, *positions: Position) -> list[bool]:
    stored = StoredPositions(settings.layout)
    stored.refresh()
    return [stored.hold(one) for one in positions]


def note_without_commit(settings: Intake, position: Position) -> None:
    """As a worker that is killed before its commit is whole: one more message was to be stored."""
    file = PositionsFile(settings.layout, 0)
    file.resume()
    file.note([position], SlotCount(0, 1, 2, 0))


def test_all_up_to_the_number_are_stored_in_this_part_reading_and_term(settings: Intake) -> None:
    with SlotOwner(settings, 0) as slot:
        store(slot, "a", NINE._replace(term=3), Position("topic[1]", "reading", 4))
        assert held(settings, NINE, NINE._replace(number=0), TEN) == [True, True, False]
        assert held(settings, NINE._replace(term=3), NINE._replace(term=4)) == [True, False]
        assert held(settings, NINE._replace(reading="other")) == [False]
        others = [Position("topic[1]", "reading", 4), Position("topic[1]", "reading", 5)]
        assert held(settings, *others) == [True, False]
        assert slot.seal("request") is not None
        assert held(settings, NINE, TEN) == [True, False]


def test_the_slots_together_know_how_far_it_is(settings: Intake) -> None:
    with SlotOwner(settings, 0) as one, SlotOwner(settings, 1) as two:
        store(one, "a", TEN)
        store(two, "b", NINE)
    assert held(settings, NINE, TEN) == [True, True]


def test_a_commit_that_is_not_whole_counts_for_nothing_and_the_one_before_counts(
    settings: Intake,
) -> None:
    with SlotOwner(settings, 0) as slot:
        store(slot, "a", NINE)
        note_without_commit(settings, TEN)
        assert held(settings, NINE, TEN) == [True, False]


def test_other_messages_in_the_place_of_those_that_were_not_stored_prove_nothing(
    settings: Intake,
) -> None:
    with SlotOwner(settings, 0) as slot:
        store(slot, "a", NINE)
    note_without_commit(settings, TEN)
    with SlotOwner(settings, 0) as slot:
        store(slot, "other")
        assert slot.count.messages == 2
        assert held(settings, NINE, TEN) == [True, False]


def test_it_is_struck_out_before_the_directory_is_sealed_by_whoever_finds_it(
    settings: Intake,
) -> None:
    with SlotOwner(settings, 0) as slot:
        store(slot, "a", NINE)
    note_without_commit(settings, TEN)
    with SlotOwner(settings, 0) as slot:
        assert slot.seal("adopted") is not None
    assert held(settings, NINE, TEN) == [True, False]


def test_of_a_damaged_directory_nothing_counts(settings: Intake) -> None:
    with SlotOwner(settings, 0) as slot:
        store(slot, "a", NINE)
        store(slot, "b", TEN)
    index = settings.layout.active(0, 1) / INDEX_NAME
    content = bytearray(index.read_bytes())
    content[60] ^= 1  # in the first commit: the second one was synced after it
    index.write_bytes(content)
    with SlotOwner(settings, 0):
        assert held(settings, NINE, TEN) == [False, False]


@pytest.mark.parametrize("content", [b"", b"FUPP", b"FUPP\x00\x00\x00\x00\x02\x00\x00\x00{}"])
def test_a_file_that_does_not_read_back_says_nothing(settings: Intake, content: bytes) -> None:
    path = settings.layout.active_slot(0) / POSITIONS_NAME
    with SlotOwner(settings, 0) as slot:
        store(slot, "a", NINE)
        whole = path.read_bytes()
        path.write_bytes(content)
        assert held(settings, NINE) == [False]
        path.write_bytes(whole[:-1])
        assert held(settings, NINE) == [False]
        path.write_bytes(whole + b"what is left of a longer one")
        assert held(settings, NINE) == [True]
