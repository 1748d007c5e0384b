"""StateStore: who writes which slot, what is in it, and which sealed slots are not yet registered.

What must always hold:

- The store coordinates and counts; nothing is stored only there. Losing all of it loses no message:
  a worker that starts puts back what the directories say.
- One committed batch costs one round trip (`record`), however many messages it has.
- One storage root in one place claims a slot. Within a storage root a file lock decides; the claim
  catches two machines with the same node name, and two copies of one storage root. Only its holder
  can renew or release a claim, and it expires by itself after its time to live.
- Each take-over of a slot raises its epoch. A claim of an earlier epoch renews and commits nothing
  any more, and a copy of a storage root that missed an epoch never claims the slot again.
- Others who can write to the store may write nonsense. A value that no method here would have
  stored is skipped with one line in the log, and the next `record` replaces it. It never stops a
  worker or a tick. The directories on disk are the truth.

All methods raise `StateUnavailable` if the store does not answer, and `StateRefused` if it refuses
us until a person acts (rights, memory, a key or table of another kind in place of ours). Each is
atomic and safe to repeat, except that repeating `record` counts its totals twice (they are only for
people to look at).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

from pydantic import SecretStr

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.settings import Settings
from fuploader_dagster.errors import OutdatedCopy, SlotInUse

HIGHEST_NUMBER = 999_999_999
"""Highest directory number: one per second for 30 years. A store that returns a higher one returns
nonsense, and a slot must not use it for its directories."""
LONGEST_CLAIM_SECONDS = 120.0
"""No claim lasts longer than this from now. One that does was made before a clock was set back, or
by some other program, and is shortened when it is found. Four times what a worker asks for."""

HURRIED_SECONDS = 1.0
"""How long a store of `in_a_hurry` waits."""
TOTALS = ("stored_messages", "stored_bytes", "duplicates", "dead_letters")
"""What `Commit` adds to, and `Snapshot` states."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlotCount:
    """What an active directory holds."""

    slot: int
    number: int
    """The directory's number within the slot. No number is used twice."""
    messages: int
    size_bytes: int


@dataclass(frozen=True)
class Claim:
    """One slot, claimed by a storage root in a place."""

    slot: int
    root_id: str
    place: str
    """Tells copies of one storage root apart, and tells people where each is. One line of text."""
    epoch: int
    """How often the slot was taken over, this time included; at most `HIGHEST_EPOCH`."""
    nonce: str
    """Hex digits, drawn for this take-over: two copies may both come to the same epoch."""


HIGHEST_EPOCH = 10**15 - 1


@dataclass(frozen=True)
class Commit:
    """What one durable commit changed. `slots` are absolute counts, totals are differences."""

    slots: Sequence[SlotCount] = ()
    sealed: Sequence[str] = ()
    """Partition keys of the slots that this commit sealed."""
    stored_messages: int = 0
    stored_bytes: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    claims: Sequence[Claim] = ()
    """With which `slots` were taken. A store that knows no epochs ignores them."""


@dataclass(frozen=True)
class Snapshot:
    """All that the store knows about one pipeline on one node, for status displays."""

    slots: Sequence[SlotCount] = ()
    owners: dict[int, str] = field(default_factory=dict)
    """For each slot number, the id of the storage root that holds its claim."""
    sealed_waiting: int = 0
    stored_messages: int = 0
    stored_bytes: int = 0
    duplicates: int = 0
    dead_letters: int = 0


HIGHEST_NOTE_TIME = 9 * 10**15
"""The latest time of a note, in the year 2255. Every store can count that far exactly."""


@dataclass(frozen=True)
class Note:
    """Something that all nodes of a pipeline have to know."""

    at: int
    """When it was written, in microseconds since 1970: of two with one name the later one counts.
    At most `HIGHEST_NOTE_TIME`."""
    text: str


class StateStore(ABC):
    """State of one pipeline on one node; its notes are those of all nodes. Thread-safe."""

    @abstractmethod
    def open(self) -> None:
        """Connect and check that the store answers. May be repeated."""

    @abstractmethod
    def close(self) -> None:
        """Disconnect. Never raises, may be repeated."""

    @abstractmethod
    def claim(self, slots: Sequence[int], root_id: str, ttl_seconds: float) -> None:
        """Claim the slots for a storage root, all or none. Renews claims that the root holds.

        Raises `SlotInUse`, naming the holder, if another root holds one of them. If that claim
        lasts longer than `LONGEST_CLAIM_SECONDS` from now, it is shortened to `ttl_seconds` from
        now: a live holder has time to renew it, and otherwise it expires. `ttl_seconds` is at most
        `LONGEST_CLAIM_SECONDS`.
        """

    @abstractmethod
    def release(self, slots: Sequence[int], root_id: str) -> None:
        """Release claims. Those of other roots stay."""

    def take(self, claims: Sequence[Claim], ttl_seconds: float) -> Sequence[Claim]:
        """Take slots over, all or none; returns the claims that hold now, which `record` is given.

        Like `claim`, but also tells copies of a root apart. For a slot whose last take-over was by
        the same root:

        - in the same place, it is taken at once, in an epoch higher than the last one, or in the
          last one if the nonce is the same too. The file lock has kept others out.
        - in another place, it raises `OutdatedCopy` if the last epoch is higher than the claim's,
          or equal with another nonce: that copy has gone on without this one. Otherwise it raises
          `SlotInUse` until the claim there has expired or was given back.

        A claim without an epoch, as `claim` leaves it, is taken at once by the same root.

        The default is for a store that knows no epochs.
        """
        self.claim([one.slot for one in claims], claims[0].root_id, ttl_seconds)
        return claims

    def give_back(self, claims: Sequence[Claim]) -> None:
        """Release claims that still hold; those that others have taken over since stay. Who took a
        slot last is remembered. The default is for a store that knows no epochs."""
        self.release([one.slot for one in claims], claims[0].root_id)

    @abstractmethod
    def record(self, commit: Commit, *, root_id: str, ttl_seconds: float) -> None:
        """In one round trip store a commit's counts, queue its sealed keys, renew its claims.

        An entry of `commit.slots` replaces what was stored for the slot. Raises `SlotInUse` and
        changes nothing if another root holds a claim on one of these slots, or if one of
        `commit.claims` is not the last take-over of its slot, expired or not.
        """

    @abstractmethod
    def highest_number(self, slot: int) -> int:
        """The highest directory number ever recorded for the slot; 0 if none.

        A stored value that is not a number, or is above `HIGHEST_NUMBER`, counts as none.
        """

    @abstractmethod
    def add_sealed(self, keys: Sequence[str]) -> None:
        """Queue partition keys for registration. A key that is already queued stays as it is."""

    @abstractmethod
    def sealed(self, limit: int) -> list[str]:
        """Up to `limit` keys that wait for registration, in lexical order. Removes nothing.

        Returns keys exactly as they were queued, so that `forget_sealed` can remove them.
        """

    @abstractmethod
    def forget_sealed(self, keys: Sequence[str]) -> None:
        """Remove registered keys from the queue. Unknown keys are ignored."""

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """The current state, without nonsense. An empty store gives an empty snapshot."""

    def notes(self) -> dict[str, Note]:
        """By name, the notes of this pipeline on all nodes that share the store, without nonsense.

        The default is for a store that keeps none: each node then knows only its own.
        """
        return {}

    def put_note(self, name: str, note: Note) -> None:  # noqa: B027 - the default keeps none
        """Keep the note, unless the store has one of this name that is as late or later."""


def refusal(
    slot: int, holder: str, place: str, ours: Claim | None, *, outdated: bool, about: str
) -> SlotInUse | OutdatedCopy:
    """The error for a slot that another root, or another copy of this one, holds in `place`.

    `about`: pipeline, node and store, for people. All stores use these words.
    """
    there = f"storage root {holder}" + (f" on {place}" if place else "")
    here = f", not by this one, {ours.root_id} on {ours.place}" if ours else ""
    if ours is None or holder != ours.root_id:
        return SlotInUse(
            f"slot {slot} of {about} is held by {there}{here}",
            hint="do two machines use the same node name? Give each a node_id of its own. If the "
            "other one is gone, this one continues by itself when its claim expires",
        )
    if outdated:
        return OutdatedCopy(
            f"slot {slot} of {about}: this is an older copy of {there}, which has been written "
            f"since; this copy is on {ours.place} and is not written any more",
            hint="remove this copy and keep the other one. Only if the other one is lost for good: "
            "remove the file root-id in this folder, and this copy continues as a storage root of "
            "its own",
        )
    return SlotInUse(
        f"slot {slot} of {about} is being written by a copy of this storage root: {there}. This "
        f"copy is on {ours.place} and waits",
        hint="stop the one that should not write, and remove its folder. If the other one is gone, "
        "this one continues by itself when its claim expires",
    )


@lru_cache(maxsize=256)
def warn_once(sentence: str) -> None:
    """Log a warning once per process, because a tick meets the same value every five seconds."""
    log.warning("%s", sentence)


OF_NO_PIPELINE = "fuploader-doctor"
"""No pipeline can have this name, because of its hyphen."""


class StateSettings(Settings):
    """The settings of a state store. Subclasses add fields, and build the store."""

    def store(self, *, pipeline: str, node: str) -> StateStore:
        """The store of one pipeline on one node. Not yet connected."""
        raise NotImplementedError

    def exists(self) -> bool:
        """Whether there is something to read. False only where opening the store would make it (a
        file that is missing): who only looks, leaves it alone then."""
        return True

    @contextmanager
    def opened(self, *, pipeline: str, node: str) -> Iterator[StateStore]:
        """A store that is open for the block. Raises what `StateStore.open` raises."""
        with closing(self.store(pipeline=pipeline, node=node)) as store:
            store.open()
            yield store

    def in_a_hurry(self) -> StateSettings:
        """The same store, but giving up after `HURRIED_SECONDS`: for sensors, whose ticks hold up
        all other sensors. By default there is no difference.
        """
        return self

    def describe(self) -> str:
        """The address, for people, without secrets."""
        raise NotImplementedError

    def examine(self) -> Iterator[Diagnosis]:
        """Check the store for `fuploader doctor`, with a real write.

        Raises an error of this package if the check cannot go on. Backends add checks of their own.
        """
        with self.opened(pipeline=OF_NO_PIPELINE, node="doctor") as store:
            store.add_sealed(["probe"])
            store.forget_sealed(["probe"])
            store.snapshot()
        yield Diagnosis("state", "good", f"{self.describe()}: written and read")

    def examine_for(self, *, pipeline: str, node: str) -> Iterator[Diagnosis]:
        """Check the store of this one pipeline for `fuploader doctor`.

        For backends where rights or places depend on the pipeline: check this pipeline's, without
        disturbing it. The default calls `examine`.
        """
        yield from self.examine()

    def redis_url(self) -> SecretStr | None:
        """The Redis that this store uses, where FUploader may have kept its state; None if none."""
        return None

    def holds_any(self, keys: Sequence[str]) -> bool:
        """Whether the store's server holds any of these keys, which belong to another program.

        Called once when a process starts a pipeline, to find FUploader's data. Must be cheap and
        change nothing. A server that refuses to answer counts as holding none. Raises
        `StateUnavailable` and `StateRefused`. The default is for stores without such a server.
        """
        return False
