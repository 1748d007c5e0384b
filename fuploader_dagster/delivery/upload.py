"""Uploading: a finished archive becomes a verified object, and only then local data is removed.

What must always hold, in this order: the object store confirms size and digest; the receipt is
durable; the local data is removed. After a crash between any two of them the next attempt or
recovery finishes the rest, and doing a step twice does no harm.

The index is kept for some time: redelivered messages are compared with it.

The catalog gets the names before the receipt is kept: after a crash in between it gets them again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.catalog.rebuild import note_in_catalog
from fuploader_dagster.contracts.object_store import (
    ArchiveFile,
    ObjectStore,
    Progress,
    counted_requests,
)
from fuploader_dagster.delivery import notices
from fuploader_dagster.delivery.archive_members import names_in
from fuploader_dagster.delivery.failures import clear_failure
from fuploader_dagster.delivery.pack import Packed, forget_packed
from fuploader_dagster.delivery.sink_notes import keep_or_owe
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import remove_tree
from fuploader_dagster.disk.layout import Layout, utc
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.disk.setting_aside import place_aside, set_aside
from fuploader_dagster.errors import DamagedSlot
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.processed import remove_processed
from fuploader_dagster.slots.receipts import Receipt, find_receipt, keep_receipt
from fuploader_dagster.slots.sealing import SealedSlot, find_sealed
from fuploader_dagster.slots.shipped_indexes import keep_index, trim_after

log = logging.getLogger(__name__)


def upload(
    slot: SealedSlot,
    packed: Packed,
    store: ObjectStore,
    pipeline: Pipeline,
    *,
    progress: Progress | None = None,
) -> Receipt:
    """Store the archive, keep the receipt, remove the local data. The caller holds the lock.

    Raises what `ObjectStore.put` raises, or `StrategyError` if the slot still has no usable key;
    local data is kept in each case.
    """
    receipt = store_archive(
        packed,
        store,
        pipeline,
        key=slot.object_key(pipeline.key, pipeline.zone),
        split=slot.seal.split,
        names=lambda: names_of(slot, packed, pipeline, pipeline.layout),
        progress=progress,
    )
    remove_local_data(pipeline, receipt)
    trim_after(slot, pipeline.layout, pipeline.dedup_window_messages)
    return receipt


def names_of(slot: SealedSlot, packed: Packed, pipeline: Pipeline, layout: Layout) -> Sequence[str]:
    """The names in an archive that is still on this disk, below `layout`."""
    if pipeline.packer is not None:  # we may not be able to read its archive
        return names_in(slot, layout, originals=packed.originals, results=packed.results > 0)
    with Archive.open(layout.archives / packed.archive) as archive:
        return archive.names()


def store_archive(
    packed: Packed,
    store: ObjectStore,
    pipeline: Pipeline,
    *,
    key: str,
    split: Mapping[str, str],
    names: Callable[[], Sequence[str]] | None,
    progress: Progress | None,
    file: ArchiveFile | None = None,
) -> Receipt:
    """Put the archive, add its `names` to the catalog unless they are unknown, keep the receipt.

    `file`: the archive, if it is not where the pipeline's archives are.
    """
    with counted_requests() as requests:
        stored = store.put(key, file or packed.file(pipeline.layout), progress)
    reached(CrashPoint.OBJECT_STORED)
    receipt = Receipt(
        partition=packed.partition,
        address=stored.address,
        key=stored.key,
        size_bytes=stored.size_bytes,
        sha256=stored.sha256,
        messages=packed.messages,
        payload_bytes=packed.payload_bytes,
        results=packed.results,
        originals=packed.originals,
        processing=packed.processing,
        stored_at=utc(time.time()).isoformat(timespec="milliseconds"),
        requests=requests.number,
        split=dict(split),
    )
    if names is not None:
        note_in_catalog(receipt, names, pipeline)
        reached(CrashPoint.CATALOGED)
    keep_receipt(pipeline.layout, receipt)
    log.info("stored %s: %s", receipt.partition, receipt.address)
    return receipt


def remove_local_data(pipeline: Pipeline, receipt: Receipt) -> None:
    """Remove the archive of a receipt, its slot and what was processed of that. May be repeated;
    needs the partition's lock.

    The slot goes last: as long as it is there, recovery sees that something is left to remove. What
    somebody else put into it is moved to `set-aside/`. A required sink keeps the slot until it has
    its rows; what is owed to other sinks is noted first.
    """
    layout = pipeline.layout
    clear_failure(layout, receipt.partition)
    reached(CrashPoint.FAILURE_CLEARED)
    slot = find_sealed(layout, receipt.partition)
    if slot is not None:
        notices.over(pipeline, slot, receipt)
        forget_packed(layout, receipt.partition, slot.seal.archive)
        if keep_or_owe(pipeline, receipt.partition):
            return
        remove_processed(slot.seal.slot, slot.seal.number, layout)
        try:
            foreign = slot.unrecognised()
        except DamagedSlot as error:  # its archive was made before that, and is stored
            log.error("%s is stored, but its slot is damaged now: %s", receipt.partition, error)
            set_aside(slot.directory, layout, place_aside(slot.directory, layout))
            return
        keep_index(layout, slot)
        reached(CrashPoint.INDEX_KEPT)
        for path in foreign:
            set_aside(path, layout)
        remove_tree(slot.directory)
        reached(CrashPoint.SLOT_REMOVED)


class PartitionLock:
    """One thread at a time packs and uploads a partition; the others wait, and then find the work
    done. Use as a context manager, which gives the receipt if there is one by now.
    """

    def __init__(self, pipeline: Pipeline, partition: str, *, wait: bool = True) -> None:
        """Without `wait`, entering raises `SlotInUse` if the lock is taken."""
        self._pipeline = pipeline
        self._partition = partition
        self._wait = wait
        self._lock = FileLock(pipeline.layout.partition_lock(partition))

    def __enter__(self) -> Receipt | None:
        if self._wait:
            self._lock.wait()
        else:
            self._lock.acquire()
        try:
            receipt = find_receipt(self._pipeline.layout, self._partition)
            if receipt is not None:  # and a crash may have come before the data was removed
                remove_local_data(self._pipeline, receipt)
        except BaseException:  # or the next attempt in this process would wait for ever
            self._lock.release()
            raise
        return receipt

    def __exit__(self, *_: object) -> None:
        try:
            if find_receipt(self._pipeline.layout, self._partition) is not None:
                self._lock.path.unlink(missing_ok=True)
        finally:
            self._lock.release()
