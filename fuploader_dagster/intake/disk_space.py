"""Disk space: whether the disk can take more messages, and the sentence that says why not.

What must always hold: below a mark the drain pauses and the queue keeps its messages; above it the
drain goes on by itself. A pause ends only a tenth beyond its mark, so that it neither begins nor
ends with every batch. After the disk said that it is full, whatever the marks say, messages are
taken again only once as much as the last batch needed could be reserved: a batch that fails comes
back from the queue, and queues count how often.

`shortage` decides, from figures alone; `SpaceWatch` looks and remembers.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fuploader_dagster.disk.durable import has_room, make_dirs
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.errors import DamagedSlot
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.slots.sealing import read_seal
from fuploader_dagster.slots.segment import SEGMENT_NAME

RESUME_SHARE = 10
"""A pause ends a tenth of the mark beyond it."""
UNSHIPPED_SECONDS = 2.0
"""Listing a long backlog takes some milliseconds, so it is not done for each batch."""
LEAST_RESERVE_BYTES = 1024 * 1024
TAR_BYTES_PER_MESSAGE = 1024
"""A header and half a block of padding, or twice that where a name is long."""


@dataclass(frozen=True)
class DiskSpace:
    """What there is."""

    free_bytes: int
    free_inodes: int | None
    """None where the file system makes them as it needs them."""
    unshipped_bytes: int
    """In sealed slots and archives that the object store has not confirmed yet."""
    file_bytes: int | None = None
    """How long a file of this process may get (`ulimit -f`); None: as long as it likes."""


def shortage(space: DiskSpace, pipeline: Intake, *, paused: bool) -> str:
    """What there is too little or too much of, in a sentence; empty if messages can be taken.

    `paused`: the drain pauses already, and goes on only beyond the marks.
    """
    share = RESUME_SHARE if paused else 0
    said = []
    marks = pipeline.min_free_bytes, pipeline.min_free_inodes, pipeline.max_unshipped_bytes
    min_bytes, min_inodes, max_unshipped = marks
    folder = pipeline.storage_root.absolute()
    if space.free_bytes < min_bytes + min_bytes * share // 100:
        said.append(
            f"{folder} has {space.free_bytes:,} bytes free; the drain pauses at less than "
            f"min_free_bytes ({min_bytes:,}) and goes on at {_above(min_bytes):,}: free some space"
        )
    if space.free_inodes is not None and (
        space.free_inodes < min_inodes + min_inodes * share // 100
    ):
        said.append(
            f"{folder} has {space.free_inodes:,} inodes free; the drain pauses at less than "
            f"min_free_inodes ({min_inodes:,}) and goes on at {_above(min_inodes):,}: remove small "
            f"files, or make the file system with more inodes"
        )
    if max_unshipped and space.unshipped_bytes > max_unshipped - max_unshipped * share // 100:
        said.append(
            f"{space.unshipped_bytes:,} bytes of {pipeline.name} are not in the object store yet; "
            f"the drain pauses at more than max_unshipped_bytes ({max_unshipped:,}) and goes on at "
            f"{max_unshipped - max_unshipped // RESUME_SHARE:,}: see what keeps the uploads"
        )
    needed = longest_segment(pipeline)
    if space.file_bytes is not None and space.file_bytes < needed:
        said.append(
            f"this process may write files of up to {space.file_bytes:,} bytes and a slot may need "
            f"one of {needed:,}, by seal_bytes, commit_bytes and seal_messages: raise `ulimit -f` "
            f"(LimitFSIZE= of a systemd unit), or lower these settings"
        )
    return "; ".join(said)


def longest_segment(pipeline: Intake) -> int:
    """How long the longest file of a slot can get: a batch beyond the marks, with tar's blocks."""
    if pipeline.slot_format == "files":
        return 0
    messages = pipeline.seal_messages + pipeline.commit_messages
    return pipeline.seal_bytes + pipeline.commit_bytes + messages * TAR_BYTES_PER_MESSAGE


def _above(mark: int) -> int:
    return mark + mark // RESUME_SHARE


class SpaceWatch:
    """Looks whether there is room, for one worker."""

    def __init__(self, pipeline: Intake, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pipeline = pipeline
        self._clock = clock
        self._paused = False
        self._reserve = 0
        self._unshipped = Unshipped(pipeline.layout)
        self._unshipped_at = -UNSHIPPED_SECONDS
        self._unshipped_bytes = 0

    def backlog_grew(self) -> None:
        """A slot was sealed: count again at the next look."""
        self._unshipped_at = -UNSHIPPED_SECONDS

    def disk_was_full(self, needed_bytes: int) -> None:
        """The disk said so while this much was written."""
        self._reserve = max(needed_bytes, LEAST_RESERVE_BYTES)

    def shortage(self) -> str:
        """Why no messages can be taken now; empty if they can. Takes microseconds."""
        sentence = shortage(self.look(), self._pipeline, paused=self._paused)
        if not sentence and self._reserve:
            folder = self._pipeline.layout.root
            if has_room(folder, self._reserve):
                self._reserve = 0
            else:
                sentence = (
                    f"the disk of {folder} was full and has no {self._reserve:,} bytes for the "
                    f"next batch yet: free some space"
                )
        self._paused = bool(sentence)
        return sentence

    def look(self) -> DiskSpace:
        """The figures."""
        now = self._clock()
        if self._pipeline.max_unshipped_bytes and now - self._unshipped_at >= UNSHIPPED_SECONDS:
            self._unshipped_at, self._unshipped_bytes = now, self._unshipped.bytes()
        return space_of(self._pipeline.storage_root.absolute(), self._unshipped_bytes)


def space_of(folder: Path, unshipped_bytes: int) -> DiskSpace:
    """What a file system has, for whoever is not its superuser."""
    make_dirs(folder)
    stat = os.statvfs(folder)
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return DiskSpace(
        free_bytes=stat.f_bavail * stat.f_frsize,
        free_inodes=stat.f_favail if stat.f_files else None,
        unshipped_bytes=unshipped_bytes,
        file_bytes=None if limit == resource.RLIM_INFINITY else limit,
    )


class Unshipped:
    """Counts the bytes of what is sealed or packed. A sealed slot is looked at once: it never
    changes."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known: dict[Path, int] = {}

    def bytes(self) -> int:
        """How many there are now."""
        sealed = self._layout.sealed_dirs()
        self._known = {
            directory: self._known[directory] if directory in self._known else _size(directory)
            for directory in sealed
        }
        return sum(self._known.values()) + _sizes_in(self._layout.archives)


def _size(directory: Path) -> int:
    try:
        return (directory / SEGMENT_NAME).stat().st_size
    except FileNotFoundError:  # one file per message, or a run has removed it in this moment
        pass
    try:
        return read_seal(directory).payload_bytes
    except DamagedSlot:
        return 0


def _sizes_in(folder: Path) -> int:
    size = 0
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    size += entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:  # uploaded and removed in this moment
                    continue
    return size
