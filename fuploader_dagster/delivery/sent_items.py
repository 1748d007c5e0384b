"""Items whose dead letter was sent back: to the queue, or to processing as a slot of their own.

What must always hold: an item that was sent back is processed where it went, and nowhere else. So
no later processing of its partition (a redo, or one that begins again) gives its results once more.
An item that has some of its results is not left out: its letter asks for the rest alone.

Letters are read only if some were sent back that can be about the partition: none is older than it.
"""

from __future__ import annotations

from datetime import timedelta

from fuploader_dagster.dead_letters.letters import (
    PROCESSING_WRITER,
    numbered_dead_letters,
    sent_back_ids,
    sent_back_version,
)
from fuploader_dagster.delivery.mended import MENDED_SLOT, all_mended
from fuploader_dagster.disk.layout import Layout, PartitionKey

_CLOCKS_DIFFER = timedelta(days=1)
_SUFFIX = f"-{PROCESSING_WRITER}"


class SentItems:
    """What was sent back of a pipeline's partitions. Ask while the partition's lock is held."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._version: object = None
        self._ids: dict[str, set[str]] = {}
        """Of letters that were sent back, by the files that they are in."""
        self._items: dict[str, set[tuple[str, str]]] = {}
        """Partition and name of their items, by these files, as far as they were read."""

    def names(self, partition: str) -> frozenset[str]:
        """The names of the partition's items that are processed elsewhere."""
        version = sent_back_version(self._layout)
        if version is None:
            return frozenset()
        if version != self._version:
            self._ids, self._items = {}, {}
            for letter_id in sent_back_ids(self._layout):
                stem = letter_id.rpartition(":")[0]
                if stem.endswith(_SUFFIX):
                    self._ids.setdefault(stem, set()).add(letter_id)
            self._version = version
        partitions = self._same_items(partition)
        first_day = min(map(_first_day, partitions))
        found: set[str] = set()
        for stem in self._ids:
            if stem.removesuffix(_SUFFIX) >= first_day:
                found |= {name for at, name in self._read(stem) if at in partitions}
        return frozenset(found)

    def _same_items(self, partition: str) -> set[str]:
        """The partition, and that of the damaged slot that it replaces: it has its items."""
        key = PartitionKey.parse(partition)
        if key is None or key.slot != MENDED_SLOT:
            return {partition}
        damaged = {one.partition for one in all_mended(self._layout) if one.stored_as == partition}
        return {partition, *damaged} - {""}

    def _read(self, stem: str) -> set[tuple[str, str]]:
        if stem not in self._items:
            self._items[stem] = {
                (letter.item.partition, letter.item.name)
                for letter_id, letter in numbered_dead_letters(self._layout, stem)
                if letter_id in self._ids[stem] and letter.item and not letter.item.failures
            }
        return self._items[stem]


def _first_day(partition: str) -> str:
    key = PartitionKey.parse(partition)
    return f"{key.sealed_at - _CLOCKS_DIFFER:%Y%m%d}" if key is not None else ""
