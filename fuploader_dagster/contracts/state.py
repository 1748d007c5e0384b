"""StateStore: who writes which slot, what is in it, and what is sealed but not yet registered.

What must always hold:

- The store coordinates and counts; it is never the only place of anything. Losing all of it loses
  no message: a starting worker gives it back what the directories say.
- One committed batch costs one round trip (`record`), however many messages it has.
- A slot is claimed by one storage root at a time. Within a storage root a file lock decides; the
  claim catches two machines that were given the same node name. A claim is released or renewed
  only by the root that holds it, and it lapses by itself after its time to live.

- Whoever may write to the store may write nonsense. A value that no method here would have stored
  is passed over with one line in the log, and replaced by the next `record`; it never stops a
  worker or a tick. The directories on disk are the truth.

All methods raise `StateUnavailable` when the store does not answer, and `StateRefused` when it
refuses us until a person acts (rights, memory, a key or table of another kind in our place). Each
is atomic, and safe to repeat, except that repeating `record` counts its totals twice (they are for
people to look at).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from pydantic import BaseModel, ConfigDict, SecretStr

from fuploader_dagster.contracts.diagnosis import Diagnosis

HIGHEST_NUMBER = 999_999_999
"""No directory number that a store remembers is above it: one per second for 30 years. What claims
to be higher is nonsense, and a slot that believed it would make nonsense of its directories."""
LONGEST_CLAIM_SECONDS = 120.0
"""No claim runs longer from now. One that says so was made before a clock was set back, or by
somebody else: it is cut when it is met. Four times what a worker asks for."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlotCount:
    """What an active directory holds."""

    slot: int
    number: int
    """The directory's number within the slot; never used again once used."""
    messages: int
    size_bytes: int


@dataclass(frozen=True)
class Commit:
    """What one durable commit changed. Totals are differences, slots are absolute."""

    slots: Sequence[SlotCount] = ()
    sealed: Sequence[str] = ()
    """Partition keys of slots that were sealed in this step."""
    stored_messages: int = 0
    stored_bytes: int = 0
    duplicates: int = 0
    dead_letters: int = 0


@dataclass(frozen=True)
class Snapshot:
    """Everything the store knows about one pipeline on one node, for status displays."""

    slots: Sequence[SlotCount] = ()
    owners: dict[int, str] = field(default_factory=dict)
    """Slot number to the storage root's id that holds its claim."""
    sealed_waiting: int = 0
    stored_messages: int = 0
    stored_bytes: int = 0
    duplicates: int = 0
    dead_letters: int = 0


class StateStore(ABC):
    """State of one pipeline on one node. Thread-safe."""

    @abstractmethod
    def open(self) -> None:
        """Connect and check that the store answers. May be repeated."""

    @abstractmethod
    def close(self) -> None:
        """Disconnect. Never raises, may be repeated."""

    @abstractmethod
    def claim(self, slots: Sequence[int], root_id: str, ttl_seconds: float) -> None:
        """Claim the slots for a storage root, all or none; renews what the root already holds.

        Raises `SlotInUse`, naming the holder, if another root holds one of them. If that claim
        would run longer than `LONGEST_CLAIM_SECONDS` from now, it is cut to `ttl_seconds` from now:
        its holder has the time to renew it, and without one it lapses. `ttl_seconds` is at most
        `LONGEST_CLAIM_SECONDS`.
        """

    @abstractmethod
    def release(self, slots: Sequence[int], root_id: str) -> None:
        """Give claims back. Claims of other roots are left alone."""

    @abstractmethod
    def record(self, commit: Commit, *, root_id: str, ttl_seconds: float) -> None:
        """Store a commit's counts, queue its sealed keys, renew its slots' claims: one round trip.

        A slot that appears in `commit.slots` replaces what was stored for it. If another root
        holds a claim on one of these slots nothing is changed and `SlotInUse` is raised.
        """

    @abstractmethod
    def highest_number(self, slot: int) -> int:
        """The highest directory number ever recorded for the slot; 0 if none.

        What is stored but is no number, or one above `HIGHEST_NUMBER`, counts as none.
        """

    @abstractmethod
    def add_sealed(self, keys: Sequence[str]) -> None:
        """Queue partition keys for registration. A key that is queued already stays as it is."""

    @abstractmethod
    def sealed(self, limit: int) -> list[str]:
        """Up to `limit` keys that wait for registration, in lexical order. Removes nothing.

        Whatever was put in comes back as it is, so that `forget_sealed` can take it out.
        """

    @abstractmethod
    def forget_sealed(self, keys: Sequence[str]) -> None:
        """Take registered keys out of the queue. Unknown keys are ignored."""

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """What is known now. An empty store gives an empty snapshot; nonsense is left out."""


@lru_cache(maxsize=256)
def warn_once(sentence: str) -> None:
    """Log a warning, once per process: a tick looks at the same value every five seconds."""
    log.warning("%s", sentence)


_OF_NO_PIPELINE = "fuploader-doctor"
"""No pipeline can have this name: it has a hyphen."""


class StateSettings(BaseModel):
    """What a configuration says about the state store; subclasses add fields and build it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    def store(self, *, pipeline: str, node: str) -> StateStore:
        """The store of one pipeline on one node. Not yet connected."""
        raise NotImplementedError

    def in_a_hurry(self) -> StateSettings:
        """The same store for somebody whom others wait for: a sensor's tick holds up all other
        sensors. Gives up within about a second; by default nothing is different.
        """
        return self

    def describe(self) -> str:
        """Address in words, without secrets."""
        raise NotImplementedError

    def examine(self) -> Iterator[Diagnosis]:
        """What `fuploader doctor` should know about the store, by a real write of its own.

        Raises errors of ours for what is in the way. Backends add what they know of theirs.
        """
        store = self.store(pipeline=_OF_NO_PIPELINE, node="doctor")
        try:
            store.open()
            store.add_sealed(["probe"])
            store.forget_sealed(["probe"])
            store.snapshot()
        finally:
            store.close()
        yield Diagnosis("state", "good", f"{self.describe()}: written and read")

    def examine_for(self, *, pipeline: str, node: str) -> Iterator[Diagnosis]:
        """What `fuploader doctor` should know about the store of this one pipeline.

        Backends whose rights or places differ by pipeline prove those that the pipeline meets,
        without disturbing it. By default all pipelines are alike.
        """
        yield from self.examine()

    def redis_url(self) -> SecretStr | None:
        """The Redis behind it, where FUploader may have kept its state too; None if it is none."""
        return None
