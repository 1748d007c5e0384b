"""Slots of one owner, a worker or whoever seals them, from locking and claiming them until letting
them go.

What must always hold: batches go to the slots in turn, each slot getting as many messages as one
full commit, however small the batches are; so a slow queue fills one slot, not all of them.
A slot is changed only under its claim: each is locked, then taken over, then recovered.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from fuploader_dagster.contracts.state import LONGEST_CLAIM_SECONDS, Claim, Commit, StateStore
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.slots.slot import SlotOwner
from fuploader_dagster.slots.take_over import TakeOver

log = logging.getLogger(__name__)


class OwnedSlots:
    """Iterate over it for the slots; there are none outside `opened`."""

    def __init__(
        self, pipeline: Intake, numbers: Sequence[int], *, keeps_headers: bool = False
    ) -> None:
        """`keeps_headers`: as for `SlotOwner`."""
        self.numbers = numbers
        self._pipeline = pipeline
        self._keeps_headers = keeps_headers
        self._slots: list[SlotOwner] = []
        self._claims: dict[int, Claim] = {}
        self._turn = self._given = 0

    def __iter__(self) -> Iterator[SlotOwner]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    @contextmanager
    def opened(self, state: StateStore, ttl_seconds: float) -> Iterator[None]:
        """Lock, claim and recover the slots; raises what opening a `SlotOwner`, and taking it over,
        raise."""
        take_over = TakeOver.of(self._pipeline.layout)

        def admitted(number: int) -> int:
            self._claims[number] = take_over.take(number, state, ttl_seconds)
            return state.highest_number(number)  # after that: nobody else raises it any more

        with ExitStack() as stack:
            stack.callback(self._slots.clear)
            for number in self.numbers:
                slot = SlotOwner(
                    self._pipeline,
                    number,
                    admission=partial(admitted, number),
                    keeps_headers=self._keeps_headers,
                )
                self._slots.append(stack.enter_context(slot))
            yield

    def record(self, commit: Commit, state: StateStore, ttl_seconds: float) -> None:
        """Tell the state store what was committed, which compares and renews the claims."""
        claims = [self._claims[one.slot] for one in commit.slots]
        root_id = self._claims[self.numbers[0]].root_id
        state.record(replace(commit, claims=claims), root_id=root_id, ttl_seconds=ttl_seconds)

    def give_back(self, state: StateStore) -> None:
        """Give the claims back, for whoever is to have the slots next."""
        state.give_back([self._claims[number] for number in self.numbers])

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


@contextmanager
def owned_for_a_while(
    pipeline: Intake, number: int, state: StateStore, *, keeps_headers: bool = False
) -> Iterator[SlotOwner]:
    """One slot, for at most `LONGEST_CLAIM_SECONDS`: nobody renews its claim.

    Raises what opening a `SlotOwner`, and taking it over, raise.
    """
    slots = OwnedSlots(pipeline, [number], keeps_headers=keeps_headers)
    with slots.opened(state, LONGEST_CLAIM_SECONDS):
        try:
            yield from slots
        finally:
            try:
                slots.give_back(state)
            except FuploaderError as error:
                log.warning(
                    "the claim on slot %d of %s is held for up to %.0f s more: %s",
                    number,
                    pipeline.name,
                    LONGEST_CLAIM_SECONDS,
                    error,
                )
