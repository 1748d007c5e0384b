"""Processing: a pipeline's processor works on the items of sealed slots.

What must always hold:

- Each input of a slot ends with its results or with a dead letter, exactly one of the two, whatever
  dies meanwhile; or it says that it has both. Dead letters are durable before the commit that
  counts them; a crash in between makes no second one of the same.
- Only what was in work when a process died is processed again, with the same idempotency keys.
- An item is blamed only if the processor works for others. If it works for nobody, it is
  unavailable: every partition of the step fails, and nothing becomes a dead letter.

All partitions of a step share one event loop and one processor: while the last slow items of a slot
are waited for, those of the next one are in work. A partition's outcome is as in `ship`: whatever
goes wrong with one takes no other with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

from fuploader_dagster import errors
from fuploader_dagster.contracts.processor import StoredResult
from fuploader_dagster.dead_letters.letters import item_letters
from fuploader_dagster.delivery import attempts
from fuploader_dagster.delivery.mended import find_mended
from fuploader_dagster.delivery.pack import find_packed
from fuploader_dagster.delivery.process_step import ItemsDone, Step, cancel
from fuploader_dagster.delivery.slot_in_work import SlotInWork
from fuploader_dagster.delivery.upload import PartitionLock
from fuploader_dagster.disk.layout import Layout, PartitionKey
from fuploader_dagster.disk.setting_aside import set_aside
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.processed import ProcessedSeal, ProcessedSlot, find_processed
from fuploader_dagster.slots.receipts import Receipt
from fuploader_dagster.slots.sealing import SealedSlot

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
"""Between two looks at a partition's lock that another process holds."""


def process_partitions(
    partitions: Sequence[str], pipeline: Pipeline, progress: ItemsDone | None = None
) -> Iterator[attempts.Outcome]:
    """Process the items of these partitions' slots; outcomes come in the order of `partitions`.

    A partition that is stored, or processed, already is done, and its outcome says so.
    """
    step = _Partitions(pipeline, progress)
    loop = asyncio.new_event_loop()
    tasks: list[asyncio.Task[attempts.Outcome]] = []
    try:
        tasks = [loop.create_task(step.outcome(partition)) for partition in partitions]
        for task in tasks:
            yield loop.run_until_complete(task)
    finally:
        loop.run_until_complete(cancel(tasks))
        loop.run_until_complete(step.aclose())
        loop.close()


def process_slot(
    slot: SealedSlot,
    pipeline: Pipeline,
    layout: Layout,
    progress: ItemsDone | None = None,
    before: Mapping[str, StoredResult] | None = None,
) -> ProcessedSlot:
    """Process one slot, unless that was done already. The caller holds the partition's lock.

    `layout`: where the results go; `before`: those that are stored. Raises `ProcessorUnavailable`
    if the processor works for no item, `DamagedSlot` if an input is damaged, or what the processor
    cannot go on with.
    """
    if (done := _finished(slot, layout)) is not None:
        return done

    async def process() -> ProcessedSlot:
        async with aclosing(Step(pipeline, progress)) as step:
            try:
                return await SlotInWork(step, slot, layout, before).processed()
            except errors.ProcessorUnavailable as error:
                step.note_unavailable(error)
                raise

    return asyncio.run(process())


def _finished(slot: SealedSlot, layout: Layout) -> ProcessedSlot | None:
    """What was processed before; a directory whose seal is damaged is moved away."""
    try:
        return find_processed(slot, layout)
    except errors.DamagedResults as error:
        target = set_aside(layout.processed(slot.seal.slot, slot.seal.number), layout)
        log.error("%s; it was moved to %s, and the slot is processed again", error, target)
        return None


def unaccounted(processed: Sequence[ProcessedSeal], layout: Layout) -> list[str]:
    """Where inputs are not results' inputs and dead letters together, a sentence each."""
    failed_ones = [seal for seal in processed if seal.failed or seal.partial]
    # An item may have two: that of an attempt which was killed, and another one after it.
    found = {
        (one.processing, one.position) for one in (item_letters(layout) if failed_ones else ())
    }
    letters = Counter(processing for processing, _ in found)
    return [
        f"{seal.processing.partition}: {seal.failed + seal.partial} of {seal.inputs} items failed "
        f"or lack a part, but {letters[seal.processing.id]} have a dead letter"
        for seal in failed_ones
        if letters[seal.processing.id] != seal.failed + seal.partial
    ]


class _Partitions(Step):
    """A step that takes partitions; whatever goes wrong with one becomes its outcome."""

    async def outcome(self, partition: str) -> attempts.Outcome:
        """Process one partition; whatever goes wrong becomes its outcome."""
        started = time.monotonic()
        try:
            outcome: attempts.Outcome = await self._steps(attempts.partition_key(partition))
        except Exception as error:  # noqa: BLE001  it is the outcome
            if isinstance(error, errors.ProcessorUnavailable):
                self.note_unavailable(error)
            outcome = attempts.failed(partition, error)
            attempts.note_failed(outcome, self.pipeline, "process")
        return replace(outcome, seconds=time.monotonic() - started)

    async def _steps(self, key: PartitionKey) -> attempts.Done:
        layout, partition = self.pipeline.layout, str(key)
        with naming_disk_trouble(layout.root):
            async with self._locked(partition) as stored_before:
                if stored_before is not None:
                    return attempts.Done(partition, receipt=stored_before)
                if mended := find_mended(layout, partition):
                    return attempts.Done(partition, note=mended.sentence(layout))
                with attempts.mending(key, self.pipeline) as slot:
                    done = _finished(slot, layout)
                    if done is None and (packed := find_packed(layout, partition)) is not None:
                        # So it was, before there was a processor.
                        return attempts.Done(partition, packed)
                    if done is None:
                        done = await SlotInWork(self, slot, layout).processed()
                    return attempts.Done(partition, processed=done.seal)

    @asynccontextmanager
    async def _locked(self, partition: str) -> AsyncIterator[Receipt | None]:
        """The partition's lock, waited for without holding up the others."""
        lock = PartitionLock(self.pipeline, partition, wait=False)
        while True:
            try:
                stored_before = lock.__enter__()
                break
            except errors.SlotInUse:
                await asyncio.sleep(LOOK_SECONDS)
        try:
            yield stored_before
        finally:
            lock.__exit__()
