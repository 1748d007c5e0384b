"""Items that a sink has no rows of: each becomes a dead letter, once for each delivery.

What must always hold: the letters are durable before anything of the delivery is. An item with a
letter of an earlier attempt at the same delivery keeps just that letter: it gets no second one, and
no rows, though they might be taken by now. Whoever stores the letter would store them twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from fuploader_dagster.contracts.sink import Delivery, RejectedItem
from fuploader_dagster.dead_letters import letters
from fuploader_dagster.delivery.sink_notes import SinkNotes
from fuploader_dagster.delivery.slot_items import SlotItems
from fuploader_dagster.disk.layout import Layout

MOST_LETTERS, MOST_BYTES = 2_000, 4 * 2**20
"""Letters that are written at once, and bytes of the items in them."""


def sent_back(layout: Layout, delivery: Delivery) -> set[str]:
    """Names of the partition's items whose letters of this sink were sent back. Each has its rows
    by a delivery of its own, or is in another slot by now."""
    sent = letters.sent_back_ids(layout)
    found = (
        letters.numbered_dead_letters(layout, f"*-{letters.sink_writer(delivery.sink)}")
        if sent
        else ()
    )
    return {
        letter.item.name
        for letter_id, letter in found
        if letter_id in sent and letter.item and letter.item.partition == delivery.partition
    }


class RejectedItems:
    """Those of one delivery, in one attempt."""

    def __init__(self, layout: Layout, delivery: Delivery, items: SlotItems) -> None:
        self._layout = layout
        self._delivery = delivery
        self._items = items
        self._writer = letters.sink_writer(delivery.sink)
        self._box = letters.DeadLetterBox(layout, self._writer)
        self._notes = SinkNotes(layout, delivery.sink)
        self.before = self._of_earlier_attempts()
        """Names of the items that have a letter already."""
        self.count = len(self.before)

    def keep(self, rejected: Sequence[RejectedItem]) -> None:
        """Write a letter for each that has none. The items are read once more: nobody holds them
        in memory."""
        if not rejected:
            return
        self.count += len(rejected)
        reasons = {one.position: one.reason for one in rejected}
        written: list[letters.DeadLetter] = []
        size = 0
        for position, item in self._items.read(reasons.keys()):
            if item.name in self._lettered:
                continue
            failed = letters.FailedItem(
                stage=f"{letters.SINK_STAGE}{self._delivery.sink}",
                partition=self._delivery.partition,
                position=position,
                name=item.name,
                processing=self._delivery.id,
                headers=dict(item.headers),
            )
            written.append(self._box.item_letter(failed, reasons[position], item.content))
            size += len(item.content)
            if size >= MOST_BYTES or len(written) == MOST_LETTERS:
                self._write(written)
                written, size = [], 0
        self._write(written)

    def count_before(self) -> int:
        """How many have a letter of this delivery."""
        return len(self._lettered)

    def _of_earlier_attempts(self) -> frozenset[str]:
        # All letters of the sink are read, so only if there may be any.
        if not self._notes.has_letters(self._delivery.partition):
            return frozenset()
        return frozenset(self._lettered)

    def _write(self, written: Sequence[letters.DeadLetter]) -> None:
        if written:
            self._notes.note_letters(self._delivery.partition)
        self._box.keep(written)
        self._lettered.update(letter.item.name for letter in written if letter.item is not None)

    @cached_property
    def _lettered(self) -> set[str]:
        """Names of the items with a letter: from disk and archive they come by the same names."""
        return {
            item.name
            for item in letters.item_letters(self._layout, self._writer)
            if (item.partition, item.processing) == (self._delivery.partition, self._delivery.id)
        }
