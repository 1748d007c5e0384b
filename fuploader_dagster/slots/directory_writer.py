"""How the bytes of an active directory are written: the contract that both formats keep.

What must always hold (both formats):

- After `commit` returned, every message added before it is durable, bytes and index record, and its
  files are still found by their names: a file that was removed, or over whose folder another disk
  was mounted, would accept writes and syncs as usual. The worker acknowledges only then.
- Whatever a crash leaves after the last commit is either a whole commit and kept, or cut off; it
  was never acknowledged and the queue delivers it again. A commit that is whole in the index is
  never cut off: another worker may have relied on it (`dedup_window`).
- A committed message that does not read back is an error: nothing is cut, and `salvage` (in
  `formats`) returns every message on which index and data agree.

After a failed sync, the kernel counts the pages that it could not write as clean: the next sync
succeeds without them, and they read back from memory as if they were stored. So whoever opens a
directory writes its index again, byte for byte, and syncs that before trusting it. The data needs
no such care: a record is written only after the sync of its data succeeded, and data without a
record is cut off.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import fsync_dir, make_dirs, write_all
from fuploader_dagster.disk.own_files import open_own, still_at
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import DamagedSlot
from fuploader_dagster.slots import index
from fuploader_dagster.slots.index import INDEX_NAME, IndexEntry

CLOSED = -1
"""In place of a descriptor."""

SetAside = Callable[[Path], object]
"""Moves a file that recovery does not recognise to `set-aside/`; deletes nothing."""


class DirectoryWriter(ABC):
    """Appends messages to one active directory. The directory must be locked by the caller."""

    slot_format: ClassVar[Literal["segment", "files"]]
    data_name: ClassVar[str]
    """The file or folder that marks a directory as being of this format."""

    def __init__(self, directory: Path, *, keeps_headers: bool = False) -> None:
        """`keeps_headers`: whether messages may have headers. An existing directory decides itself
        (`open`)."""
        self.directory = directory
        self.keeps_headers = keeps_headers
        self._record = index.record
        self._records: list[bytes] = []
        self._index_end = 0
        self._commits = 0
        self._index = self._data = CLOSED

    def open(self, set_aside: SetAside) -> list[IndexEntry]:
        """Open or create the directory, cut off what is not whole, return its messages.

        A directory with messages is continued in the version of its index, so it `keeps_headers` if
        that has room for them. Raises `DamagedSlot` if committed messages are damaged: then nothing
        is cut.
        """
        try:
            with naming_disk_trouble(self.directory):
                return self._open(set_aside)
        except BaseException:
            self.close()
            raise

    def _open(self, set_aside: SetAside) -> list[IndexEntry]:
        make_dirs(self.directory)
        path = self.directory / INDEX_NAME
        self._index = open_own(path, os.O_RDWR | os.O_CREAT)
        content = os.pread(self._index, os.fstat(self._index).st_size, 0)
        found = index.read_index(content)
        if found.end == 0 and self._has_data():
            raise DamagedSlot(
                f"{path} has no complete header, but there is data beside it",
                hint="the header is synced before any data is written, so somebody truncated the "
                "index",
            )
        self._open_data(list(found.entries), set_aside)
        if found.commits:
            self.keeps_headers = found.version == index.WITH_HEADERS
            valid = content[: found.end]
        else:
            valid = index.header(index.WITH_HEADERS if self.keeps_headers else index.PLAIN)
        self._record = index.record_with_headers if self.keeps_headers else index.record
        write_all(self._index, valid)  # the same bytes again: only written pages are synced
        self._index_end, self._commits = len(valid), found.commits
        os.ftruncate(self._index, self._index_end)
        os.fdatasync(self._index)
        fsync_dir(self.directory)
        return list(found.entries)

    @abstractmethod
    def _has_data(self) -> bool:
        """Whether there is any data beside the index."""

    @abstractmethod
    def _open_data(self, entries: list[IndexEntry], set_aside: SetAside) -> None:
        """Open `_data`, check it against the index, cut off what no record names."""

    @abstractmethod
    def add(self, name: str, content: bytes, sha256: bytes, headers: str = "") -> None:
        """Take a message into the next commit. Writes nothing yet.

        `headers`, as `disk/header_text.py` writes them, need a directory that `keeps_headers`.
        Raises `BadMessage`, having taken nothing, if the file system cannot store the name.
        """

    @abstractmethod
    def _write_data(self) -> None:
        """Make the data of all added messages durable."""

    def xxh128(self) -> str | None:
        """XXH3-128 of all committed data, in hex; None where the data is not one file."""
        return None

    def commit(self) -> None:
        """Make everything added so far durable, and check that it is found by its names.

        After an error nothing of the batch counts: call `close` and open the directory again.
        """
        with naming_disk_trouble(self.directory):
            if self._records:
                self._commit()
            still_at(self._index, self.directory / INDEX_NAME)
            still_at(self._data, self.directory / self.data_name)

    def _commit(self) -> None:
        self._write_data()
        reached(CrashPoint.DATA_SYNCED)
        committed = index.commit(self._records, self._commits)
        os.lseek(self._index, self._index_end, os.SEEK_SET)
        write_all(self._index, committed)
        reached(CrashPoint.INDEX_WRITTEN)
        os.fdatasync(self._index)
        reached(CrashPoint.INDEX_SYNCED)
        self._index_end += len(committed)
        self._commits += 1
        self._records.clear()

    def close(self) -> None:
        """Close the files. Messages that were added and not committed are forgotten."""
        self._records.clear()
        for descriptor in (self._index, self._data):
            if descriptor != CLOSED:
                os.close(descriptor)
        self._index = self._data = CLOSED
