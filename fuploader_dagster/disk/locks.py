"""Locks that the kernel releases when a process dies: on a lock file, and on a folder itself.

What must always hold: whoever holds a lock can check that its file or folder is still found by its
name. Otherwise another process could lock a new one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fuploader_dagster.disk.durable import make_dirs
from fuploader_dagster.disk.own_files import open_own, open_own_folder, read_own, still_at
from fuploader_dagster.disk.temporaries import is_at, lock_now
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import DiskFailed, SlotInUse


class _Lock:
    """On an open file or folder; closing that releases it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def check(self) -> None:
        """Raise `DiskFailed` if the lock is not held, or what it is on is no longer found by its
        name: another process could then lock a new one."""
        if self._descriptor is None:
            raise DiskFailed(f"the lock {self.path} is not held")
        still_at(self._descriptor, self.path)

    def keep_over_exec(self) -> None:
        """Let a program that takes this process's place hold the lock as long as it runs."""
        if self._descriptor is not None:
            os.set_inheritable(self._descriptor, True)

    def release(self) -> None:
        """Release the lock. May be repeated."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class FileLock(_Lock):
    """An exclusive lock that the kernel releases when the process dies.

    Not re-entrant: another lock of the same process counts as another process's.
    """

    def acquire(self) -> None:
        """Take the lock now. Raises `SlotInUse`, naming the holder, if it is taken."""
        try:
            self._open_and_lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SlotInUse(
                f"{self.path} is held by {self._holder() or 'another process'}",
                hint="the kernel releases it when that process ends; never remove the file",
            ) from None

    def wait(self) -> None:
        """Take the lock, waiting for whoever has it."""
        self._open_and_lock(fcntl.LOCK_EX)

    def _open_and_lock(self, how: int) -> None:
        with naming_disk_trouble(self.path):
            make_dirs(self.path.parent)
        while True:
            with naming_disk_trouble(self.path):
                descriptor = open_own(self.path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(descriptor, how)
                still_there = is_at(descriptor, self.path)
            except BaseException:
                os.close(descriptor)
                raise
            if still_there:
                break
            os.close(descriptor)  # the previous holder removed the file: others lock a new one
        with suppress(OSError):  # a disk too full for the holder's name is no reason to fail
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)
        self._descriptor = descriptor

    def _holder(self) -> str:
        with suppress(OSError):  # the holder may have removed it in this moment
            return read_own(self.path).decode("utf-8", "replace")[:200].strip()
        return ""

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextmanager
def waited_for(lock: FileLock) -> Iterator[None]:
    """Hold the lock within the block, after waiting for whoever has it."""
    lock.wait()
    try:
        yield
    finally:
        lock.release()


class FolderLock(_Lock):
    """An exclusive lock on a folder itself, until it is released or this process dies.

    It holds even if the lock file that guards the folder is removed. Where the file system cannot
    lock folders (some network file systems), the lock file has to do.
    """

    def acquire(self) -> None:
        """Make the folder if it is missing, and take the lock now. Raises `SlotInUse` if another
        process has it.
        """
        with naming_disk_trouble(self.path):
            make_dirs(self.path)
            descriptor = open_own_folder(self.path)
        try:
            if lock_now(descriptor, fcntl.LOCK_EX) is False:
                raise SlotInUse(
                    f"another process is still writing {self.path}, though its lock file was "
                    f"free: somebody removed the lock file",
                    hint="never remove anything in locks/ while a drain runs; this process "
                    "continues as soon as the other one notices or ends",
                )
            still_at(descriptor, self.path)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
