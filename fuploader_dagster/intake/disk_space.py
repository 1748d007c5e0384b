"""Disk space: whether the disk can take more messages, and the sentence that says why not.

What must always hold: below a limit the drain pauses and the queue keeps its messages; above it the
drain resumes by itself. A pause ends only a tenth beyond its limit, so that it neither begins nor
ends with every batch. After the disk reported that it is full, whatever the limits say, the drain
takes messages again only once it could reserve as much as the last batch needed: a batch that fails
is delivered again, and queues count deliveries.

`shortage` decides, from figures alone; `SpaceWatch` measures and remembers.
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fuploader_dagster.disk.durable import has_room, make_dirs
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.errors import DamagedSlot
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.slots.sealing import SEAL_NAME, read_seal
from fuploader_dagster.slots.segment import SEGMENT_NAME

RESUME_SHARE = 10
"""A pause ends a tenth of the limit beyond it."""
UNSHIPPED_SECONDS = 2.0
"""Between two counts: listing a long backlog takes milliseconds, too much for each batch."""
CHEAP_WALK_SECONDS = 0.01
WALK_SHARE = 20
"""What grows is walked through again after this many times the time that the last walk took."""
LEAST_RESERVE_BYTES = 1024 * 1024
TAR_BYTES_PER_MESSAGE = 1024
"""A header and half a block of padding; twice that where the name is long."""


@dataclass(frozen=True)
class DiskSpace:
    """The figures that the limits are compared with."""

    free_bytes: int
    free_inodes: int | None
    """None where the file system creates inodes as needed."""
    unshipped_bytes: int
    """In sealed and processed slots, and in archives, that the object store has not confirmed."""
    file_bytes: int | None = None
    """The longest file that this process may write (`ulimit -f`); None: no limit."""


def shortage(space: DiskSpace, pipeline: Intake, *, paused: bool) -> str:
    """Which limits are exceeded, in a sentence; empty if messages can be taken.

    `paused`: the drain is paused already, and resumes only beyond the limits.
    """
    found = []
    folder = pipeline.storage_root.absolute()
    limit = pipeline.min_free_bytes
    resume_at = limit + limit // RESUME_SHARE
    if space.free_bytes < (resume_at if paused else limit):
        found.append(
            f"{folder} has {space.free_bytes:,} bytes free; the drain pauses at less than "
            f"min_free_bytes ({limit:,}) and resumes at {resume_at:,}: free some space"
        )
    limit = pipeline.min_free_inodes
    resume_at = limit + limit // RESUME_SHARE
    if space.free_inodes is not None and space.free_inodes < (resume_at if paused else limit):
        found.append(
            f"{folder} has {space.free_inodes:,} inodes free; the drain pauses at less than "
            f"min_free_inodes ({limit:,}) and resumes at {resume_at:,}: remove small files, or "
            f"create the file system with more inodes"
        )
    limit = pipeline.max_unshipped_bytes
    resume_at = limit - limit // RESUME_SHARE
    if limit and space.unshipped_bytes > (resume_at if paused else limit):
        found.append(
            f"{space.unshipped_bytes:,} bytes of {pipeline.name} are not in the object store yet; "
            f"the drain pauses at more than max_unshipped_bytes ({limit:,}) and resumes at "
            f"{resume_at:,}: find out what delays the uploads"
        )
    needed = longest_segment(pipeline)
    if space.file_bytes is not None and space.file_bytes < needed:
        found.append(
            f"this process may write files of up to {space.file_bytes:,} bytes, but with these "
            f"seal_bytes, commit_bytes and seal_messages a slot may need one of {needed:,}: raise "
            f"`ulimit -f` (LimitFSIZE= of a systemd unit), or lower these settings"
        )
    return "; ".join(found)


def longest_segment(pipeline: Intake) -> int:
    """The longest file that a slot can need: one batch above the seal limits, with tar's blocks."""
    if pipeline.slot_format == "files":
        return 0
    messages = pipeline.seal_messages + pipeline.commit_messages
    return pipeline.seal_bytes + pipeline.commit_bytes + messages * TAR_BYTES_PER_MESSAGE


class SpaceWatch:
    def __init__(self, pipeline: Intake, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pipeline = pipeline
        self._clock = clock
        self._paused = False
        self._reserve = 0
        self._unshipped = Unshipped(pipeline.layout)
        self._unshipped_at = -UNSHIPPED_SECONDS
        self._unshipped_bytes = 0

    def backlog_grew(self) -> None:
        """A slot was sealed: count the backlog again at the next look."""
        self._unshipped_at = -UNSHIPPED_SECONDS

    def disk_was_full(self, needed_bytes: int) -> None:
        """The disk was full when this much was to be written."""
        self._reserve = max(needed_bytes, LEAST_RESERVE_BYTES)

    def shortage(self) -> str:
        """Why no messages can be taken now; empty if they can. Takes microseconds."""
        now = self._clock()
        if self._pipeline.max_unshipped_bytes and now - self._unshipped_at >= UNSHIPPED_SECONDS:
            self._unshipped_at, self._unshipped_bytes = now, self._unshipped.bytes()
        space = space_of(self._pipeline.storage_root.absolute(), self._unshipped_bytes)
        sentence = shortage(space, self._pipeline, paused=self._paused)
        if not sentence and self._reserve:
            folder = self._pipeline.layout.root
            if has_room(folder, self._reserve):
                self._reserve = 0
            else:
                sentence = (
                    f"the disk of {folder} was full, and the next batch may need {self._reserve:,} "
                    f"bytes that are not free yet: free some space"
                )
        self._paused = bool(sentence)
        return sentence


def space_of(folder: Path, unshipped_bytes: int) -> DiskSpace:
    """What the file system of a folder has left for ordinary users."""
    make_dirs(folder)
    stat = os.statvfs(folder)
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return DiskSpace(
        free_bytes=stat.f_bavail * stat.f_frsize,
        free_inodes=stat.f_favail if stat.f_files else None,
        unshipped_bytes=unshipped_bytes,
        file_bytes=None if limit == resource.RLIM_INFINITY else limit,
    )


def existing_part(folder: Path) -> Path:
    """The folder, or the nearest one above that is there: for those who only look."""
    return next((one for one in (folder, *folder.parents) if one.is_dir()), folder)


class Unshipped:
    """Counts the bytes that are sealed, processed or packed; a slot that never changes, once. What
    items in work have in their folders counts.

    Walking through slots that are being processed takes at most a twentieth of the time, however
    many files their items have: with 100,000 of them, what grew is seen some seconds later.
    """

    def __init__(self, layout: Layout, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._layout = layout
        self._clock = clock
        self._growing: dict[Path, int] = {}
        self._walk_due_at = -math.inf
        self._known: dict[Path, int] = {}
        self._processed: dict[Path, int] = {}

    def bytes(self) -> int:
        """The bytes that are not shipped now."""
        sealed = self._layout.sealed_dirs()
        self._known = {
            directory: self._known[directory] if directory in self._known else _size(directory)
            for directory in sealed
        }
        processed = [self._layout.processed(*each) for each in self._layout.processed_numbers()]
        self._processed = {
            directory: self._processed.get(directory) or _sizes_below(directory)
            for directory in processed
            if (directory / SEAL_NAME).exists()
        }
        self._walk([one for one in processed if one not in self._processed])
        parts = (self._known, self._processed, self._growing)
        return sum(sum(one.values()) for one in parts) + _sizes_in(self._layout.archives)

    def _walk(self, growing: Sequence[Path]) -> None:
        started = self._clock()
        if started < self._walk_due_at:
            self._growing = {one: self._growing.get(one, 0) for one in growing}
            return
        self._growing = {one: _sizes_below(one) for one in growing}
        ended = self._clock()
        if ended - started > CHEAP_WALK_SECONDS:
            self._walk_due_at = ended + WALK_SHARE * (ended - started)


def _size(directory: Path) -> int:
    with suppress(FileNotFoundError):  # the `files` format, or a run has just removed it
        return (directory / SEGMENT_NAME).stat().st_size
    with suppress(DamagedSlot):
        return read_seal(directory).payload_bytes
    return 0


def _sizes_in(folder: Path) -> int:
    size = 0
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # just uploaded and removed
                size += entry.stat(follow_symlinks=False).st_size
    return size


def _sizes_below(folder: Path) -> int:
    """The same with the folders in it. A file with two names counts once; no link is followed."""
    size = 0
    counted: set[int] = set()
    with suppress(FileNotFoundError):
        for _, _, names, descriptor in os.fwalk(folder):
            for name in names:
                with suppress(FileNotFoundError):  # just committed and removed
                    found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    if found.st_nlink == 1 or found.st_ino not in counted:
                        size += found.st_size
                    if found.st_nlink > 1:
                        counted.add(found.st_ino)
    return size
