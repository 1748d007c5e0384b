"""The figures of a pipeline on this node: for the UI, `fuploader status` and metrics.

What must always hold: reading them changes nothing, and they cost what changed since the last
reading, not what there is. A figure that cannot be told is None, never a guess. Totals are durable
where they are kept (state store, receipts), so they survive restarts; a state store that was
emptied counts from zero again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fuploader_dagster.contracts.source import Depth, SourceSettings
from fuploader_dagster.contracts.state import Snapshot
from fuploader_dagster.control.wishes import Wishes, known, read_here
from fuploader_dagster.disk.layout import Layout, PartitionKey
from fuploader_dagster.errors import DamagedSlot, FuploaderError
from fuploader_dagster.health.remembered import (
    Reading,
    Stored,
    letters_waiting,
    stored_so_far,
)
from fuploader_dagster.intake.disk_space import DiskSpace, Unshipped, existing_part, space_of
from fuploader_dagster.intake.worker_status import WorkerStatus, read_statuses
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import find_receipts
from fuploader_dagster.slots.seal_log import Noted
from fuploader_dagster.slots.sealing import Seal, is_whole, read_seal

QUEUE_SECONDS = 8.0
"""How long a queue may take to say what waits in it."""
LEAST_SPAN_SECONDS = 10.0
"""Rates over less than this say nothing."""
_DAY_SECONDS = 86_400.0


class Queue(msgspec.Struct, frozen=True):
    """What a queue answered."""

    depth: Depth | None
    trouble: str = ""
    """Why it is not known."""

    @property
    def waiting(self) -> int | None:
        return self.depth.waiting if self.depth else None


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """How a pipeline is doing on this node. Sizes are bytes; `at` is seconds since 1970."""

    at: float
    queue: Queue
    wishes: Wishes
    """What people want of intake and shipping."""
    workers: Sequence[WorkerStatus]
    """Those that are alive."""

    snapshot: Snapshot | None
    """What the state store knows: totals since it was empty, and what is in active slots."""
    state_trouble: FuploaderError | None

    sealed_slots: int
    """On the disk, without a confirmed archive."""
    sealed_messages: int
    damaged_slots: int
    """Sealed directories whose seal cannot be read."""
    oldest_unshipped_at: float | None
    """When the oldest slot that is not stored was sealed, or the oldest active one was begun;
    None if nothing waits."""
    space: DiskSpace
    stored: Stored
    letters: Mapping[str, int]
    """Dead letters that wait, by what failed: `drain`, `process`, `sink:NAME`."""

    @property
    def consumers(self) -> int:
        """This node's workers that take messages; one that may hang is none of them."""
        return sum(one.drains(self.at) for one in self.workers)

    @property
    def oldest_unshipped_seconds(self) -> float:
        since = self.oldest_unshipped_at
        return max(0.0, self.at - since) if since is not None else 0.0

    @property
    def active_messages(self) -> int | None:
        return sum(one.messages for one in self.snapshot.slots) if self.snapshot else None

    @property
    def messages_in(self) -> int | None:
        """Messages acknowledged: stored, known already, or dead letters."""
        known = self.snapshot
        if known is None:
            return None
        return known.stored_messages + known.duplicates + known.dead_letters

    @property
    def dead_letters_waiting(self) -> int:
        return sum(self.letters.values())


def figures_of(pipeline: Pipeline, queue: Queue | None = None) -> Figures:
    """Read them. `queue`: what it answered already; else it is asked."""
    layout = pipeline.layout
    queue = queue or ask_queue(pipeline.source)
    snapshot, trouble, wishes = _ask_state(pipeline)
    active = _oldest_active(layout)
    sealed, damaged = _sealed(layout)
    stored = find_receipts(layout, [one.partition for one in sealed])
    waiting = [one for one in sealed if one.partition not in stored]
    begun = [moment for seal in waiting if (moment := _sealed_at(seal)) is not None]
    begun += [active] if active is not None else []
    return Figures(
        at=time.time(),
        queue=queue,
        wishes=wishes,
        workers=read_statuses(layout),
        snapshot=snapshot,
        state_trouble=trouble,
        sealed_slots=len(waiting),
        sealed_messages=sum(one.messages for one in waiting),
        damaged_slots=damaged,
        oldest_unshipped_at=min(begun, default=None),
        space=space_of(existing_part(layout.root), _unshipped(layout).bytes()),
        stored=stored_so_far(layout),
        letters=letters_waiting(layout),
    )


def sealed_now(layout: Layout) -> list[Noted]:
    """The sealed slots on the disk, for the seal log."""
    return [Noted(one.partition, one.messages) for one in _sealed(layout)[0]]


def ask_queue(source: SourceSettings, patience_seconds: float = QUEUE_SECONDS) -> Queue:
    """What waits in a queue. One that does not answer in time says so; its thread is left alone."""
    answers: list[Queue] = []

    def ask() -> None:
        try:
            with closing(source.publisher()) as publisher:
                answers.append(Queue(publisher.depth()))
        except FuploaderError as error:
            answers.append(Queue(None, str(error)))

    thread = threading.Thread(target=ask, daemon=True, name="look at the queue")
    thread.start()
    thread.join(patience_seconds)
    if answers:
        return answers[0]
    return Queue(None, f"{source.describe()} did not answer within {patience_seconds:g} s")


@dataclass(frozen=True)
class Rates:
    """What happened between two readings, per second; None where it is not known."""

    seconds: float
    messages_in: float | None
    """Messages acknowledged."""
    messages_out: float
    """Messages whose archive was confirmed."""
    bytes_out: float
    """Of archives."""


def reading_of(figures: Figures) -> Reading:
    """What later figures are compared with."""
    return Reading(
        at=figures.at,
        waiting=figures.queue.waiting,
        messages_in=figures.messages_in,
        stored_messages=figures.stored.messages,
        archive_bytes=figures.stored.archive_bytes,
        free_bytes=figures.space.free_bytes,
    )


def rates(before: Reading, now: Reading) -> Rates | None:
    """Rates between two readings; None if they are too close, or if something counts anew."""
    seconds = now.at - before.at
    if seconds < LEAST_SPAN_SECONDS or now.stored_messages < before.stored_messages:
        return None
    taken = None
    if before.messages_in is not None and now.messages_in is not None:
        taken = (now.messages_in - before.messages_in) / seconds
    return Rates(
        seconds,
        taken if taken is None or taken >= 0 else None,
        (now.stored_messages - before.stored_messages) / seconds,
        (now.archive_bytes - before.archive_bytes) / seconds,
    )


def disk_days_left(before: Reading, now: Reading, reserved_bytes: int) -> float | None:
    """Days until the drain pauses for lack of space, if the disk fills on as it did between two
    readings; None if it does not fill."""
    seconds, filled = now.at - before.at, before.free_bytes - now.free_bytes
    if seconds < LEAST_SPAN_SECONDS or filled <= 0:
        return None
    return max(0, now.free_bytes - reserved_bytes) * seconds / filled / _DAY_SECONDS


def _ask_state(pipeline: Pipeline) -> tuple[Snapshot | None, FuploaderError | None, Wishes]:
    settings = pipeline.state.in_a_hurry()
    if not settings.exists():
        return Snapshot(), None, read_here(pipeline.layout)
    try:
        with settings.opened(pipeline=pipeline.name, node=pipeline.node) as state:
            return state.snapshot(), None, known(pipeline.layout, state, changing=False)
    except FuploaderError as error:
        return None, error, read_here(pipeline.layout)


_backlogs: dict[Path, Unshipped] = {}
_seals: dict[Path, dict[Path, Seal]] = {}


def _unshipped(layout: Layout) -> Unshipped:
    return _backlogs.setdefault(layout.root, Unshipped(layout))


def _sealed(layout: Layout) -> tuple[list[Seal], int]:
    """The seals on the disk, each read once, and how many cannot be read."""
    before, found, damaged = _seals.get(layout.root, {}), {}, 0
    for directory in layout.sealed_dirs():
        seal = before.get(directory)
        if seal is None:
            try:
                seal = read_seal(directory)
            except DamagedSlot:
                damaged += directory.is_dir()  # else a run has just removed it
                continue
        found[directory] = seal
    _seals[layout.root] = found
    return [one for one in found.values() if is_whole(one, layout)], damaged


def _sealed_at(seal: Seal) -> float | None:
    key = PartitionKey.parse(seal.partition)
    return key.sealed_at.timestamp() if key else None


def _oldest_active(layout: Layout) -> float | None:
    """When the oldest active directory was begun: its entries never change after that."""
    begun = []
    for slot in layout.active_slots():
        for number in layout.active_numbers(slot):
            with suppress(OSError):  # it has just been sealed
                begun.append(layout.active(slot, number).stat().st_mtime)
    return min(begun, default=None)
