"""The dedup window: has a redelivered message been stored already, anywhere on this node?

What must always hold:

- A message counts as stored only if a record of the same name (or a numbered name of it), the same
  SHA-256 and, where headers are kept, the same headers was read from an index just now, and if the
  message itself is durable: in a sealed directory it is, of a shipped one the object store has
  confirmed it, and an active one, whose writer may be in the middle of a sync, is synced here once
  more before it counts.
- Everything that was committed in any directory of the pipeline before `refresh` was called is in
  the window afterwards, up to its size; the newest directories come first.

Why looking is enough: some worker had a redelivered message in hand before. Either that worker had
committed it, then its record is in an index, because a commit ends before the message can come
again; or it had not, then the message is in no directory. It may still commit it after we looked:
`commit_turns` prevents that.

Directories go from `active` to `sealed` to `shipped`, never back, and are looked for in this order.
One that moves during the search is found at the later place, or its file is gone when the search
reads it; then the search starts again. Pieces of a directory that is divided are there before it
goes; two of them may have a name and its numbered name.

Memory: one sorted array of 64-bit keys (of digest and name) for each directory, 8 bytes per
message. It is built at the first redelivered message; after that only what is new is read. A key
that is found is a hint where to look, never an answer.

Outside the window: messages that are published twice (they are new to the queue, and only a
directory knows its own names), the disks of other nodes, whatever is older than
`dedup_window_messages`, and directories that were set aside as damaged.
"""

from __future__ import annotations

import logging
import math
import os
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from fuploader_dagster.disk.layout import Layout, PartitionKey
from fuploader_dagster.disk.own_files import open_own, read_own
from fuploader_dagster.errors import DamagedSlot, ForeignFile
from fuploader_dagster.slots import index
from fuploader_dagster.slots.formats import sync_directory
from fuploader_dagster.slots.index import INDEX_NAME
from fuploader_dagster.slots.numbered_names import family, is_numbered
from fuploader_dagster.slots.sealing import read_seal
from fuploader_dagster.slots.shipped_indexes import in_order, parse_shipped, shipped_indexes

log = logging.getLogger(__name__)

_CONTENTS_HELD = 8
"""Index files in memory at a time, a megabyte each: redelivered messages were stored together."""

_Place = tuple[int, int]
"""Slot and number: a directory's identity, wherever it is."""


class _Directory:
    """What was read of one directory's index so far."""

    def __init__(self) -> None:
        self.path = Path()
        self.active = True
        self.complete = False
        """It was read after it was sealed, so there is nothing more to read."""
        self.end = 0
        self.version: int | None = None
        """Of its index; None until the index has begun."""
        self.keys = array("Q")
        self._file = (0, 0)
        """Device and inode of the index: under another root the same numbers are used again."""

    def read_on(self, path: Path, *, active: bool) -> None:
        """Read what was committed since the last time. Raises `FileNotFoundError` if it moved."""
        self.path, self.active = path, active
        try:
            descriptor = open_own(path, os.O_RDONLY)
        except ForeignFile as error:
            log.warning("%s is left out of the dedup window: %s", path, error)
            return
        with os.fdopen(descriptor, "rb") as file:
            found_file = os.fstat(descriptor)
            if (found_file.st_dev, found_file.st_ino) != self._file:
                self._file, self.complete = (found_file.st_dev, found_file.st_ino), False
                self.end, self.keys = 0, array("Q")
            if self.complete:
                return
            if found_file.st_size < self.end:  # cut back by its writer
                self.end, self.keys = 0, array("Q")
            file.seek(self.end)
            content = file.read()
        try:
            found = index.identities(content, self.version if self.end else None)
        except DamagedSlot as error:
            log.warning("%s is left out of the dedup window: %s", path, error)
            self.complete = True
            return
        self.complete, self.version = not active, found.version
        if found.names:
            new = (_key(name, sha) for name, sha in zip(found.names, found.digests, strict=True))
            self.keys = array("Q", sorted([*self.keys, *new]))
        self.end += found.end

    def may_hold(self, key: int) -> bool:
        place = bisect_left(self.keys, key)
        return place < len(self.keys) and self.keys[place] == key


class DedupWindow:
    """What all workers of a pipeline on this node stored recently."""

    def __init__(self, layout: Layout, messages: int) -> None:
        self._layout = layout
        self._messages = messages
        self._known: dict[_Place, _Directory] = {}
        self._contents: dict[_Place, bytes] = {}
        self._synced: set[_Place] = set()

    def refresh(self) -> None:
        """Take in everything that is committed by now."""
        self._contents.clear()
        self._synced.clear()
        while not self._looked():
            log.debug("a directory moved during the search, which starts again")

    def holds(self, name: str, sha256: bytes, headers: str | None = None) -> bool:
        """Whether a durable copy of this message was there at the last `refresh`.

        `headers`: those that are kept with it; None if none are kept.
        """
        key = _key(name.encode("utf-8"), sha256)
        while True:
            known = self._known
            candidates = [place for place, one in known.items() if one.may_hold(key)]
            if any(self._confirmed(place, name, sha256, headers) for place in candidates):
                return True
            if self._known is known:
                return False
            # A directory was divided meanwhile: its messages are in others now.

    def _looked(self) -> bool:
        known: dict[_Place, _Directory] = {}
        room = self._messages
        for place, path, active in self._newest_first():
            if room <= 0:
                break
            directory = self._known.get(place) or _Directory()
            try:
                directory.read_on(path, active=active)
            except FileNotFoundError:
                self._known.update(known)
                return False
            known[place] = directory
            room -= len(directory.keys)
        self._known = known
        return True

    def _newest_first(self) -> Iterator[tuple[_Place, Path, bool]]:
        """Each directory once: place, index file, whether it is active."""
        layout = self._layout
        active = [
            ((slot, number), layout.active(slot, number) / INDEX_NAME)
            for slot in layout.active_slots()
            for number in layout.active_numbers(slot)
        ]
        sealed = [(place, layout.sealed(*place) / INDEX_NAME) for place in layout.sealed_numbers()]
        shipped = [(one.place, one.path) for one in shipped_indexes(layout)]
        order = in_order({place: _modified(path) for place, path in sealed})
        sealed.sort(key=lambda one: order[one[0]], reverse=True)
        seen: set[_Place] = set()
        for is_active, found in ((True, active), (False, sealed), (False, shipped)):
            for place, path in found:
                # A directory that is being made has no index yet.
                being_made = is_active and not path.exists() and path.parent.exists()
                if place not in seen and not being_made:
                    seen.add(place)
                    yield place, path, is_active

    def _confirmed(self, place: _Place, name: str, sha256: bytes, headers: str | None) -> bool:
        """Check that the record is really there, and make it durable."""
        content = self._content(place)
        names = index.names_of(content, sha256, headers)
        if name not in names and not (
            any(is_numbered(stored, name) for stored in names)
            # A numbered name is one of ours only if the name itself is there too.
            and self._has_name(place, name)
        ):
            return False
        directory = self._known[place]
        if directory.active and place not in self._synced:
            try:
                sync_directory(directory.path.parent)
            except FileNotFoundError:
                log.debug("%s was just sealed, and so synced", directory.path.parent)
            self._synced.add(place)
        return True

    def _has_name(self, place: _Place, name: str) -> bool:
        """Whether the directory has a message of this name, or another piece of the one that it
        was divided from (`dividing`): they were sealed in the same millisecond."""
        sealed_at = self._sealed_at(place)
        together = [place]
        if sealed_at is not None:
            beside = [one for one in self._known if one[0] == place[0] and one != place]
            together += [one for one in beside if self._sealed_at(one) == sealed_at]
        return any(
            entry.name == name
            for one in together
            for entry in index.read_index(self._content(one)).entries
        )

    def _sealed_at(self, place: _Place) -> datetime | None:
        """When a directory was sealed; None if it is active, gone or damaged."""
        directory = self._known.get(place)
        if directory is None or directory.active:
            return None
        if directory.path.name != INDEX_NAME:
            shipped = parse_shipped(directory.path)
            return shipped.partition.sealed_at if shipped is not None else None
        try:
            partition = PartitionKey.parse(read_seal(directory.path.parent).partition)
        except DamagedSlot:
            return None
        return partition.sealed_at if partition is not None else None

    def _content(self, place: _Place) -> bytes:
        """The directory's index; empty if the directory is not there any more."""
        content = self._contents.get(place)
        while content is None and place in self._known:
            try:
                # After the end is what is being written now: it does not count yet.
                content = read_own(self._known[place].path)[: self._known[place].end]
            except FileNotFoundError:
                self.refresh()
        if len(self._contents) >= _CONTENTS_HELD:
            self._contents.clear()
        self._contents[place] = content or b""
        return content or b""


def _key(name: bytes, sha256: bytes) -> int:
    return int.from_bytes(sha256[:8], "little") ^ zlib.crc32(family(name))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # moved; whoever reads it notices
        return math.inf
