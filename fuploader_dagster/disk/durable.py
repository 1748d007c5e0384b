"""Durable writes: write, fsync, rename and fsync of the directory, in one place.

What must always hold:

- When a function here returns, a power cut does not undo what it did, even if another process began
  it and was killed: each process syncs the name of a directory or file that it finds made, once.
- A file appears under its final name only with all its bytes (write under a temporary name, fsync,
  rename, fsync the directory).
- What a dead process left half written has a temporary name, and is recognised by it
  (`disk/temporaries.py`).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.own_files import closed_after, folder_mode, open_own, opened_own
from fuploader_dagster.disk.temporaries import lock_now, temporary_file, temporary_name
from fuploader_dagster.disk.trouble import FULL, naming_disk_trouble
from fuploader_dagster.errors import FuploaderError

_synced: set[Path] = set()
"""Paths made by other processes whose names this one has synced."""


def fsync_dir(path: Path) -> None:
    """Make the directory's entries durable."""
    with closed_after(os.open(path, os.O_RDONLY | os.O_DIRECTORY)) as descriptor:
        os.fsync(descriptor)


def fsync_file(path: Path) -> None:
    """Make the bytes of a file durable that was written elsewhere."""
    with opened_own(path, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


_libc = ctypes.CDLL(None, use_errno=True)


def syncfs(descriptor: int) -> None:
    """Sync the whole file system of an open file: one journal commit for a batch of files."""
    if _libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def make_dirs(path: Path, *, for_others: bool = False) -> None:
    """Create the directory and its missing parents, durably.

    `for_others`: with the mode that the umask gives, not that of our own folders.
    """
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    _sync_names(path)
    for directory in reversed(missing):
        mode = 0o777 if for_others else folder_mode(directory.parent)
        directory.mkdir(mode, exist_ok=True)
        reached(CrashPoint.DIRECTORY_MADE)
        fsync_dir(directory.parent)


def _sync_names(path: Path) -> None:
    """Sync the names of an existing directory and its parents, once in each process: the process
    that made them may have died before it did.
    """
    for each in (path, *path.parents):
        if each in _synced:
            return
        try:
            fsync_dir(each.parent)
        except PermissionError:  # a folder in which we cannot have made anything
            return
        _synced.add(each)


def replace_durably(temporary: Path, final: Path) -> None:
    """Give a file whose bytes are already synced its final name, replacing an older file."""
    temporary.replace(final)
    reached(CrashPoint.FILE_NAMED)
    fsync_dir(final.parent)


def rename_durably(source: Path, target: Path) -> None:
    """Move a file or directory in one step. Raises `FileExistsError` if the target exists."""
    make_dirs(target.parent)
    if target.exists():  # rename(2) would silently replace a file or an empty directory
        raise FileExistsError(errno.EEXIST, "something with this name already exists", target)
    source.rename(target)
    reached(CrashPoint.MOVED)
    fsync_dir(target.parent)
    fsync_dir(source.parent)


def write_durably(final: Path, content: bytes) -> None:
    """Write a whole file, replacing an older one in one step."""
    with _written_beside(final, content) as temporary:
        replace_durably(temporary, final)


def create_durably(final: Path, content: bytes) -> bool:
    """Write a whole file; False if one with this name already exists."""
    with _written_beside(final, content) as temporary:
        try:
            os.link(temporary, final)
            reached(CrashPoint.FILE_NAMED)
        except FileExistsError:
            return False
        finally:
            fsync_dir(final.parent)
    return True


@contextmanager
def _written_beside(final: Path, content: bytes) -> Iterator[Path]:
    """The content, synced, under a temporary name; nothing is left if that fails."""
    with naming_disk_trouble(final), temporary_file(final) as temporary:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        reached(CrashPoint.TEMPORARY_WRITTEN)
        yield temporary


def write_for_readers(final: Path, content: bytes) -> None:
    """Replace a file in one step, without waiting for the disk: for displays, not for data.

    On a full disk the file is overwritten in place, which takes no space: it then has to say that
    the disk is full.
    """
    try:
        with temporary_file(final) as temporary:
            temporary.write_bytes(content)
            temporary.replace(final)
    except OSError as error:
        if error.errno not in FULL or not final.exists():
            raise
        with os.fdopen(open_own(final, os.O_RDWR), "r+b") as file:
            file.write(content)
            file.truncate()


def append_durably(path: Path, content: bytes) -> None:
    """Append whole lines in one write, and sync. Creates the file if it is missing.

    Concurrent appenders do not interleave (`O_APPEND`). A crash can leave half a line at the end;
    the next append then begins on a line of its own.
    """
    content = content if _ends_whole(path) else b"\n" + content
    new = path not in _synced or not path.exists()  # its maker may have died before syncing
    with naming_disk_trouble(path):
        with opened_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as descriptor:
            write_all(descriptor, content)
            reached(CrashPoint.APPENDED)
            os.fdatasync(descriptor)
        if new:
            fsync_dir(path.parent)
            _synced.add(path)


def append_or_undo(path: Path, content: bytes) -> None:
    """Like `append_durably`, but cuts a failed append off again. Only for a single writer."""
    size = path.lstat().st_size if path.exists() else 0
    try:
        append_durably(path, content)
    except BaseException:
        # The caller needs the first error, not one from undoing.
        with suppress(OSError, FuploaderError), os.fdopen(open_own(path, os.O_RDWR), "r+b") as file:
            file.truncate(size)
        raise


def _ends_whole(path: Path) -> bool:
    """False if a crash left half a line at the end of a file of lines."""
    if not path.exists() or path.stat().st_size == 0:
        return True
    with naming_disk_trouble(path), os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def write_all(descriptor: int, content: bytes | bytearray | memoryview) -> None:
    """Call `os.write` until all is written (it writes less after a signal or on a full disk)."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def remove_file(path: Path) -> None:
    """Remove a file, durably. A missing one is no error."""
    path.unlink(missing_ok=True)
    fsync_dir(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a directory with everything in it. A missing one is no error.

    It gets a temporary name first, so that a crash in between leaves what is recognised as garbage,
    never a directory with half of its files.
    """
    if not path.exists():
        return
    doomed = temporary_name(path)
    with closed_after(os.open(path, os.O_RDONLY | os.O_DIRECTORY)) as descriptor:
        lock_now(descriptor, fcntl.LOCK_EX)  # or it would count as left by a dead process
        path.rename(doomed)
        reached(CrashPoint.TREE_DOOMED)
        fsync_dir(path.parent)
        shutil.rmtree(doomed)


def has_room(folder: Path, size_bytes: int) -> bool:
    """Whether a file of this size can be made in the folder. Leaves nothing there.

    Tries it, because quotas and reserved blocks show nowhere else.
    """
    try:
        stat = os.statvfs(folder)
        if stat.f_bavail * stat.f_frsize < size_bytes:
            return False
        with temporary_file(folder / "room") as trial, trial.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
    except OSError as error:
        return error.errno not in (*FULL, errno.EFBIG)
    return True
