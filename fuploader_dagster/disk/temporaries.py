"""Temporary names: for what is being written, and to recognise what a dead process left.

What must always hold: a temporary name is `.tmp-{16 hex digits}-{final name}`, and the process that
made it holds a lock on it, which the kernel releases when the process dies. So what a dead process
left is known for certain, whichever container it ran in. Process numbers could not tell: they are
used again, and each container has its own. Other names are left alone.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fuploader_dagster.disk.own_files import closed_after, file_mode, folder_mode

TEMPORARY_PREFIX = ".tmp-"
MAX_NAME_BYTES = 255
_OWN_TEMPORARY = re.compile(re.escape(TEMPORARY_PREFIX) + r"[0-9a-f]{16}-.+", re.DOTALL)


def is_temporary(name: str) -> bool:
    """Whether this is a temporary name of ours."""
    return _OWN_TEMPORARY.fullmatch(name) is not None


def whole_files(folder: Path, pattern: str) -> list[Path]:
    """What the pattern matches in the folder, sorted, without what is being written.

    `*` matches temporary names too: whoever takes one for a file's own reads half a file, or a
    second one that is gone in a moment.
    """
    return sorted(path for path in folder.glob(pattern) if not is_temporary(path.name))


def final_name(temporary: str) -> str:
    """The final name within a temporary one."""
    return temporary[len(TEMPORARY_PREFIX) + 17 :]


def temporary_name(final: Path) -> Path:
    """A new temporary name beside `final`."""
    name = f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}-{final.name}"
    return final.with_name(os.fsencode(name)[:MAX_NAME_BYTES].decode("utf-8", "ignore"))


@contextmanager
def temporary_file(final: Path, *, for_others: bool = False) -> Iterator[Path]:
    """An empty file under a new temporary name, locked. Removed at the end unless it was renamed.

    `for_others`: with the mode that the umask gives, not that of our own files.
    """
    path, descriptor = _made_and_locked(final, _make_file_for_others if for_others else _make_file)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def temporary_folder(final: Path) -> Iterator[Path]:
    """An empty folder under a new temporary name, locked. Removed at the end with its content."""
    path, descriptor = _made_and_locked(final, _make_folder)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _made_and_locked(final: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    while True:
        path = temporary_name(final)
        descriptor = make(path)
        # Before we locked it, another process may have removed it as a leftover: make a new one.
        if lock_now(descriptor, fcntl.LOCK_EX) is not False and is_at(descriptor, path):
            return path, descriptor
        os.close(descriptor)


def _make_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, file_mode(path.parent))


def _make_file_for_others(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)


def _make_folder(path: Path) -> int:
    path.mkdir(folder_mode(path.parent))
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock of this file or folder. A missing one is not held.

    Also True if the file system cannot tell, so that nothing is touched.
    """
    descriptor = _opened(path)
    if descriptor is None:
        return False
    with closed_after(descriptor):
        return lock_now(descriptor, fcntl.LOCK_SH) is not True


def remove_unless_held(path: Path) -> bool:
    """Remove a file or folder that a dead process left; False if a live one holds it after all."""
    descriptor = _opened(path)
    if descriptor is None:
        return False
    with closed_after(descriptor):
        if lock_now(descriptor, fcntl.LOCK_EX) is not True or not is_at(descriptor, path):
            return False
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return True


def _opened(path: Path) -> int | None:
    """A descriptor to lock; None for what is gone, or is neither a file nor a folder."""
    try:
        kind = path.lstat().st_mode
        if stat.S_ISDIR(kind):
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        if not stat.S_ISREG(kind):
            return None
        try:
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except PermissionError:  # a user who may only read
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None


def lock_now(descriptor: int, how: int) -> bool | None:
    """True if locked, False if another process holds the lock, None if the file system has no such
    locks (for folders, some network file systems).
    """
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
