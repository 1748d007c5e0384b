"""The indexes of recent slots that were uploaded, kept when their data goes.

What must always hold: the index of a slot is here before its directory is removed, so whoever looks
among the sealed slots first and then here misses none. These indexes are only compared with: losing
one loses no message.

Format: `shipped/{partition}.{messages}.index` is the slot's `index` as it was sealed (a hard link
where the file system has them, so it costs nothing while both are there). The newest are kept, as
many as `dedup_window_messages` needs; uploads remove the others, of many small slots one in
`TRIM_EVERY`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fuploader_dagster.disk.durable import fsync_dir, make_dirs, write_durably
from fuploader_dagster.disk.layout import Layout, PartitionKey
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.slots.index import INDEX_NAME
from fuploader_dagster.slots.sealing import SealedSlot

TRIM_EVERY = 64
"""Listing the indexes of 8,000 slots takes a good part of a second, more than shipping one."""
_SMALL_SHARE = 100
_ENDING = ".index"


@dataclass(frozen=True)
class ShippedIndex:
    path: Path
    partition: PartitionKey
    messages: int

    @property
    def place(self) -> tuple[int, int]:
        """Slot and number of its directory."""
        return self.partition.slot, self.partition.number


def keep_index(layout: Layout, slot: SealedSlot) -> None:
    """Keep the index of a slot that is about to be removed. May be repeated."""
    make_dirs(layout.shipped)
    kept = layout.shipped / f"{slot.seal.partition}.{slot.seal.messages}{_ENDING}"
    try:
        os.link(slot.directory / INDEX_NAME, kept)
    except OSError:  # kept already, or the file system has no hard links
        if not kept.exists():
            write_durably(kept, read_own(slot.directory / INDEX_NAME))
    fsync_dir(layout.shipped)


def shipped_indexes(layout: Layout) -> list[ShippedIndex]:
    """The kept indexes, newest first."""
    if not layout.shipped.is_dir():
        return []
    found = [one for path in layout.shipped.iterdir() if (one := parse_shipped(path)) is not None]
    order = in_order({one.place: one.partition.sealed_at.timestamp() for one in found})
    return sorted(found, key=lambda one: order[one.place], reverse=True)


def in_order(times: Mapping[tuple[int, int], float]) -> dict[tuple[int, int], tuple[float, int]]:
    """A sort key for each (slot, number): the order of sealing, although the clock may have jumped.

    Within a slot no directory was sealed after the next one. One whose time says otherwise was
    sealed while the clock was wrong, and counts as sealed together with the next one.
    """
    sorts: dict[tuple[int, int], tuple[float, int]] = {}
    slot, earliest = -1, math.inf
    for place in sorted(times, reverse=True):
        earliest = min(earliest, times[place]) if place[0] == slot else times[place]
        slot = place[0]
        sorts[place] = (earliest, place[1])
    return sorts


def trim_after(slot: SealedSlot, layout: Layout, messages: int) -> None:
    """Trim after this slot was shipped, unless it is one of many small ones."""
    seal = slot.seal
    if seal.messages * _SMALL_SHARE >= messages or seal.number % TRIM_EVERY == 0:
        trim_shipped(layout, messages)


def trim_shipped(layout: Layout, messages: int) -> None:
    """Remove what a window of `messages` messages does not need."""
    for one in shipped_indexes(layout):
        if messages <= 0:
            one.path.unlink(missing_ok=True)
        messages -= one.messages


def parse_shipped(path: Path) -> ShippedIndex | None:
    partition, _, messages = path.name.removesuffix(_ENDING).rpartition(".")
    key = PartitionKey.parse(partition)
    if key is None or not messages.isascii() or not messages.isdigit():
        return None
    return ShippedIndex(path, key, int(messages))
