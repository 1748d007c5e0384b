"""The slots of one worker, from locking them until letting them go.

What must always hold: batches go to the slots in turn, each slot getting as many messages as one
full commit, however small the batches are; so a slow queue fills one slot, not all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from fuploader_dagster.contracts.state import Commit, StateStore
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.slots.slot import SlotOwner


class OwnedSlots:
    """Iterate over it for the slots; there are none outside `opened`."""

    def __init__(self, pipeline: Intake, worker: int) -> None:
        self.numbers = pipeline.slots_of(worker)
        self._pipeline = pipeline
        self._slots: list[SlotOwner] = []
        self._turn = self._given = 0

    def __iter__(self) -> Iterator[SlotOwner]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    @contextmanager
    def opened(self, state: StateStore) -> Iterator[None]:
        """Lock and recover the slots; raises what opening a `SlotOwner` raises."""
        with ExitStack() as stack:
            stack.callback(self._slots.clear)
            for number in self.numbers:
                slot = SlotOwner(
                    self._pipeline, number, highest_number=state.highest_number(number)
                )
                self._slots.append(stack.enter_context(slot))
            yield

    @property
    def left_in_turn(self) -> int:
        return self._pipeline.commit_messages - self._given

    def take_turn(self, messages: int) -> SlotOwner:
        """The slot for a batch of this size: one, so that more slots do not mean more commits."""
        slot = self._slots[self._turn]
        self._given += messages
        if self.left_in_turn <= 0:
            self._turn, self._given = (self._turn + 1) % len(self._slots), 0
        return slot

    def counts(self) -> Commit:
        """What each slot holds, for the state store; recording it renews the claims too."""
        return Commit(slots=[slot.count for slot in self._slots])
