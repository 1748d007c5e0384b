"""Shipping: process and pack sealed slots, and upload their archives, each partition on its own.

What must always hold: every partition that was asked for gives one outcome. One that fails, by
whatever error, is noted, keeps all its data, and takes no other with it. A partition that the store
has confirmed already is done, and its outcome says so. Where a pipeline has a processor, a slot
that nobody has processed yet is processed first.

Whoever asks again for a damaged slot is told what became of it, and that it is done.

Without Dagster: `ship` ships everything that is sealed on this disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from fuploader_dagster.contracts.object_store import ObjectStore
from fuploader_dagster.delivery import mend, notices
from fuploader_dagster.delivery.all_rows import AllRows
from fuploader_dagster.delivery.attempts import Done, Failed, Outcome, attempt, mending, note_failed
from fuploader_dagster.delivery.failures import Stage
from fuploader_dagster.delivery.mended import MENDED_SLOT, find_mended, note_told
from fuploader_dagster.delivery.pack import Packed, pack
from fuploader_dagster.delivery.process import process_partitions
from fuploader_dagster.delivery.store_trouble import Patience, ProgressOf
from fuploader_dagster.delivery.upload import PartitionLock, upload
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import DamagedSlot, FuploaderError
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import Receipt
from fuploader_dagster.slots.sealing import SealedSlot, sealed_partitions

log = logging.getLogger(__name__)

_Deliver = Callable[[SealedSlot, Packed], Receipt]


def pack_partitions(partitions: Sequence[str], pipeline: Pipeline) -> Iterator[Outcome]:
    """Pack one after the other (the compression of each uses `pack_threads`)."""
    return _processed_first(
        partitions,
        pipeline,
        lambda ready: (_ship_one(partition, pipeline, "pack") for partition in ready),
    )


def upload_partitions(
    partitions: Sequence[str],
    pipeline: Pipeline,
    store: ObjectStore,
    progress: ProgressOf | None = None,
    *,
    first: Callable[[Sequence[str]], object] | None = None,
    tell: Callable[[str], None] = log.warning,
) -> Iterator[Outcome]:
    """Upload side by side; a partition that is not packed yet is packed first.

    `first` is called with some partitions at a time, before these are uploaded and after they are
    processed. `tell` gets a sentence for each attempt that is repeated. Outcomes come in the order
    of `partitions`.
    """

    def upload_all(ready: Sequence[str]) -> Iterator[Outcome]:
        def deliver(slot: SealedSlot, packed: Packed) -> Receipt:
            with patience.upload(packed.partition, progress) as report:
                return upload(slot, packed, store, pipeline, progress=report)

        threads = ThreadPoolExecutor(pipeline.upload_threads, "upload")
        size = pipeline.partitions_per_run if first and pipeline.sinks else len(ready)
        with Patience(pipeline.layout, store, tell) as patience, threads:
            for start in range(0, len(ready), max(size, 1)):
                some = ready[start : start + size]
                if first is not None:
                    first(some)
                yield from threads.map(
                    lambda partition: _ship_one(partition, pipeline, "upload", deliver), some
                )

    return _processed_first(partitions, pipeline, upload_all)


def _processed_first(
    partitions: Sequence[str],
    pipeline: Pipeline,
    steps: Callable[[Sequence[str]], Iterator[Outcome]],
) -> Iterator[Outcome]:
    """Take partitions through these steps, some at a time, after each is processed if it has to be.

    If the processor works for no item, the others are not tried.
    """
    if pipeline.process is None:
        yield from steps(partitions)
        return
    left, most = list(partitions), pipeline.process.partitions_per_run
    while left:
        some, left = left[:most], left[most:]
        outcomes = list(process_partitions(some, pipeline))
        shipped = steps([one.partition for one in outcomes if isinstance(one, Done)])
        for one in outcomes:
            yield next(shipped) if isinstance(one, Done) else one
        if down := [one for one in outcomes if isinstance(one, Failed) and one.unavailable]:
            yield from (replace(down[0], partition=key, attempted=False) for key in left)
            return


def ship(pipeline: Pipeline, store: ObjectStore, rows: AllRows | None = None) -> Iterator[Outcome]:
    """Pack and upload everything that is sealed on this disk now, and store its rows and all that
    are owed; `rows` says what became of these."""
    rows = rows or AllRows(pipeline, patient=False)
    mend_unreadable(pipeline)
    partitions = sealed_partitions(pipeline.layout)
    yield from upload_partitions(partitions, pipeline, store, first=rows.of)
    again = replacements(pipeline, partitions)
    yield from upload_partitions(again, pipeline, store, first=rows.of)
    rows.of_owed()
    notices.wake(pipeline)
    notices.settle(pipeline)


def replacements(pipeline: Pipeline, shipped: Collection[str]) -> list[str]:
    """Sealed slots that replaced damaged ones while these partitions were shipped."""
    new = (PartitionKey.parse(key) for key in sealed_partitions(pipeline.layout))
    return [str(k) for k in new if k and k.slot == MENDED_SLOT and str(k) not in shipped]


def _ship_one(
    partition: str, pipeline: Pipeline, stage: Stage, deliver: _Deliver | None = None
) -> Outcome:
    outcome = attempt(partition, lambda key: _steps(key, pipeline, deliver))
    if isinstance(outcome, Failed) and outcome.attempted:
        note_failed(outcome, pipeline, stage)
    return outcome


def _steps(key: PartitionKey, pipeline: Pipeline, deliver: _Deliver | None) -> Done:
    """Lock the partition, pack its slot, deliver the archive."""
    layout, partition = pipeline.layout, str(key)
    with naming_disk_trouble(layout.root), PartitionLock(pipeline, partition) as stored_before:
        if stored_before is not None:
            return Done(partition, receipt=stored_before)
        if mended := find_mended(layout, partition):
            if deliver is not None:
                note_told(layout, partition, mended)
            return Done(partition, note=mended.sentence(layout))
        with mending(key, pipeline) as slot:
            notices.began(pipeline, slot)
            packed = pack(slot, pipeline)
        return Done(partition, packed, deliver(slot, packed) if deliver is not None else None)


def mend_unreadable(pipeline: Pipeline) -> list[str]:
    """Mend slots whose seal cannot be read: nobody asks for them by their partition. Returns the
    partitions of what was proven. Trouble with one slot is logged and holds up no other."""
    found = []
    for directory in mend.unreadable_slots(pipeline.layout):
        error = DamagedSlot(f"{directory} has no readable seal")
        try:
            mended = mend.mend(*mend.place_of(directory), error, pipeline)
        except (FuploaderError, OSError) as trouble:
            log.error("%s is damaged and could not be mended: %s", directory, trouble)
        else:
            found += [mended.stored_as] if mended.stored_as else []
    return found
