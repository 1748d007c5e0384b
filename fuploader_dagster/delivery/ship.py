"""Shipping: packing and uploading many partitions, each on its own.

What must always hold: every partition that was asked for gives one outcome; one that fails, by
whatever error, is noted, keeps all its data, and takes no other with it. Partitions that the store
has confirmed already are done, and say so.

A slot that turns out damaged fails once, with what became of it (`mending`): what it still proves
is another partition by then. Whoever asks for it again is told the same, and that it is done.

Packing anew (`Repacking`) is for those only who ask for it: then partitions that the store has are
fetched back, and uploaded once more as the settings say today.

Without Dagster: `ship(settings, store)` packs and uploads everything that lies sealed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

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
from fuploader_dagster.delivery.pack import Packed, find_packed, pack
from fuploader_dagster.delivery.repack import Repacking, repack, upload_again
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


@dataclass(frozen=True)
class Done:
    """A partition that got through a stage."""

    partition: str
    seconds: float
    packed: Packed | None
    """The finished archive; None if it had been stored before."""
    receipt: Receipt | None
    """What the store confirmed; None as long as it is only packed."""
    note: str = ""
    """Why there is neither archive nor receipt, if there will be none."""


@dataclass(frozen=True)
class Failed:
    """A partition that did not. Its data is kept and the failure is noted."""

    partition: str
    seconds: float
    error: str
    permanent: bool
    """Trying again in this run cannot help."""


Outcome = Done | Failed
_Result = tuple[Packed | None, Receipt | None]
_Step = Callable[[SealedSlot, Packed], _Result]
_Again = Callable[[Receipt], _Result]


def pack_partitions(
    partitions: Sequence[str], pipeline: Pipeline, repacking: Repacking | None = None
) -> Iterator[Outcome]:
    """Pack one after the other (the compression of each uses `pack_threads`)."""
    again: _Again | None = None
    if repacking is not None:
        again = lambda before: (repack(before, repacking, pipeline), None)  # noqa: E731
    for partition in partitions:
        yield _attempt(partition, pipeline, "pack", lambda _, packed: (packed, None), again)


def upload_partitions(
    partitions: Sequence[str],
    pipeline: Pipeline,
    store: ObjectStore,
    progress: Callable[[str], Progress] | None = None,
    repacking: Repacking | None = None,
    *,
    tell: Callable[[str], None] = log.warning,
) -> Iterator[Outcome]:
    """Upload side by side; a partition that was not packed yet is packed first.

    `progress` gives the callback for a partition, `tell` gets a sentence for each attempt that is
    repeated. Outcomes come in the order of `partitions`.
    """
    patience = Patience(pipeline.layout, store, tell)

    def ship_one(partition: str) -> Outcome:
        def step(slot: SealedSlot, packed: Packed) -> _Result:
            patience.begin()
            receipt = upload(slot, packed, store, pipeline, progress=reporting(partition))
            patience.succeeded()
            return packed, receipt

        def again(before: Receipt) -> _Result:
            assert repacking is not None  # noqa: S101 - else it is not called
            packed = find_packed(pipeline.layout, partition) or repack(before, repacking, pipeline)
            report = reporting(partition)
            return packed, upload_again(before, packed, store, pipeline, progress=report)

        return _attempt(partition, pipeline, "upload", step, again if repacking else None)

    def reporting(partition: str) -> Progress:
        report = progress(partition) if progress else None

        def progressed(sent: int, total: int) -> None:
            patience.progressed()
            if report is not None:
                report(sent, total)

        return progressed

    with patience, ThreadPoolExecutor(pipeline.upload_threads, "upload") as threads:
        yield from threads.map(ship_one, partitions)


def ship(pipeline: Pipeline, store: ObjectStore) -> Iterator[Outcome]:
    """Pack and upload everything that lies sealed on this disk now."""
    mend_unreadable(pipeline)
    partitions = sealed_partitions(pipeline.layout)
    yield from upload_partitions(partitions, pipeline, store)
    yield from upload_partitions(replacements(pipeline, partitions), pipeline, store)


def replacements(pipeline: Pipeline, shipped: Collection[str]) -> list[str]:
    """Sealed slots that came for damaged ones while these partitions were shipped."""
    new = (PartitionKey.parse(key) for key in sealed_partitions(pipeline.layout))
    return [str(k) for k in new if k and k.slot == MENDED_SLOT and str(k) not in shipped]


def _attempt(
    partition: str, pipeline: Pipeline, stage: Stage, step: _Step, again: _Again | None = None
) -> Outcome:
    """Pack what lies sealed here, then `step`; `again`, if it is asked for, for what is stored."""
    started = time.monotonic()
    packed: Packed | None
    try:
        if PartitionKey.parse(partition) is None:
            raise PermanentError(
                f"{partition!r} is no partition key of ours",
                hint="somebody added it to the partition set by hand; delete it there",
            )
        with (
            naming_disk_trouble(pipeline.layout.root),
            PartitionLock(pipeline.layout, partition) as stored_before,
        ):
            if stored_before is None and (mended := find_mended(pipeline.layout, partition)):
                if stage == "upload":
                    note_told(pipeline.layout, partition, mended)
                note = mended.sentence(pipeline.layout)
                return Done(partition, time.monotonic() - started, None, None, note)
            if stored_before is None:
                slot, packed = _packed(partition, pipeline)
                packed, receipt = step(slot, packed)
            elif again is not None:
                packed, receipt = again(stored_before)
            else:
                packed, receipt = None, stored_before
    except (FuploaderError, OSError) as error:
        text = str(error) or type(error).__name__
        if not isinstance(error, StoreAwaited):  # it was no attempt
            _note(partition, pipeline, stage, text)
        permanent = isinstance(error, (PermanentError, DamagedData, StoreAwaited))
        return Failed(partition, time.monotonic() - started, text, permanent)
    except Exception as error:  # nobody foresaw it; the outcomes of the others must not go with it
        log.exception("the %s of %s failed by an error that nobody foresaw", stage, partition)
        said = without_logins(f"{type(error).__name__}: {error}")
        text = f"{stage} failed by an error that nobody foresaw: {said}"
        _note(partition, pipeline, stage, text)
        return Failed(partition, time.monotonic() - started, text, permanent=False)
    return Done(partition, time.monotonic() - started, packed, receipt)


def _packed(partition: str, pipeline: Pipeline) -> tuple[SealedSlot, Packed]:
    """The slot and its archive. One that is damaged is mended, and the error says so."""
    layout, key = pipeline.layout, PartitionKey.parse(partition)
    assert key is not None  # noqa: S101 - _attempt asked
    try:
        if is_replaced(layout, key.slot, key.number):
            raise DamagedSlot(f"{partition} was found damaged before")
        slot = _sealed(partition, pipeline)
        finish_mending(slot, layout)
        return slot, pack(slot, pipeline)
    except DamagedSlot as error:
        mended = mend(key.slot, key.number, error, pipeline)
        raise DamagedSlot(mended.sentence(layout)) from error


def mend_unreadable(pipeline: Pipeline) -> list[str]:
    """Mend slots whose seal cannot be read: nobody asks for them by their partition. Returns the
    partitions of what was proven; trouble with one is said in the log and holds up no other."""
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
    """Count the failure of a slot that is here; losing the count loses nothing else."""
    try:
        key = PartitionKey.parse(partition)
        if key is not None and pipeline.layout.sealed(key.slot, key.number).is_dir():
            note_failure(pipeline.layout, partition, stage=stage, error=error, now=time.time())
    except (FuploaderError, OSError) as trouble:
        log.warning("the failure of %s could not be noted: %s", partition, trouble)


def _sealed(partition: str, pipeline: Pipeline) -> SealedSlot:
    slot = find_sealed(pipeline.layout, partition)
    if slot is None:
        raise PermanentError(
            f"there is no data of partition {partition} below {pipeline.layout.root}",
            hint="it belongs to another node or storage root; nothing of it was ever stored "
            "from here",
        )
    return slot
