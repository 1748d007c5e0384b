"""The folders of the items that are in work, and the files that their processor leaves there.

    processed/slot-0/dir-000017/work/3/    of the item at position 3

What must always hold:

- A folder stays until its item is committed, whatever dies meanwhile. It is not synced: who takes
  up what is there checks it.
- A file counts as a result only if it is a regular file in the folder, reached without a link, with
  the size that was stated; and only as long as it is the file that it was when it was stated.
  Nothing else is read, linked or waited for.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from fuploader_dagster.contracts.processor import FileResult
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.own_files import closed_after, folder_mode
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import BadItem

WORK_NAME = "work"
_PIECE_BYTES = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NOT_THERE = (
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT),
    *(errno.ENOTDIR, errno.EACCES, errno.EPERM),
)


class _Seen(NamedTuple):
    """What tells whether a file is still the same one."""

    device: int
    inode: int
    size_bytes: int
    changed_ns: int


class CheckedFile(NamedTuple):
    """A result that is a file, as it was when its processor stated it."""

    result: FileResult
    folder: Path
    seen: _Seen

    def check(self) -> None:
        """Raises `BadItem` if the file has changed since."""
        with _found(self.result.path, self.folder) as (folder, name):
            self._require(_look(self.result.path, folder, name))

    def compare(self) -> None:
        """Read the file. Raises `BadItem` if its digest is not the one that was stated."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        digest = sha256()
        with _found(self.result.path, self.folder) as (folder, name):
            with _not_there(self.result.path):
                descriptor = os.open(name, flags, dir_fd=folder)
            with os.fdopen(descriptor, "rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    digest.update(piece)
            self._require(_look(self.result.path, folder, name))
        if digest.digest() != self.result.sha256:
            raise BadItem(
                f"the file {self.result.path.name!r} has the SHA-256 {digest.hexdigest()}, and the "
                f"processor stated {self.result.sha256.hex()}"
            )

    def link(self, target: str, target_folder: int, mode: int) -> None:
        """Give the file a second name in another folder, a descriptor, and these rights.

        Raises `BadItem`, having made nothing, if the file has changed since.
        """
        with _found(self.result.path, self.folder) as (folder, name):
            self._require(_look(self.result.path, folder, name))
            os.link(
                name, target, src_dir_fd=folder, dst_dir_fd=target_folder, follow_symlinks=False
            )
        try:
            # Once more: something may have taken the file's place just before.
            self._require(_look(self.result.path, target_folder, target))
            os.chmod(target, mode, dir_fd=target_folder)
        except BaseException:
            os.unlink(target, dir_fd=target_folder)
            raise

    def _require(self, seen: _Seen) -> None:
        if seen != self.seen:
            raise BadItem(
                f"the file {self.result.path.name!r} was changed after the processor gave it as a "
                f"result"
            )


def checked_file(result: FileResult, folder: Path | None) -> CheckedFile:
    """The file that the result states, if it is there. Raises `BadItem`."""
    if folder is None:
        raise BadItem(
            f"the processor gave the file {result.path} as a result, but its items have no folder",
            hint="the processor's class has to say that it uses one",
        )
    with _found(result.path, folder) as (descriptor, name):
        seen = _look(result.path, descriptor, name)
    if seen.size_bytes != result.size_bytes:
        raise BadItem(
            f"the file {result.path.name!r} has {seen.size_bytes:,} bytes, and the processor "
            f"stated {result.size_bytes:,}"
        )
    return CheckedFile(result, folder, seen)


def _look(path: Path, folder: int, name: str) -> _Seen:
    with _not_there(path):
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode):
        raise BadItem(f"{path.name!r}, which the processor gave as a result, is no regular file")
    return _Seen(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@contextmanager
def _found(path: Path, folder: Path) -> Iterator[tuple[int, str]]:
    """A descriptor of the folder that the file is in, and its name there. Follows no link."""
    try:
        parts = Path(path).relative_to(folder).parts
    except (TypeError, ValueError):
        raise _outside(path) from None
    if not parts or ".." in parts or "\0" in str(path):
        raise _outside(path)
    with ExitStack() as opened, _not_there(path):
        descriptor = opened.enter_context(closed_after(os.open(folder, _FOLDER)))
        for part in parts[:-1]:
            inner = os.open(part, _FOLDER, dir_fd=descriptor)
            descriptor = opened.enter_context(closed_after(inner))
        keep = opened.pop_all()
    with keep:
        yield descriptor, parts[-1]


@contextmanager
def _not_there(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        raise BadItem(
            f"the file {path.name!r}, which the processor gave as a result, cannot be found in the "
            f"item's folder: {error.strerror}"
        ) from error


def _outside(path: object) -> BadItem:
    return BadItem(
        f"the processor gave {str(path)!r} as a result, which is not a file in the item's folder"
    )


class ItemFolders:
    """The folders of one slot's items, by their positions."""

    def __init__(self, directory: Path) -> None:
        """`directory`: of the processed slot."""
        self._folder = (directory / WORK_NAME).absolute()

    def path(self, position: int) -> Path:
        return self._folder / str(position)

    def make(self, position: int) -> Path:
        """An item's folder, made unless an earlier attempt did."""
        path = self.path(position)
        with naming_disk_trouble(self._folder):
            self._folder.mkdir(folder_mode(self._folder.parent), exist_ok=True)
            path.mkdir(folder_mode(self._folder), exist_ok=True)
        return path

    def remove(self, first: int, end: int) -> None:
        """Remove the folders of items that are committed. May be repeated."""
        for position in range(first, end):
            _remove(self.path(position))
        reached(CrashPoint.ITEM_FOLDERS_REMOVED)

    def remove_all_before(self, done: int) -> None:
        """Remove what a crash left of items that are committed."""
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            if not (path.name.isdecimal() and path.name.isascii() and int(path.name) >= done):
                _remove(path)

    def remove_all(self) -> None:
        """Remove everything: no item is left. May be repeated."""
        _remove(self._folder)


def _remove(path: Path) -> None:
    with naming_disk_trouble(path):
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            return
        except NotADirectoryError:
            path.unlink()
