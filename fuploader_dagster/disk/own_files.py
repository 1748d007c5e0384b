"""Our own files and folders: how they are opened, and with which rights they are made.

What must always hold:

- Only regular files are opened, never through a link, and without waiting. Something else in the
  place of one of our files (a link to somebody's file, a named pipe that waits for its other end, a
  folder) is neither read nor written nor waited for. It raises a `ForeignFile` that names the path.
- Only the owner can read messages on the disk: what we make has mode 0600 or 0700, whatever the
  umask allows. Exceptions are what existed before, and what others are to read: objects of a local
  store, restored and exported files, and what a packer is given.

The set-group-ID bit on a folder says that its group shares the content: below it, the group gets
the rights that it has on the folder, as far as the umask allows.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from fuploader_dagster.disk.trouble import MOVE_IT_AWAY
from fuploader_dagster.errors import DiskFailed, ForeignFile

_ODD = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV)


def open_own(path: Path, flags: int) -> int:
    """A descriptor for one of our files. Raises `ForeignFile` if there is something else."""
    try:
        # NONBLOCK: a pipe must not hang; it means nothing for regular files
        mode = file_mode(path.parent) if flags & os.O_CREAT else 0
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, mode)
    except OSError as error:
        if error.errno not in _ODD:
            raise
        raise _foreign(path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _foreign(path)
    return descriptor


def opened_own(path: Path, flags: int) -> AbstractContextManager[int]:
    """Like `open_own`, but the file is closed at the end of the block."""
    return closed_after(open_own(path, flags))


@contextmanager
def closed_after(descriptor: int) -> Iterator[int]:
    """A descriptor of any file or folder, closed at the end of the block."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_own(path: Path) -> bytes:
    """The content of one of our files. Raises `FileNotFoundError`, and as `open_own`."""
    with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
        return file.read()


def open_own_folder(path: Path) -> int:
    """A descriptor for one of our folders. Raises `ForeignFile` if there is something else."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        raise _foreign(path, "folder") from error


def file_mode(folder: Path) -> int:
    """For a new file of ours in the folder."""
    return 0o600 | _of_group(folder) & 0o060


def folder_mode(parent: Path) -> int:
    """For a new folder of ours."""
    return 0o700 | _of_group(parent)


def _of_group(folder: Path) -> int:
    mode = folder.stat().st_mode
    return mode & stat.S_IRWXG if mode & stat.S_ISGID else 0


def still_at(descriptor: int, path: Path) -> None:
    """Raise `DiskFailed` unless the open file is still the one found by its name.

    A file that was removed, or is below a folder that was renamed or that another disk was mounted
    over, still takes bytes, but nobody will find them.
    """
    opened = os.fstat(descriptor)
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise _vanished(path, "is gone") from None
    if not os.path.samestat(opened, found):
        raise _vanished(path, "is a different one now")


def _vanished(path: Path, how: str) -> DiskFailed:
    return DiskFailed(
        f"{path} {how}: while this process was writing it, it was removed or renamed, or another "
        f"disk was mounted over it",
        hint="nothing was acknowledged since; do not remove anything below storage_root while a "
        "drain runs, and mount disks before it starts",
    )


def _foreign(path: Path, wanted: str = "file") -> ForeignFile:
    try:
        kind = path.lstat().st_mode
    except OSError:
        kind = 0
    names = {
        stat.S_IFLNK: "a link",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFDIR: "a folder",
        stat.S_IFSOCK: "a socket",
        stat.S_IFREG: "a file",
    }
    found = names.get(stat.S_IFMT(kind), "something else")
    return ForeignFile(f"{path} should be a {wanted}, but is {found}", hint=MOVE_IT_AWAY)
