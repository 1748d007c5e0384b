"""Whoever seals a slot that no worker has takes it over first, as a worker does.

Two copies of a storage root have the same messages: of each slot, one copy may go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from fuploader_dagster.contracts.state import Commit, SlotCount, StateStore
from fuploader_dagster.delivery.recovery import seal_abandoned, seal_on_request
from fuploader_dagster.delivery.reprocess import REQUEUED_SLOT, process_again
from fuploader_dagster.errors import OutdatedCopy, SlotInUse, StateUnavailable
from fuploader_dagster.resources.states.redis import RedisState
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.owned_slots import OwnedSlots, owned_for_a_while
from fuploader_dagster.slots.slot import SlotOwner
from fuploader_dagster.standalone import recover_pipeline
from tests.copied_disks import copy_disk
from tests.processors_for_tests import Script
from tests.servers.ports import LOOPBACK, free_port
from tests.settings import pipeline

ABANDONED = 7
TTL_SECONDS = 100


def on_request(settings: Pipeline) -> None:
    seal_on_request(settings)


def abandoned(settings: Pipeline) -> None:
    seal_abandoned(settings)


def requeued(settings: Pipeline) -> None:
    process_again([], settings)


Way = Callable[[Pipeline], None]
WAYS = pytest.mark.parametrize(
    ("way", "slot"),
    [(on_request, 0), (abandoned, ABANDONED), (recover_pipeline, 0), (requeued, REQUEUED_SLOT)],
)


def state_of(settings: Pipeline) -> AbstractContextManager[StateStore]:
    return settings.state.opened(pipeline=settings.name, node=settings.node)


@contextmanager
def writing(settings: Pipeline, slot: int, name: str) -> Iterator[Callable[[], None]]:
    """A worker that has committed a message. What it yields gives the slot back."""
    slots = OwnedSlots(settings, [slot])
    with state_of(settings) as state, slots.opened(state, TTL_SECONDS):
        for one in slots:
            one.add(name, name.encode())
            one.commit()
        yield partial(slots.give_back, state)


def content(settings: Pipeline) -> dict[str, bytes]:
    """Of active and sealed slots."""
    root = settings.layout.root
    paths = [path for part in ("active", "sealed") for path in root.glob(f"{part}/**/*")]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path.is_file()}


@pytest.fixture
def first(tmp_path: Path) -> Pipeline:
    return pipeline(tmp_path, process=Script(), storage_root=tmp_path / "first")


@pytest.fixture
def copy(tmp_path: Path) -> Pipeline:
    return pipeline(tmp_path, process=Script(), storage_root=tmp_path / "copy")


@WAYS
def test_a_slot_that_another_copy_writes_is_left_alone(
    way: Way, slot: int, first: Pipeline, copy: Pipeline
) -> None:
    with writing(first, slot, "a"):
        copy_disk(first, copy)
        before = content(copy)
        if way is requeued:
            with pytest.raises(SlotInUse, match="copy of this storage root"):
                way(copy)
        else:
            way(copy)
    assert content(copy) == before


@WAYS
def test_an_outdated_copy_of_a_slot_is_not_sealed(
    way: Way, slot: int, first: Pipeline, copy: Pipeline
) -> None:
    with writing(first, slot, "a"):
        copy_disk(first, copy)
    with writing(first, slot, "b") as give_back:  # the first goes on, and ends in good order
        give_back()
    before = content(copy), content(first)
    with pytest.raises(OutdatedCopy, match="older copy"):
        way(copy)
    assert (content(copy), content(first)) == before


@WAYS
def test_without_the_state_store_nothing_is_sealed(
    way: Way, slot: int, first: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with SlotOwner(first, slot) as owner:
        owner.add("a", b"a")
        owner.commit()
    before = content(first)
    nowhere = RedisState(url=f"redis://{LOOPBACK}:{free_port()}", timeout_seconds=1)
    away = first.model_copy(update={"state": nowhere})
    if way is recover_pipeline:  # what is sealed already is shipped
        way(away)
        assert "active slots stay as they are" in caplog.text
    else:
        with pytest.raises(StateUnavailable):
            way(away)
    assert content(first) == before


def test_a_number_that_only_the_state_store_remembers_is_not_used_again(first: Pipeline) -> None:
    """A worker had come to directory 41; then everything in the folder was lost."""
    slots = OwnedSlots(first, [0])
    with state_of(first) as state:
        with slots.opened(state, TTL_SECONDS):
            slots.record(Commit(slots=[SlotCount(0, 41, 1, 1)]), state, TTL_SECONDS)
        with owned_for_a_while(first, 0, state) as slot:
            slot.add("a", b"a")
            (sealed,) = slot.seal_divided("adopted")
    assert sealed.seal.number == 42


def test_a_slot_can_be_sealed_again_and_written_by_a_worker_at_once(first: Pipeline) -> None:
    for name in "abc":
        with writing(first, 0, name):
            pass
        (one,) = seal_on_request(first)
        assert [entry.name for entry in one.entries()] == [name]


def test_without_slots_no_state_store_is_needed(first: Pipeline) -> None:
    nowhere = RedisState(url=f"redis://{LOOPBACK}:{free_port()}", timeout_seconds=1)
    away = first.model_copy(update={"state": nowhere})
    assert seal_on_request(away) == seal_abandoned(away) == []
