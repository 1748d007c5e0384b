"""Rows: what is made of the items of slots is stored in a sink, each partition on its own.

What must always hold:

- The rows of a partition are stored once, whatever dies: the sink notes the delivery together with
  its rows, and answers with that note when it gets the delivery again.
- Each item has its rows in the sink, or a dead letter, which is durable before the rows are. An
  attempt after a crash writes no second letter.
- Every partition that was asked for gives one outcome. If the sink takes nothing (it is down, or a
  table is missing), the others are not tried, and nobody but one attempt after each of its growing
  pauses tries again (`sink_notes`).

Nothing holds the slot while it is read: an upload may remove it meanwhile. The attempt then begins
again with the archive, which is stored by that time; the sink has undone what it had begun.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property

from fuploader_dagster import errors
from fuploader_dagster.contracts.sink import Delivery, ItemRows, RejectedItem, Sink
from fuploader_dagster.delivery.attempts import Done, Failed, Outcome, attempt
from fuploader_dagster.delivery.item_rows import rows_of
from fuploader_dagster.delivery.mended import MENDED_SLOT, all_mended, find_mended
from fuploader_dagster.delivery.rejected_items import RejectedItems, sent_back
from fuploader_dagster.delivery.sink_notes import SinkNotes
from fuploader_dagster.delivery.slot_items import ItemsStored, SlotItems, items_here
from fuploader_dagster.delivery.stored_members import OpenArchive
from fuploader_dagster.delivery.unforeseen import told_without_text
from fuploader_dagster.delivery.upload import PartitionLock
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.layout import PartitionKey, utc
from fuploader_dagster.disk.locks import FileLock, waited_for
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import RowsReceipt, find_receipt
from fuploader_dagster.slots.sealing import find_sealed

log = logging.getLogger(__name__)

MOST_REDOS = 100
"""Of a partition whose receipt is lost, redos that are looked for."""
NOTHING_LEFT = "stored before; nothing was left to do"


def store_partitions(
    partitions: Sequence[str],
    pipeline: Pipeline,
    sink: str,
    open_archive: OpenArchive,
    *,
    redo: bool = False,
) -> Iterator[Outcome]:
    """Store the rows of these partitions in a sink, one after the other, in this order.

    A partition whose rows are stored is done, and its outcome says so. With `redo` they are stored
    again, in place of those.
    """
    with closing(_Step(pipeline, sink, open_archive, redo=redo)) as step:
        for at, partition in enumerate(partitions):
            outcome = attempt(partition, step.store)
            if isinstance(outcome, Failed):
                step.note(outcome)
            yield outcome
            if isinstance(outcome, Failed) and step.takes_nothing:
                yield from step.untried(partitions[at + 1 :], outcome)
                return


class _Step:
    """One sink, and what all partitions of a step share."""

    def __init__(
        self, pipeline: Pipeline, name: str, open_archive: OpenArchive, *, redo: bool
    ) -> None:
        if name not in pipeline.sinks:
            raise errors.ConfigError(
                f"pipeline {pipeline.name} has no sink {name!r} (setting `sinks`)"
            )
        self._pipeline = pipeline
        self._layout = pipeline.layout
        self._settings = pipeline.sinks[name]
        self._open_archive = open_archive
        self._redo = redo
        self._notes = SinkNotes(pipeline.layout, name)
        self._rows_of = rows_of(self._settings)
        self.takes_nothing = False
        """Whether no other partition can be stored now, either."""

    @cached_property
    def _sink(self) -> Sink:
        return self._settings.sink()

    def close(self) -> None:
        if "_sink" in vars(self):  # it was needed
            self._sink.close()

    def untried(self, partitions: Sequence[str], because: Failed) -> Iterator[Outcome]:
        """What becomes of the others when one failed and no other can be stored, either."""
        before = {} if self._redo else self._notes.receipts.find(partitions)
        for partition in partitions:
            if partition in before:
                yield Done(partition, rows=before[partition], note=NOTHING_LEFT)
                continue
            failed = replace(because, partition=partition, attempted=False, seconds=0.0)
            self.note(failed)
            yield failed

    def store(self, key: PartitionKey) -> Done:
        partition = str(key)
        lock = FileLock(self._layout.sink_lock(self._notes.sink, partition))
        with waited_for(lock):
            try:
                return self._store(key)
            except (errors.SinkUnavailable, errors.SinkRefused) as error:
                self.takes_nothing = isinstance(error, errors.SinkUnavailable) or not self._redo
                if not self._redo:  # nobody but the person who asked tries that again
                    self._notes.note_trouble(str(error))
                raise
            except errors.StoreUnavailable:  # the archives of the others are there as well
                self.takes_nothing = True
                raise
            finally:
                lock.path.unlink(missing_ok=True)

    def _store(self, key: PartitionKey) -> Done:
        partition = str(key)
        before = self._notes.receipt(partition)
        if before is not None and not self._redo:
            self._finish(partition)
            return Done(partition, rows=before, note=NOTHING_LEFT)
        if mended := find_mended(self._layout, partition):
            self._notes.settle(partition)
            return Done(partition, note=mended.sentence(self._layout))
        if damaged := self._stored_before_it_was_damaged(key):
            self._keep(
                RowsReceipt(
                    partition=partition,
                    rows=0,
                    rejected=0,
                    address=damaged.address,
                    stored_at=damaged.stored_at,
                )
            )
            return Done(
                partition,
                note=f"its items are those of {damaged.partition}, whose rows were stored before "
                f"its slot was found damaged",
            )
        delivery = Delivery(
            pipeline=self._pipeline.name,
            sink=self._notes.sink,
            partition=partition,
            redo=before.redo + 1 if before is not None else 0,
        )
        receipt, already_there = self._delivered(delivery)
        while self._redo and before is None and already_there and delivery.redo < MOST_REDOS:
            # It was stored, and its receipt is lost: nobody knows which redo was the last one.
            delivery = replace(delivery, redo=delivery.redo + 1)
            receipt, already_there = self._delivered(delivery)
        self._keep(receipt)
        return Done(partition, rows=receipt)

    def _stored_before_it_was_damaged(self, key: PartitionKey) -> RowsReceipt | None:
        """The receipt of the damaged slot that this one replaces: it has the same items."""
        if key.slot != MENDED_SLOT:
            return None
        damaged = [one.partition for one in all_mended(self._layout) if one.stored_as == str(key)]
        return next(iter(self._notes.receipts.find(damaged).values()), None)

    def _delivered(self, delivery: Delivery) -> tuple[RowsReceipt, bool]:
        """Also, whether it was there already."""
        items: SlotItems | None = items_here(delivery.partition, self._pipeline)
        if items is not None:
            try:
                return self._deliver(delivery, items)
            except Exception:
                if not items.gone:
                    raise
                log.info(
                    "%s was uploaded and removed while it was read; its archive is read",
                    delivery.partition,
                )
        stored = ItemsStored(delivery.partition, self._pipeline, self._open_archive)
        return self._deliver(delivery, stored)

    def _deliver(self, delivery: Delivery, items: SlotItems) -> tuple[RowsReceipt, bool]:
        rejected = RejectedItems(self._layout, delivery, items)
        elsewhere = sent_back(self._layout, delivery) if delivery.redo else set()
        made = self._made(items, elsewhere | rejected.before, rejected)
        with told_without_text(self._notes.sink):
            stored = self._sink.store(delivery, made, rejected.keep)
        reached(CrashPoint.ROWS_STORED)
        self._notes.end_trouble()
        receipt = RowsReceipt(
            partition=delivery.partition,
            redo=delivery.redo,
            rows=stored.rows,
            rejected=rejected.count_before() if stored.already_there else rejected.count,
            address=stored.address,
            stored_at=utc(time.time()).isoformat(timespec="milliseconds"),
        )
        return receipt, stored.already_there

    def _made(
        self, items: SlotItems, elsewhere: Collection[str], rejected: RejectedItems
    ) -> Iterator[ItemRows]:
        """The rows of the items; at their end, those without any are dead letters. The rows of
        some are elsewhere, or come with their letters."""
        bad: list[RejectedItem] = []
        for position, item in items.read():
            if item.name in elsewhere:
                continue
            try:
                rows = self._rows_of(item)
            except errors.BadItem as error:
                bad.append(RejectedItem(position, sys.intern(str(error))))  # often the same
            else:
                yield ItemRows(position, rows)
        rejected.keep(bad)

    def _keep(self, receipt: RowsReceipt) -> None:
        self._notes.receipts.keep(receipt, CrashPoint.ROWS_RECEIPT_KEPT)
        self._finish(receipt.partition)

    def _finish(self, partition: str) -> None:
        """What is left after the receipt: the notes go, and with the last required sink the slot.

        Whoever uploads at the same time keeps its receipt before it looks for ours.
        """
        self._notes.settle(partition)
        is_here = find_sealed(self._layout, partition) is not None
        if is_here and find_receipt(self._layout, partition) is not None:
            with PartitionLock(self._pipeline, partition):
                log.debug("%s is stored everywhere", partition)

    def note(self, outcome: Failed) -> None:
        """Count the failure, and note that the rows are owed if another attempt can help.

        Losing that loses nothing else: the slot is still here, is noted already, or somebody asked
        for it and sees what became of it.
        """
        key = PartitionKey.parse(outcome.partition)
        if self._redo or key is None:
            return
        try:
            if not outcome.permanent or outcome.unavailable:
                self._notes.owe(outcome.partition)
            if outcome.attempted and self._is_asked_for_again(key):
                self._notes.failures.note(
                    outcome.partition, stage="store rows", error=outcome.error, now=time.time()
                )
        except (errors.FuploaderError, OSError) as trouble:
            log.warning("could not note the failure of %s: %s", outcome.partition, trouble)

    def _is_asked_for_again(self, key: PartitionKey) -> bool:
        is_here = self._layout.sealed(key.slot, key.number).is_dir()
        return is_here or self._notes.is_owed(str(key))
