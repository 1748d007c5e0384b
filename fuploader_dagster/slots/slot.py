"""Slots: who writes where, under which names, and when a directory is full.

What must always hold:

- One writer per slot: a `SlotOwner` exists only while its process holds two locks, which the kernel
  frees when the process dies: the slot's lock file, and the slot's folder itself, so that removing
  `locks/` does not let a second writer in. Reloads, overlaps and second code servers wait.
- A commit counts only if what was written is still found by its names: if somebody removes or
  renames a folder, or mounts a disk over it, the commit ends with an error and nothing is
  acknowledged.
- A directory number is handed out once: `next-number` is durable before the directory is made.
- Within a directory a name with the same bytes is stored once, with the message headers that came
  first; the same name with other bytes gets a name of its own (`name~2.json`). Nothing is ever
  overwritten.
- A directory is sealed as it is, or divided into several sealed slots (`dividing`).
- Message headers that are to be kept are kept: a directory whose index has no room for them (the
  setting `headers` was switched on since) is sealed as it is, and the next one has room.

A slot is opened from what is on disk: an interrupted seal is finished, the newest directory
continues after its last commit, older ones (only a crash leaves them) are sealed as they are. A
damaged directory is moved aside, whole; before that, the messages on which its index and data agree
are stored again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fuploader_dagster.contracts.source import Position
from fuploader_dagster.contracts.state import SlotCount
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import write_durably
from fuploader_dagster.disk.layout import MAX_NUMBER_DIGITS, Layout
from fuploader_dagster.disk.locks import FileLock, FolderLock
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.disk.setting_aside import set_aside
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import BadMessage, DamagedSlot, ForeignFile, OtherFormat
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.settings.split import NO_SPLIT
from fuploader_dagster.slots.directory_writer import DirectoryWriter
from fuploader_dagster.slots.dividing import Full, divide, undo_divisions
from fuploader_dagster.slots.formats import WRITERS, has_headers, salvage, writer_for
from fuploader_dagster.slots.index import INDEX_NAME, identity
from fuploader_dagster.slots.numbered_names import numbered_name
from fuploader_dagster.slots.sealing import (
    SEAL_NAME,
    Reason,
    SealedSlot,
    finish_seal,
    make_seal,
    read_seal,
    seal_directory,
    seal_due,
)
from fuploader_dagster.slots.stored_positions import PositionsFile

log = logging.getLogger(__name__)


@dataclass
class _Variants:
    """What arrived under one name: its identities, and the next number to try."""

    identities: set[bytes]
    next_number: int = 2


class SlotOwner:
    """One slot of this process, with its active directory. Use as a context manager."""

    def __init__(
        self,
        pipeline: Intake,
        slot: int,
        *,
        highest_number: int = 0,
        admission: Callable[[], int] | None = None,
        keeps_headers: bool = False,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`highest_number`: the highest directory number that the state store remembers.
        `admission`: returns it; called when the locks are held and nothing is changed yet, and
        raises if somebody else has the slot.
        `keeps_headers`: messages may have headers, although the pipeline keeps none now.

        `clock` tells the time of day, and may be set back; `monotonic` measures intervals.
        """
        self.pipeline = pipeline
        self.slot = slot
        self.layout: Layout = pipeline.layout
        self.found_sealed: list[SealedSlot] = []
        """The directories that opening the slot sealed."""
        self._clock = clock
        self._monotonic = monotonic
        self._highest = highest_number
        self._admission = admission
        self._lock = FileLock(self.layout.slot_lock(slot))
        self._folder = FolderLock(self.layout.active_slot(slot))
        self._positions = PositionsFile(self.layout, slot)
        self._number = 0
        self._keeps_headers = self._may_have_headers = keeps_headers or bool(pipeline.headers)
        """Whether a new directory has room for message headers."""
        self._writer: DirectoryWriter | None = None
        self._entries = 0
        self._bytes = 0
        self._header_bytes = 0
        """Of the message headers, about."""
        self._opened_at = 0.0
        """In `monotonic` time."""
        self._identities: dict[str, bytes] = {}
        self._variants: dict[str, _Variants] = {}

    def __enter__(self) -> SlotOwner:
        self._lock.acquire()
        try:
            self._folder.acquire()
            if self._admission is not None:
                self._highest = self._admission()
            with naming_disk_trouble(self.layout.active_slot(self.slot)):
                self._recover()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close_directory()
        self._folder.release()
        self._lock.release()

    @property
    def count(self) -> SlotCount:
        """What the active directory holds, uncommitted messages included."""
        return SlotCount(self.slot, self._number, self._entries, self._bytes)

    def add(self, name: str, content: bytes, headers: str = "") -> bool:
        """Take a message into the next commit; False if the directory has it already.

        Name, content and `headers` (`disk/header_text.py`) decide about that. Raises `BadMessage`,
        having taken nothing, if the file system cannot store the name.
        """
        digest = hashlib.sha256(content).digest()
        same = identity(digest, headers)
        known = self._identities.get(name)
        stored_as: str | None = name
        if known is not None:
            stored_as = None if known == same else self._free_name(name, same)
        if stored_as is None:
            return False
        writer = self._writer or self._open_directory()
        try:
            writer.add(stored_as, content, digest, headers)
        except BadMessage:
            if known is not None:
                self._variants[name].identities.discard(same)
            raise
        self._identities[stored_as] = same
        self._entries += 1
        self._bytes += len(content)
        if headers:
            self._header_bytes += len(headers)
        return True

    def _free_name(self, name: str, same: bytes) -> str | None:
        """A free name for another message under a known name; None if this one is stored."""
        variants = self._variants.get(name)
        if variants is None:
            variants = self._variants[name] = _Variants({self._identities[name]})
        while same not in variants.identities:
            candidate = numbered_name(name, variants.next_number)
            variants.next_number += 1
            taken_by = self._identities.get(candidate)
            variants.identities.add(same if taken_by is None else taken_by)
            if taken_by is None:
                return candidate
        return None

    def commit(self, positions: Sequence[Position] = ()) -> None:
        """Make all added messages durable. After an error the slot must be opened again.

        `positions`: up to where all is stored then, or was before, of each part of the queue.

        Raises `DiskFailed` also if what was committed earlier is not found by its name any more:
        messages of this batch may have been skipped as duplicates of it.
        """
        if self._writer is not None:
            if positions:
                self._positions.note(positions, self.count)
            self._writer.commit()
        with naming_disk_trouble(self.layout.active_slot(self.slot)):
            self._lock.check()
            self._folder.check()

    def due(self) -> Reason | None:
        """Which seal limit the active directory has reached, if any."""
        age = self._monotonic() - self._opened_at
        return seal_due(
            messages=self._entries,
            size_bytes=self._bytes + self._header_bytes,
            age_seconds=age,
            pipeline=self.pipeline,
        )

    def seal_divided(self, reason: Reason) -> list[SealedSlot]:
        """Commit and seal the active directory, as several slots if the pipeline `divides` it; none
        if it is empty."""
        split = NO_SPLIT
        if self.pipeline.divides and self._writer is not None and self._entries:
            self.commit()
            full = Full.read(self._writer.directory, self._writer.slot_format, self.pipeline)
            if len(full.pieces) > 1:
                numbers = self._take_numbers(len(full.pieces))
                self._close_directory()
                self._number = numbers[-1]
                return divide(full, numbers, self.pipeline, reason=reason, now=self._clock())
            split = full.pieces[0].split
        whole = self.seal(reason, split)
        return [] if whole is None else [whole]

    def seal(self, reason: Reason, split: Mapping[str, str] = NO_SPLIT) -> SealedSlot | None:
        """Commit and seal the active directory as it is; None if it is empty. `split`: the values
        that all its messages share."""
        if self._writer is None or self._entries == 0:
            return None
        self.commit()
        directory = self._writer.directory
        seal = make_seal(
            self.pipeline,
            slot=self.slot,
            number=self._number,
            slot_format=self._writer.slot_format,
            messages=self._entries,
            payload_bytes=self._bytes,
            index_content=read_own(directory / INDEX_NAME),
            segment_xxh128=self._writer.xxh128(),
            reason=reason,
            now=self._clock(),
            split=split,
        )
        self._close_directory()
        sealed = seal_directory(directory, seal, self.layout)
        reached(CrashPoint.ADOPTED if reason == "adopted" else CrashPoint.SEALED)
        log.info("sealed %s: %d messages, %s", seal.partition, seal.messages, reason)
        return sealed

    def _close_directory(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._entries = self._bytes = self._header_bytes = 0
        self._identities = {}
        self._variants = {}

    def _recover(self) -> None:
        undo_divisions(self.layout, self.slot)
        self._positions.resume()
        numbers = self.layout.active_numbers(self.slot)
        damaged: list[Path] = []
        for number in numbers:
            directory = self.layout.active(self.slot, number)
            if directory.is_symlink() or not directory.is_dir():
                self._set_aside(directory)
                continue
            if os.path.lexists(directory / SEAL_NAME):
                if not self._finish_seal(directory):
                    damaged.append(directory)
                continue
            try:
                self._resume(directory, number)
            except (DamagedSlot, ForeignFile) as error:
                log.error("%s is damaged: %s", directory, error)
                damaged.append(directory)
                continue
            if number != numbers[-1]:
                self._finish_directory()
        if self._keeps_headers:
            self._make_room_for_headers()
        for directory in damaged:
            self._positions.strike_out(directory)
            self._salvage(directory)
        self._keeps_headers = self._may_have_headers

    def _finish_directory(self) -> None:
        """Seal the open directory as it is."""
        self.found_sealed += self.seal_divided("adopted")
        self._close_directory()

    def _make_room_for_headers(self) -> None:
        """Make sure that the next message may have headers."""
        self._keeps_headers = True
        writer = self._writer
        if writer is None or writer.keeps_headers:
            return
        if self._entries:
            self._finish_directory()
        else:
            self._close_directory()
            self._resume(writer.directory, self._number)

    def _salvage(self, directory: Path) -> None:
        """Store what a damaged directory still proves again, then move it aside, whole.

        In this order: after a crash in between, the next start does the same and stores nothing
        twice.
        """
        if has_headers(directory):  # the setting may be off by now
            self._make_room_for_headers()
        taken = sum(self.add(*message) for message in salvage(directory))
        self.commit()
        target = self._set_aside(directory)
        log.error(
            "recovered %d messages from the damaged directory %s and stored them again. The "
            "original is now in %s; any other acknowledged message exists only there",
            taken,
            directory,
            target,
        )

    def _finish_seal(self, directory: Path) -> bool:
        """False if the seal cannot be read: then only the messages can be saved."""
        try:
            read_seal(directory)
        except OtherFormat as error:
            self._set_aside_and_log(directory, error)
            return True
        except DamagedSlot as error:
            log.error("%s is damaged: %s", directory, error)
            return False
        try:
            self.found_sealed.append(finish_seal(directory, self.layout))
            reached(CrashPoint.SEAL_FINISHED)
        except DamagedSlot as error:
            self._set_aside_and_log(directory, error)
        return True

    def _set_aside_and_log(self, directory: Path, error: DamagedSlot) -> None:
        target = self._set_aside(directory)
        log.error("%s is damaged and was moved to %s: %s", directory, target, error)

    def _resume(self, directory: Path, number: int) -> None:
        """Continue a directory. Raises `DamagedSlot`, having changed nothing."""
        writer = writer_for(directory, self.pipeline.slot_format, keeps_headers=self._keeps_headers)
        entries = writer.open(self._set_aside)
        self._writer, self._number = writer, number
        self._identities = {entry.name: entry.identity for entry in entries}
        self._entries = len(entries)
        self._bytes = sum(entry.size_bytes for entry in entries)
        self._header_bytes = sum(len(entry.headers) for entry in entries)
        # The directory's entries are made when it is first opened and never change after that. If
        # its time is in the future, the clock was set back, and it counts as made now.
        age = max(0.0, self._clock() - directory.stat().st_mtime)
        self._opened_at = self._monotonic() - age

    def _open_directory(self) -> DirectoryWriter:
        (number,) = self._take_numbers(1)
        directory = self.layout.active(self.slot, number)
        make = WRITERS[self.pipeline.slot_format]
        writer = make(directory, keeps_headers=self._keeps_headers)
        writer.open(self._set_aside)
        reached(CrashPoint.DIRECTORY_OPENED)
        self._writer, self._number = writer, number
        self._opened_at = self._monotonic()
        return writer

    def _take_numbers(self, count: int) -> range:
        counter = self.layout.active_slot(self.slot) / "next-number"
        number = max(self._counted(counter), self._highest, self._number) + 1
        numbers = range(number, number + count)
        while taken := [each for each in numbers if self._is_taken(each)]:
            numbers = range(taken[-1] + 1, taken[-1] + 1 + count)
        write_durably(counter, str(numbers[-1]).encode())
        reached(CrashPoint.NUMBER_TAKEN)
        return numbers

    def _is_taken(self, number: int) -> bool:
        layout, slot = self.layout, self.slot
        return layout.sealed(slot, number).exists() or layout.active(slot, number).exists()

    def _counted(self, counter: Path) -> int:
        try:
            content = read_own(counter)
        except FileNotFoundError:
            return 0
        except ForeignFile:
            content = b""
        if content.isdigit() and len(content) <= MAX_NUMBER_DIGITS:
            return int(content)
        target = self._set_aside(counter)
        log.error(
            "%s holds no number and was moved to %s; numbers continue after the highest one in the "
            "state store and on the disk",
            counter,
            target,
        )
        return 0

    def _set_aside(self, path: Path) -> Path:
        return set_aside(path, self.layout)
