"""Shipping: pack sealed slots and upload their archives, each partition on its own.

What must always hold: every partition that was asked for gives one outcome. One that fails, by
whatever error, is noted, keeps all its data, and takes no other with it. A partition that the store
has confirmed already is done, and its outcome says so.

A damaged slot fails once, and the error says what became of it (`mend`): what it still proves is
another partition by then. Whoever asks for the damaged one again is told the same, and that it is
done.

Without Dagster: `ship(pipeline, store)` packs and uploads everything that is sealed on this disk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from fuploader_dagster.contracts.object_store import ObjectStore, Progress
from fuploader_dagster.delivery.failures import Stage, note_failure
from fuploader_dagster.delivery.mend import (
    MENDED_SLOT,
    find_mended,
    finish_mending,
    is_replaced,
    mend,
    note_told,
    unreadable_slots,
)
from fuploader_dagster.delivery.pack import Packed, pack
from fuploader_dagster.delivery.store_trouble import Patience
from fuploader_dagster.delivery.upload import PartitionLock, upload
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import (
    DamagedData,
    DamagedSlot,
    FuploaderError,
    PermanentError,
    StoreAwaited,
)
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.secret import without_logins
from fuploader_dagster.slots.receipts import Receipt
from fuploader_dagster.slots.sealing import SealedSlot, find_sealed, sealed_partitions

log = logging.getLogger(__name__)

ProgressOf = Callable[[str], Progress]
"""Gives the callback for a partition's upload."""


@dataclass(frozen=True)
class Done:
    """A partition that got through."""

    partition: str
    packed: Packed | None = None
    """The finished archive; None if it was stored before."""
    receipt: Receipt | None = None
    """What the store confirmed; None while it is only packed."""
    note: str = ""
    """Why there is neither archive nor receipt, if there will be none."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Failed:
    """A partition that did not get through. Its data is kept."""

    partition: str
    error: str
    permanent: bool
    """Trying again in this run cannot help."""
    attempted: bool = True
    """False: nothing was tried, because another process waits for the store already."""
    seconds: float = 0.0


Outcome = Done | Failed
_Deliver = Callable[[SealedSlot, Packed], Receipt]


def pack_partitions(partitions: Sequence[str], pipeline: Pipeline) -> Iterator[Outcome]:
    """Pack one after the other (the compression of each uses `pack_threads`)."""
    for partition in partitions:
        yield _ship_one(partition, pipeline, "pack")


def upload_partitions(
    partitions: Sequence[str],
    pipeline: Pipeline,
    store: ObjectStore,
    progress: ProgressOf | None = None,
    *,
    tell: Callable[[str], None] = log.warning,
) -> Iterator[Outcome]:
    """Upload side by side; a partition that is not packed yet is packed first.

    `tell` gets a sentence for each attempt that is repeated. Outcomes come in the order of
    `partitions`.
    """
    patience = Patience(pipeline.layout, store, tell)

    def deliver(slot: SealedSlot, packed: Packed) -> Receipt:
        patience.begin()
        report = patience.listening(progress(packed.partition) if progress else None)
        receipt = upload(slot, packed, store, pipeline, progress=report)
        patience.succeeded()
        return receipt

    with patience, ThreadPoolExecutor(pipeline.upload_threads, "upload") as threads:
        yield from threads.map(
            lambda partition: _ship_one(partition, pipeline, "upload", deliver), partitions
        )


def ship(pipeline: Pipeline, store: ObjectStore) -> Iterator[Outcome]:
    """Pack and upload everything that is sealed on this disk now."""
    mend_unreadable(pipeline)
    partitions = sealed_partitions(pipeline.layout)
    yield from upload_partitions(partitions, pipeline, store)
    yield from upload_partitions(replacements(pipeline, partitions), pipeline, store)


def replacements(pipeline: Pipeline, shipped: Collection[str]) -> list[str]:
    """Sealed slots that replaced damaged ones while these partitions were shipped."""
    new = (PartitionKey.parse(key) for key in sealed_partitions(pipeline.layout))
    return [str(k) for k in new if k and k.slot == MENDED_SLOT and str(k) not in shipped]


def attempt(partition: str, steps: Callable[[PartitionKey], Done]) -> Outcome:
    """Take one partition through its steps; whatever goes wrong becomes its outcome."""
    started = time.monotonic()
    outcome: Outcome
    try:
        key = PartitionKey.parse(partition)
        if key is None:
            raise PermanentError(
                f"{partition!r} is no partition key of ours",
                hint="somebody added it to the partition set by hand; delete it there",
            )
        outcome = steps(key)
    except (FuploaderError, OSError) as error:
        text = str(error) or type(error).__name__
        permanent = isinstance(error, (PermanentError, DamagedData, StoreAwaited))
        outcome = Failed(partition, text, permanent, not isinstance(error, StoreAwaited))
    except Exception as error:  # a bug: the outcomes of the others must not go with it
        log.exception("unexpected error for partition %s", partition)
        said = without_logins(f"{type(error).__name__}: {error}")
        text = f"unexpected error, its traceback is in the log: {said}"
        outcome = Failed(partition, text, permanent=False)
    return replace(outcome, seconds=time.monotonic() - started)


def _ship_one(
    partition: str, pipeline: Pipeline, stage: Stage, deliver: _Deliver | None = None
) -> Outcome:
    outcome = attempt(partition, lambda key: _steps(key, pipeline, deliver))
    if isinstance(outcome, Failed) and outcome.attempted:
        _note(partition, pipeline, stage, outcome.error)
    return outcome


def _steps(key: PartitionKey, pipeline: Pipeline, deliver: _Deliver | None) -> Done:
    """Lock the partition, pack its slot, deliver the archive."""
    layout, partition = pipeline.layout, str(key)
    with naming_disk_trouble(layout.root), PartitionLock(layout, partition) as stored_before:
        if stored_before is not None:
            return Done(partition, receipt=stored_before)
        if mended := find_mended(layout, partition):
            if deliver is not None:
                note_told(layout, partition, mended)
            return Done(partition, note=mended.sentence(layout))
        slot, packed = _packed(key, pipeline)
        return Done(partition, packed, deliver(slot, packed) if deliver is not None else None)


def _packed(key: PartitionKey, pipeline: Pipeline) -> tuple[SealedSlot, Packed]:
    """The slot and its archive. A damaged slot is mended, and the error says so."""
    layout = pipeline.layout
    try:
        if is_replaced(layout, key.slot, key.number):
            raise DamagedSlot(f"{key} was found damaged before")
        slot = _sealed(str(key), pipeline)
        finish_mending(slot, layout)
        return slot, pack(slot, pipeline)
    except DamagedSlot as error:
        mended = mend(key.slot, key.number, error, pipeline)
        raise DamagedSlot(mended.sentence(layout)) from error


def mend_unreadable(pipeline: Pipeline) -> list[str]:
    """Mend slots whose seal cannot be read: nobody asks for them by their partition. Returns the
    partitions of what was proven. Trouble with one slot is logged and holds up no other."""
    found = []
    for directory in unreadable_slots(pipeline.layout):
        slot, number = (int(name.rpartition("-")[2]) for name in directory.parts[-2:])
        try:
            mended = mend(slot, number, DamagedSlot(f"{directory} has no readable seal"), pipeline)
        except (FuploaderError, OSError) as error:
            log.error("%s is damaged and could not be mended: %s", directory, error)
        else:
            found += [mended.stored_as] if mended.stored_as else []
    return found


def _note(partition: str, pipeline: Pipeline, stage: Stage, error: str) -> None:
    """Count the failure of a slot that is on this disk; losing the count loses nothing else."""
    try:
        key = PartitionKey.parse(partition)
        if key is not None and pipeline.layout.sealed(key.slot, key.number).is_dir():
            note_failure(pipeline.layout, partition, stage=stage, error=error, now=time.time())
    except (FuploaderError, OSError) as trouble:
        log.warning("could not note the failure of %s: %s", partition, trouble)


def _sealed(partition: str, pipeline: Pipeline) -> SealedSlot:
    slot = find_sealed(pipeline.layout, partition)
    if slot is None:
        raise PermanentError(
            f"there is no data of partition {partition} below {pipeline.layout.root}",
            hint="it belongs to another node or another storage_root: nothing of it was ever "
            "stored from here",
        )
    return slot
