"""Redo: today's code processes the messages of a stored archive again, into another archive.

What must always hold: nothing that is stored is overwritten or removed. The new archive has a key
of its own, and the partition's receipt changes only after the store has confirmed it. Every message
is verified on its way back (`stored_members`). An archive without originals cannot be redone.

In the folder of a redo everything is as it is for a slot that was just sealed. Each step is durable
before the next one:

    redo/{partition}/sealed/slot-0/dir-000017/      the messages, fetched. The seal says how the new
                                                    archive and its object are called. The folder
                                                    gets its name in one step, when all is there
    redo/{partition}/processed/slot-0/dir-000017/   what comes out of them
    redo/{partition}/archives/                      the new archive
                                                    then it is uploaded, its receipt is kept, and
                                                    the folder is removed in one step

After a crash the next attempt continues in the same folder, so under the same key. If the processor
has changed since its results were finished, the redo begins again.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing

from fuploader_dagster.contracts.object_store import ObjectStore, Progress
from fuploader_dagster.contracts.processor import ProcessorSettings
from fuploader_dagster.delivery.attempts import Done, Outcome, attempt
from fuploader_dagster.delivery.pack import pack
from fuploader_dagster.delivery.process import process_slot
from fuploader_dagster.delivery.process_step import ItemsDone
from fuploader_dagster.delivery.store_trouble import Patience, ProgressOf
from fuploader_dagster.delivery.stored_members import OpenArchive, fetch
from fuploader_dagster.delivery.stored_results import StoredResults
from fuploader_dagster.delivery.upload import PartitionLock, names_of, store_archive
from fuploader_dagster.disk import durable
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.layout import REDO_MARK, Layout, PartitionKey, utc
from fuploader_dagster.disk.temporaries import temporary_folder
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import ConfigError, DamagedResults, DamagedSlot, PermanentError
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.user_functions import object_key
from fuploader_dagster.slots.index import INDEX_NAME, index_of
from fuploader_dagster.slots.processed import find_processed
from fuploader_dagster.slots.receipts import Receipt, find_receipts
from fuploader_dagster.slots.sealing import SEAL_NAME, Seal, SealedSlot, encode_seal, find_sealed
from fuploader_dagster.slots.segment import SEGMENT_NAME

log = logging.getLogger(__name__)


def redo_partitions(
    partitions: Sequence[str],
    pipeline: Pipeline,
    store: ObjectStore,
    open_archive: OpenArchive,
    progress: ProgressOf | None = None,
    *,
    items: ItemsDone | None = None,
    tell: Callable[[str], None] = log.warning,
) -> Iterator[Outcome]:
    """Process stored partitions again, one after the other, and upload each under a key of its own.

    `items` gets the progress of the processing, `tell` a sentence for each attempt that is
    repeated. A partition that fails keeps the archive and the receipt that it has, and what was
    done so far: the next attempt continues there.
    """
    with Patience(pipeline.layout, store, tell) as patience:

        def steps(key: PartitionKey) -> Done:
            with patience.upload(str(key), progress) as report:
                return _redo_one(key, pipeline, store, open_archive, report=report, items=items)

        for partition in partitions:
            yield attempt(partition, steps)


def _redo_one(
    key: PartitionKey,
    pipeline: Pipeline,
    store: ObjectStore,
    open_archive: OpenArchive,
    *,
    report: Progress,
    items: ItemsDone | None,
) -> Done:
    layout, partition = pipeline.layout, str(key)
    if pipeline.process is None:
        raise ConfigError(f"pipeline {pipeline.name} has no processor (setting `process`)")
    with naming_disk_trouble(layout.root), PartitionLock(pipeline, partition) as before:
        if before is None:
            raise PermanentError(
                f"partition {partition} has no stored archive whose messages could be processed "
                f"again",
                hint="materialise the partition: that processes and ships it",
            )
        if remove_if_stored(layout, before):
            return Done(partition, receipt=before)
        if not before.originals:
            raise PermanentError(
                f"the archive {before.address} holds only results, so its messages cannot be "
                f"processed again",
                hint="set `keep: both` in `process`, for the archives to come",
            )
        work = Layout(layout.redo / partition)
        slot = _found(partition, work, pipeline.process)
        if slot is None:
            slot = _fetched(before, key, pipeline, open_archive)
        try:
            with closing(StoredResults(partition, open_archive)) as results:
                processed = process_slot(slot, pipeline, work, items, results)
            packed = pack(slot, pipeline, work)
        except DamagedSlot as error:  # only a copy: what is stored is not in question
            durable.remove_tree(work.root)
            raise DamagedSlot(
                f"what was fetched of {partition} is damaged: {error.message}",
                hint="the stored archive is untouched; the next attempt fetches it again",
            ) from error
        receipt = store_archive(
            packed,
            store,
            pipeline,
            key=slot.object_key(pipeline.key, pipeline.zone),
            split=slot.seal.split,
            names=lambda: names_of(slot, packed, pipeline, work),
            progress=report,
            file=packed.file(work),
        )
        _remove(work)
        return Done(partition, packed, processed=processed.seal, receipt=receipt)


def stored_redos(layout: Layout) -> tuple[str, ...]:
    """Partitions whose redo is stored, but a crash came before its folder was removed."""
    receipts = find_receipts(layout, layout.redos()).values()
    return tuple(receipt.partition for receipt in receipts if _is_stored(layout, receipt))


def remove_if_stored(layout: Layout, receipt: Receipt) -> bool:
    """Remove the folder of a redo whose archive this receipt is of. May be repeated; the caller
    holds the partition's lock."""
    stored = _is_stored(layout, receipt)
    if stored:
        _remove(Layout(layout.redo / receipt.partition))
    return stored


def _is_stored(layout: Layout, receipt: Receipt) -> bool:
    slot = _readable(receipt.partition, Layout(layout.redo / receipt.partition))
    return slot is not None and slot.seal.object_key == receipt.key


def _remove(work: Layout) -> None:
    durable.remove_tree(work.root)
    reached(CrashPoint.REDO_REMOVED)


def _readable(partition: str, work: Layout) -> SealedSlot | None:
    try:
        return find_sealed(work, partition)
    except DamagedSlot:
        return None


def _found(partition: str, work: Layout, process: ProcessorSettings) -> SealedSlot | None:
    """What an earlier attempt fetched, if it can be continued; what cannot is removed."""
    slot = _readable(partition, work)
    if slot is not None and not _is_outdated(slot, work, process):
        return slot
    if slot is not None:
        log.warning("the processor has changed since %s was processed again", partition)
    durable.remove_tree(work.root)
    return None


def _is_outdated(slot: SealedSlot, work: Layout, process: ProcessorSettings) -> bool:
    """Whether there are finished results of another processor; unfinished ones begin again."""
    try:
        done = find_processed(slot, work)
    except DamagedResults:
        return True
    return done is not None and done.seal.processing.processor_version != process.version()


def _fetched(
    before: Receipt, key: PartitionKey, pipeline: Pipeline, open_archive: OpenArchive
) -> SealedSlot:
    """Fetch the messages into a sealed slot in the folder of the redo."""
    layout, partition = pipeline.layout, str(key)
    folder = layout.redo / partition
    durable.make_dirs(layout.redo)
    with temporary_folder(folder) as temporary:
        directory = Layout(temporary).sealed(key.slot, key.number)
        durable.make_dirs(directory)
        segment = directory / SEGMENT_NAME
        entries = fetch(before, open_archive, segment, pipeline, results=False).originals
        durable.fsync_file(segment)
        index = index_of(entries)
        durable.write_durably(directory / INDEX_NAME, index)
        archive, object_name = _names(key, pipeline, before.split)
        seal = Seal(
            partition=partition,
            pipeline=pipeline.name,
            node=key.node,
            slot=key.slot,
            number=key.number,
            sealed_at=key.sealed_at.isoformat(timespec="milliseconds"),
            reason="redo",
            slot_format="segment",
            messages=len(entries),
            payload_bytes=sum(entry.size_bytes for entry in entries),
            index_sha256=hashlib.sha256(index).hexdigest(),
            archive=archive,
            object_key=object_name,
            split=before.split,
        )
        durable.write_durably(directory / SEAL_NAME, encode_seal(seal))
        durable.rename_durably(temporary, folder)
        reached(CrashPoint.REDO_BEGUN)
    return SealedSlot(Layout(folder).sealed(key.slot, key.number), seal)


def _names(key: PartitionKey, pipeline: Pipeline, split: Mapping[str, str]) -> tuple[str, str]:
    """File name and object key of the new archive, which no other archive has."""
    now = utc(time.time())
    mark = f"{REDO_MARK}{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}Z"
    suffix = pipeline.archive_suffix
    archive = f"{key}{mark}{suffix}"

    def made(template: object) -> str:
        return object_key(
            template,
            pipeline=pipeline.name,
            partition=key,
            archive=archive,
            zone=pipeline.zone,
            split=split,
        )

    name = made(pipeline.key)
    if mark in name:
        return archive, name
    stem = name.removesuffix(suffix)
    marked = f"{stem}{mark}{name.removeprefix(stem)}"
    return archive, made(lambda _: marked)
