"""Stored positions: how far the messages of each part of a queue are stored, in a file of the slot.

For queues that number the messages of each part (`contracts/source.Position`): then a message that
comes again is known by its number alone, whatever its name is now and however long ago it was
stored (`dedup_window` looks for name and content).

What must always hold:

- An entry counts only if the commit that it was written for is whole: its directory has as many
  messages as it says, or is not active any more. A message that is not stored is never taken for
  one that is.
- It is written *before* its commit. So there is no moment in which a message is stored and only its
  name could tell.
- The owner of a slot strikes out entries of commits that did not happen before it commits anything
  (`resume`), durably: else others could take their places in the directory, and prove them.
- An entry says that all lower numbers of its reading are stored too: a source hands out a part in
  order, beginning with what nobody has stored.

A directory that is not active was sealed by its owner, who struck out before that what did not
count; if it was damaged, all of its entries were struck out.

Format of `active/slot-N/positions`: magic b"FUPP", CRC-32 of the rest u32, length of the rest u32
(little-endian), then a JSON object: for each part at most two entries, the newest first, each a
list of reading, number, term, directory, messages. It is overwritten in place and not synced. The
page cache outlives a process. After a power cut it may be older, or not read back: then messages
that come again are looked for by name.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from fuploader_dagster.contracts.source import Position
from fuploader_dagster.contracts.state import SlotCount
from fuploader_dagster.disk.durable import fsync_file
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.own_files import opened_own, read_own
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import UNREADABLE_JSON, DamagedSlot, ForeignFile
from fuploader_dagster.slots import index
from fuploader_dagster.slots.formats import sync_directory
from fuploader_dagster.slots.index import INDEX_NAME

log = logging.getLogger(__name__)

POSITIONS_NAME = "positions"
_MAGIC = b"FUPP"
_HEADER = struct.Struct("<4sII")
_CRC_FROM = 8
_NOT_ACTIVE = 1 << 62
"""Messages of a directory of which everything counts that was said."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """All messages of a reading up to a number are stored when this directory has so many."""

    reading: str
    number: int
    term: int
    directory: int
    messages: int

    def covers(self, position: Position) -> bool:
        """A later term says that another message may have this number now."""
        return (
            position.reading == self.reading
            and position.number <= self.number
            and position.term <= self.term
        )


Entries = dict[str, list[Entry]]
"""By part, the newest first."""


class PositionsFile:
    """The file of one slot, for the owner of the slot."""

    def __init__(self, layout: Layout, slot: int) -> None:
        self._layout, self._slot = layout, slot
        self._path = layout.active_slot(slot) / POSITIONS_NAME
        self._entries: Entries = {}

    def resume(self) -> None:
        """Strike out what did not happen. Call it before a directory is continued or sealed."""
        self._entries = _read(self._layout, self._slot)
        if self._entries:
            messages = {
                number: _messages(self._layout.active(self._slot, number))
                for number in self._layout.active_numbers(self._slot)
            }
            self._keep(lambda one: one.messages <= messages.get(one.directory, one.messages))

    def strike_out(self, damaged: Path) -> None:
        """All of a directory."""
        active = self._layout.active
        self._keep(lambda one: active(self._slot, one.directory) != damaged)

    def note(self, positions: Sequence[Position], count: SlotCount) -> None:
        """Before a commit, after which the directory has `count`."""
        for part, reading, number, term in positions:
            new = Entry(reading, number, term, count.number, count.messages)
            self._entries[part] = [new, *self._entries.get(part, ())[:1]]
        with naming_disk_trouble(self._path):
            self._write()

    def _keep(self, counts: Callable[[Entry], bool]) -> None:
        kept = {part: list(filter(counts, some)) for part, some in self._entries.items()}
        if kept != self._entries:
            self._entries = kept
            self._write()
            fsync_file(self._path)

    def _write(self) -> None:
        rest = msgspec.json.encode(self._entries)
        rest = len(rest).to_bytes(_HEADER.size - _CRC_FROM, "little") + rest
        crc = zlib.crc32(rest).to_bytes(_CRC_FROM - len(_MAGIC), "little")
        with opened_own(self._path, os.O_WRONLY | os.O_CREAT) as descriptor:
            os.pwrite(descriptor, _MAGIC + crc + rest, 0)


class StoredPositions:
    """What all slots of a pipeline on this node say."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._slots: dict[int, Entries] = {}
        self._whole: dict[tuple[int, int], int] = {}
        """Messages of directories that were counted since the last `refresh`, and are synced."""

    def refresh(self) -> None:
        """Take in everything that is committed by now."""
        self._whole.clear()
        layout = self._layout
        self._slots = {slot: _read(layout, slot) for slot in layout.active_slots()}

    def hold(self, position: Position) -> bool:
        """Whether the message there was stored, and durably, at the last `refresh`."""
        return any(
            entry.covers(position) and self._counts(slot, entry)
            for slot, entries in self._slots.items()
            for entry in entries.get(position.part, ())
        )

    def _counts(self, slot: int, entry: Entry) -> bool:
        place = (slot, entry.directory)
        if place not in self._whole:
            self._whole[place] = _durable_messages(self._layout.active(*place))
        return self._whole[place] >= entry.messages


def _durable_messages(directory: Path) -> int:
    """How many messages a directory has, once they are durable."""
    messages = _messages(directory)
    with suppress(FileNotFoundError):  # it was just sealed, and so synced
        sync_directory(directory)  # its writer may be in the middle of a sync
    return messages


def _messages(directory: Path) -> int:
    """Those of its whole commits."""
    try:
        return len(index.identities(read_own(directory / INDEX_NAME)).names)
    except FileNotFoundError:
        return 0 if directory.exists() else _NOT_ACTIVE
    except (DamagedSlot, ForeignFile):
        return 0


def _read(layout: Layout, slot: int) -> Entries:
    """None of a file that is not there or does not read back."""
    path = layout.active_slot(slot) / POSITIONS_NAME
    try:
        content = read_own(path)
    except FileNotFoundError:
        return {}
    except ForeignFile as error:
        log.warning("%s is left out: %s", path, error)
        return {}
    if len(content) < _HEADER.size:
        return {}
    magic, crc, length = _HEADER.unpack_from(content)
    end = _HEADER.size + length
    if magic != _MAGIC or len(content) < end or zlib.crc32(content[_CRC_FROM:end]) != crc:
        return {}
    try:
        return msgspec.json.decode(content[_HEADER.size : end], type=Entries)
    except UNREADABLE_JSON:
        return {}
