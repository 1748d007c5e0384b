"""Turns: two workers never both commit a message that the queue gave to one, then to the other.

The trouble: a connection is cut while worker A has messages in hand. The queue gives them to
worker B at once, marked as redelivered; A does not know yet, and is about to commit them. B finds
them in no directory (`dedup_window`) and commits them as well: second copies.

What must always hold: of two workers that have the same message in hand, one commits it, and the
other looks for it after that commit and before its own.

How. Each worker has a file lock that it holds during an ordinary commit. All commits that have to
look share one lock (`commits-that-look`) and one counter of redeliveries. Before B looks for
redelivered messages, it takes the shared lock, raises the counter, and waits until it has seen each
other worker's own lock free once. A reads the counter while it holds its own lock:

- before B raised it: then B waits for A's commit, and finds the message;
- afterwards: then A has to look as well, under the shared lock, for every message that it can have
  had in hand at that time, which is `prefetch_count` messages. Whichever worker gets the lock
  second finds what the first one committed.

The kernel frees the locks of a process that died, and what that process had not committed it never
will. Each turn checks that its lock and the counter are still the files that others find by these
names: if somebody removes `locks/`, the turn ends with an error and the worker starts again. An
ordinary commit costs seven system calls. Where a source cannot tell which messages are redelivered
and marks all of them, all commits take turns.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal

from fuploader_dagster.disk.durable import make_dirs
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.disk.own_files import open_own, opened_own, still_at
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import SlotInUse

LONGEST_WAIT_SECONDS = 10.0
"""A commit takes milliseconds, unless the disk hangs."""
_LOOK_AGAIN_SECONDS = 0.002
_CLOSED = -1

Look = Literal["none", "redelivered", "all"]
"""Which messages of a batch another worker may have committed."""


class CommitTurns:
    """The turns of one worker. Use as a context manager around each session with the queue."""

    def __init__(self, layout: Layout, worker: int, *, prefetch: int) -> None:
        self._layout = layout
        self._path = layout.commit_lock(worker)
        self._prefetch = prefetch
        self._those_who_look = FileLock(layout.look_lock)
        self._own = self._counter = _CLOSED
        self._heard = 0
        """The value of the counter that this worker has acted on."""
        self._doubtful = 0
        """This many messages, from the next one on, another worker may have in hand as well."""

    def __enter__(self) -> CommitTurns:
        try:
            with naming_disk_trouble(self._path):
                make_dirs(self._path.parent)
                flags = os.O_RDWR | os.O_CREAT
                self._own = open_own(self._path, flags)
                self._counter = open_own(self._layout.redeliveries, flags)
                self._heard, self._doubtful = self._count(), 0
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self._own, self._counter):
            if descriptor != _CLOSED:
                os.close(descriptor)
        self._own = self._counter = _CLOSED

    @contextmanager
    def turn(self, messages: int, *, redelivered: bool) -> Iterator[Look]:
        """Commit within the block, after looking in the window for the messages that it names.

        `redelivered`: whether any of the messages is marked so. Raises `SlotInUse` if another
        worker's commit does not end, and `DiskFailed` if the lock files are not found by their
        names any more.
        """
        if not redelivered and not self._doubtful:
            fcntl.flock(self._own, fcntl.LOCK_EX)
            try:
                if self._count() == self._heard:
                    yield "none"
                    return
            finally:
                fcntl.flock(self._own, fcntl.LOCK_UN)
        _in_time(self._those_who_look.acquire)
        try:
            count = self._count()
            if count != self._heard:
                self._doubtful = self._prefetch
            if redelivered:
                count += 1
                os.pwrite(self._counter, count.to_bytes(8, "little"), 0)
                self._see_others_commit()
            self._heard = count
            yield "all" if self._doubtful else "redelivered"
        finally:
            self._those_who_look.release()
        self._doubtful = max(0, self._doubtful - messages)

    def _count(self) -> int:
        """The counter. In replaced files others would count elsewhere and not see our lock."""
        with naming_disk_trouble(self._path):
            still_at(self._own, self._path)
            still_at(self._counter, self._layout.redeliveries)
        return int.from_bytes(os.pread(self._counter, 8, 0), "little")

    def _see_others_commit(self) -> None:
        """Wait until each commit that was in progress has ended."""
        for path in self._layout.commit_locks():
            if path != self._path:
                with suppress(FileNotFoundError), opened_own(path, os.O_RDWR) as descriptor:
                    _in_time(partial(_see_free, descriptor, path))


def _see_free(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SlotInUse(
            f"another worker has not finished its commit for "
            f"{LONGEST_WAIT_SECONDS:g} s: it holds {path}",
            hint="check that the disk answers; this worker waits because the other one may be "
            "committing the same messages",
        ) from None


def _in_time(see: Callable[[], None]) -> None:
    """Repeat it while it raises `SlotInUse`, for at most `LONGEST_WAIT_SECONDS`."""
    give_up_at = time.monotonic() + LONGEST_WAIT_SECONDS
    while True:
        try:
            see()
        except SlotInUse:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(_LOOK_AGAIN_SECONDS)
        else:
            return
