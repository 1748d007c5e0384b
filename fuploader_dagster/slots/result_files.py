"""The `files` format of a processed slot: one file for each result.

    files/00000000    the first result of the index, and so on

What must always hold (`DirectoryWriter` has the rest):

- A file is called by the position of its record, which also states it (`offset`). So no name that a
  processor chose is ever one on this disk, and what no record names is recognised.
- A file that comes out of an item's folder is linked, and never copied or read. It stays in the
  folder until the commit, so after a crash the processor finds it there.
- When a directory is opened, its files are compared by size. By digest they are when they are read:
  at the latest, by whoever packs them. The first ones were before the commit (`item_commit`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import syncfs, write_all
from fuploader_dagster.disk.own_files import closed_after, file_mode, read_own
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import DamagedResults, DamagedSlot, DiskFailed, ForeignFile
from fuploader_dagster.slots.directory_writer import SetAside
from fuploader_dagster.slots.index import IndexEntry
from fuploader_dagster.slots.item_folders import CheckedFile
from fuploader_dagster.slots.plain_files import FILES_NAME, FolderWriter

_DIGITS = 8
_WITHOUT_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def file_name(number: int) -> str:
    """What the file of the record at this position is called."""
    return f"{number:0{_DIGITS}d}"


def file_of(directory: Path, entry: IndexEntry) -> Path:
    """The file of a result, below its processed slot."""
    return directory / FILES_NAME / file_name(entry.offset)


def contents_of_files(directory: Path, entries: Sequence[IndexEntry]) -> Iterator[bytes]:
    """The contents of these results, each compared with its record. Raises `DamagedResults`."""
    for entry in entries:
        path = file_of(directory, entry)
        try:
            content = read_own(path)
        except (FileNotFoundError, ForeignFile):
            content = None
        if content is None or sha256(content).digest() != entry.sha256:
            raise DamagedResults(
                f"{path}, the result {entry.name!r}, is missing or is not what was sealed",
                hint="the disk is failing, something changed it (dmesg, SMART), or the processor "
                "stated a wrong digest",
            )
        yield content


class ResultFilesWriter(FolderWriter):
    def __init__(self, directory: Path, *, keeps_headers: bool = False) -> None:
        super().__init__(directory, keeps_headers=keeps_headers)
        self._committed = self._mode = 0

    def _open_data(self, entries: list[IndexEntry], set_aside: SetAside) -> None:
        folder = self._open_folder()
        self._mode = file_mode(folder)
        for number, entry in enumerate(entries):
            if entry.offset != number or not self._has(entry):
                raise DamagedSlot(
                    f"{file_of(self.directory, entry)}, the result {entry.name!r}, is missing or "
                    f"is not what was committed",
                    hint="somebody changed it, or the disk is failing",
                )
        self._committed = len(entries)
        known = {file_name(number) for number in range(self._committed)}
        torn = [path for path in folder.iterdir() if path.name not in known]
        for path in torn:
            if path.name.isdecimal() and len(path.name) >= _DIGITS and path.is_file():
                path.unlink()
            else:
                set_aside(path)
        if torn:
            reached(CrashPoint.TAIL_CUT)

    def _has(self, entry: IndexEntry) -> bool:
        try:
            found = os.stat(file_name(entry.offset), dir_fd=self._data, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == entry.size_bytes

    @property
    def _next(self) -> int:
        return self._committed + len(self._records)

    def add(self, name: str, content: bytes, sha256: bytes, headers: str = "") -> None:
        """Write the content into a file of its own. It is not synced yet."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        made = file_name(self._next)
        with (
            naming_disk_trouble(self.directory / FILES_NAME),
            closed_after(os.open(made, flags, self._mode, dir_fd=self._data)) as descriptor,
        ):
            write_all(descriptor, content)
        self._note(name, len(content), sha256, headers)

    def add_file(self, name: str, file: CheckedFile, headers: str) -> None:
        """Link the file from its item's folder. Raises `BadItem` if it has changed."""
        with naming_disk_trouble(self.directory / FILES_NAME):
            try:
                file.link(file_name(self._next), self._data, self._mode)
            except OSError as error:
                if error.errno not in _WITHOUT_LINKS:
                    raise
                raise DiskFailed(
                    f"{file.result.path} cannot be linked into {self.directory}: {error.strerror}",
                    hint="results that are files need a file system with hard links: put "
                    "storage_root on one",
                ) from error
        self._note(name, file.result.size_bytes, file.result.sha256, headers)

    def _note(self, name: str, size_bytes: int, sha256: bytes, headers: str) -> None:
        raw = name.encode("utf-8")
        self._records.append(self._record(raw, self._next, 0, size_bytes, sha256, headers))

    def _write_data(self) -> None:
        reached(CrashPoint.DATA_WRITTEN)
        syncfs(self._data)
        self._committed += len(self._records)
