"""The `files` format: one file for each message of a directory.

The directory holds `files/NAME` for each message, and `index`, which alone has the message headers.
A commit writes the files, syncs the file system once (`syncfs`), then appends to the index and
syncs that.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import fsync_dir, make_dirs, syncfs, write_all
from fuploader_dagster.disk.own_files import closed_after, open_own_folder, read_own
from fuploader_dagster.disk.trouble import disk_trouble
from fuploader_dagster.errors import BadMessage, DamagedSlot, ForeignFile
from fuploader_dagster.slots.directory_writer import DirectoryWriter, SetAside
from fuploader_dagster.slots.index import IndexEntry

FILES_NAME = "files"
_NAME_REFUSED = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
"""What a lookup returns for a name that the file system cannot store at all."""

log = logging.getLogger(__name__)


class FolderWriter(DirectoryWriter):
    """A writer whose data is a folder with a file for each record."""

    slot_format = "files"
    data_name = FILES_NAME

    def _has_data(self) -> bool:
        folder = self.directory / FILES_NAME
        return folder.is_dir() and any(folder.iterdir())

    def _open_folder(self) -> Path:
        folder = self.directory / FILES_NAME
        make_dirs(folder)
        self._data = open_own_folder(folder)
        return folder


class FilesWriter(FolderWriter):
    def __init__(self, directory: Path, *, keeps_headers: bool = False) -> None:
        super().__init__(directory, keeps_headers=keeps_headers)
        self._pending: list[tuple[str, bytes]] = []

    def _open_data(self, entries: list[IndexEntry], set_aside: SetAside) -> None:
        folder = self._open_folder()
        find_by_content(folder, entries)
        for entry in entries:
            path = folder / entry.name
            if not is_committed(path, entry):
                raise DamagedSlot(
                    f"{str(path)!r} is missing or is not what was committed",
                    hint="somebody changed it, or the disk is failing; the directory is untouched",
                )
        known = {entry.name for entry in entries}
        for path in folder.iterdir():
            if path.name not in known:
                set_aside(path)

    def add(self, name: str, content: bytes, sha256: bytes, headers: str = "") -> None:
        try:
            os.stat(name, dir_fd=self._data, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NAME_REFUSED:
                raise BadMessage(
                    f"the file system of {self.directory} cannot store a file named {name!r}: "
                    f"{error.strerror}",
                    hint="`slot_format: segment` can store any name",
                ) from error
            if error.errno != errno.ENOENT:
                raise disk_trouble(error, self.directory) from error
        self._records.append(
            self._record(name.encode("utf-8"), 0, 0, len(content), sha256, headers)
        )
        self._pending.append((name, content))

    def _write_data(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        made: list[str] = []
        try:
            for name, content in self._pending:
                with closed_after(os.open(name, flags, 0o644, dir_fd=self._data)) as descriptor:
                    made.append(name)
                    write_all(descriptor, content)
            reached(CrashPoint.DATA_WRITTEN)
            syncfs(self._data)
        except OSError:
            for name in made:  # else each attempt on a full disk would leave files to set aside
                with suppress(OSError):
                    os.unlink(name, dir_fd=self._data)
            raise
        self._pending.clear()

    def close(self) -> None:
        super().close()
        self._pending.clear()


def find_by_content(folder: Path, entries: Sequence[IndexEntry]) -> None:
    """Rename files that are in the folder under other names; their content tells which they are.

    Names may have been written in the encoding of another locale, or changed by a copy.
    """
    there = {path.name for path in folder.iterdir()}
    missing: dict[bytes, list[IndexEntry]] = {}
    for entry in entries:
        if entry.name not in there and "\0" not in entry.name:  # no file ever had such a name
            missing.setdefault(entry.sha256, []).append(entry)
    if not missing:
        return
    found = 0
    for name in sorted(there - {entry.name for entry in entries}):
        try:
            digest = hashlib.sha256(read_own(folder / name)).digest()
        except ForeignFile:
            continue
        if missing.get(digest):
            (folder / name).rename(folder / missing[digest].pop().name)
            found += 1
    if found:
        fsync_dir(folder)
        log.warning(
            "%d files in %s had other names than they were stored under (from another locale?); "
            "their content told which they are, and they were renamed",
            found,
            folder,
        )


def is_committed(path: Path, entry: IndexEntry) -> bool:
    try:
        whole = not path.is_symlink() and path.is_file()
        return whole and hashlib.sha256(path.read_bytes()).digest() == entry.sha256
    except ValueError:  # a name with a NUL: no file ever had it
        return False
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False
