"""How the bytes of an active directory are written: two formats behind one small interface.

What must always hold (both formats):

- After `commit` returned, every message added before it is durable, bytes and index record, and was
  found by its names after that: a file that was removed, or over whose folder another disk was
  mounted, would take bytes and syncs as ever. The worker acknowledges only then.
- Whatever a crash leaves beyond the last commit is either a whole commit and kept, or cut off; it
  was never acknowledged and will come again. A commit that is whole in the index is never cut off:
  another worker may have relied on it (`dedup_window`).
- What was committed and does not read back is an error: nothing is cut, and `salvage` gives what
  index and data prove together.

`segment`: the directory holds `segment.tar`, a tar stream without its end, to which each message's
header and payload are appended, and `index`. A commit is one write and one `fdatasync` for each.

After a sync that failed, the pages that it did not write count as clean: the next sync succeeds
without them, and they read back from memory as if they were stored. So whoever opens a directory
writes its index once more, byte for byte, and syncs that before trusting it. The data needs no such
care: a record is written only after the sync of its data succeeded, and what no record names is cut
off.

`files`: the directory holds `files/NAME` for each message, and `index`. A commit writes the files,
syncs the file system once (`syncfs`), then appends to the index and syncs that.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Literal

from xxhash import xxh3_128

from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import (
    fsync_dir,
    fsync_file,
    make_dirs,
    write_all,
)
from fuploader_dagster.disk.own_files import open_own, open_own_folder, read_own, still_at
from fuploader_dagster.disk.tar_headers import member_header, padding
from fuploader_dagster.disk.trouble import disk_trouble, naming_disk_trouble
from fuploader_dagster.errors import BadMessage, DamagedSlot, ForeignFile
from fuploader_dagster.slots import index
from fuploader_dagster.slots.index import INDEX_NAME, IndexEntry

SEGMENT_NAME = "segment.tar"
FILES_NAME = "files"
_BLOCK_BYTES = 2**20
_CLOSED = -1
_NAME_REFUSED = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
"""What a lookup of a name says that the file system cannot have at all."""

log = logging.getLogger(__name__)

SetAside = Callable[[Path], object]
"""Moves a file that recovery does not recognise out of the way, deleting nothing."""


class DirectoryWriter(ABC):
    """Appends messages to one active directory. The directory must be locked by the caller."""

    slot_format: ClassVar[Literal["segment", "files"]]
    data_name: ClassVar[str]
    """What tells a directory of this format from others."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._records: list[bytes] = []
        self._index_end = 0
        self._commits = 0
        self._index = _CLOSED

    def open(self, set_aside: SetAside) -> list[IndexEntry]:
        """Open or create the directory, cut it back to what is whole, return what it holds.

        Raises `DamagedSlot` if committed messages are damaged: then nothing is cut.
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
                f"{path} has not even its header, but there is data beside it",
                hint="the header is synced before any data is written: somebody cut the index off",
            )
        self._open_data(list(found.entries), set_aside)
        valid = content[: found.end] or index.header()
        write_all(self._index, valid)  # what it has already: only written pages are synced
        self._index_end, self._commits = len(valid), found.commits
        os.ftruncate(self._index, self._index_end)
        self._sync_index()
        fsync_dir(self.directory)
        return list(found.entries)

    @abstractmethod
    def _has_data(self) -> bool:
        """Whether anything was ever written beside the index."""

    @abstractmethod
    def _open_data(self, entries: list[IndexEntry], set_aside: SetAside) -> None:
        """Open the data, check it against the index, cut off what the index does not name."""

    @abstractmethod
    def add(self, name: str, content: bytes, sha256: bytes) -> None:
        """Take a message into the next commit. Writes nothing yet.

        Raises `BadMessage`, having taken nothing, if the file system refuses the name.
        """

    @abstractmethod
    def _write_data(self) -> None:
        """Make the data of all added messages durable."""

    def xxh128(self) -> str | None:
        """XXH3-128 of all committed data, in hex; None where the data is not one file."""
        return None

    def commit(self) -> None:
        """Make everything added so far durable, and see that it is found by its names.

        On an error nothing of the batch counts: call `close` and open the directory again.
        """
        with naming_disk_trouble(self.directory):
            if self._records:
                self._commit()
            for descriptor, path in self._files():
                still_at(descriptor, path)

    def _commit(self) -> None:
        self._write_data()
        reached(CrashPoint.DATA_SYNCED)
        committed = index.commit(self._records, self._commits)
        os.lseek(self._index, self._index_end, os.SEEK_SET)
        write_all(self._index, committed)
        reached(CrashPoint.INDEX_WRITTEN)
        self._sync_index()
        reached(CrashPoint.INDEX_SYNCED)
        self._index_end += len(committed)
        self._commits += 1
        self._records.clear()

    def _files(self) -> list[tuple[int, Path]]:
        """What is open, and the name under which it has to be found."""
        return [(self._index, self.directory / INDEX_NAME)]

    def close(self) -> None:
        """Close the files. What was added and not committed is forgotten."""
        self._records.clear()
        if self._index != _CLOSED:
            os.close(self._index)
            self._index = _CLOSED

    def _sync_index(self) -> None:
        os.fdatasync(self._index)


class SegmentWriter(DirectoryWriter):
    """The `segment` format."""

    slot_format = "segment"
    data_name = SEGMENT_NAME

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._parts: list[bytes] = []
        self._data = _CLOSED
        self._committed_end = 0
        self._end = 0
        self._digest = xxh3_128()

    def xxh128(self) -> str:
        return self._digest.hexdigest()

    def _has_data(self) -> bool:
        path = self.directory / SEGMENT_NAME
        return os.path.lexists(path) and path.lstat().st_size > 0

    def _files(self) -> list[tuple[int, Path]]:
        return [*super()._files(), (self._data, self.directory / SEGMENT_NAME)]

    def _open_data(self, entries: list[IndexEntry], set_aside: SetAside) -> None:
        self._data = open_own(self.directory / SEGMENT_NAME, os.O_RDWR | os.O_CREAT)
        end = check_entries(self._data, entries)
        torn = os.fstat(self._data).st_size > end
        os.ftruncate(self._data, end)
        if torn:
            reached(CrashPoint.TAIL_CUT)
        os.fdatasync(self._data)
        self._committed_end = self._end = end
        for start in range(0, end, _BLOCK_BYTES):
            self._digest.update(os.pread(self._data, min(_BLOCK_BYTES, end - start), start))

    def add(self, name: str, content: bytes, sha256: bytes) -> None:
        head = member_header(name, len(content))
        tail = padding(len(content))
        self._parts += (head, content, tail)
        self._records.append(
            index.record(name.encode("utf-8"), self._end, len(head), len(content), sha256)
        )
        self._end += len(head) + len(content) + len(tail)

    def _write_data(self) -> None:
        os.lseek(self._data, self._committed_end, os.SEEK_SET)
        for block in _blocks(self._parts):
            write_all(self._data, block)
            self._digest.update(block)
        reached(CrashPoint.DATA_WRITTEN)
        os.fdatasync(self._data)
        self._committed_end = self._end
        self._parts.clear()

    def close(self) -> None:
        super().close()
        self._parts.clear()
        if self._data != _CLOSED:
            os.close(self._data)
            self._data = _CLOSED


def _blocks(parts: Sequence[bytes]) -> Iterator[bytes]:
    """The parts joined to about 1 MiB each, so that no batch is in memory twice."""
    joined: list[bytes] = []
    size = 0
    for part in parts:
        if size + len(part) > _BLOCK_BYTES and joined:
            yield b"".join(joined)
            joined, size = [], 0
        joined.append(part)
        size += len(part)
    if joined:
        yield b"".join(joined)


def check_entries(descriptor: int, entries: Sequence[IndexEntry]) -> int:
    """Check every message against its record; return where the last one ends.

    Raises `DamagedSlot` at the first that differs. A record is written only after its data was
    synced, so a difference is never a torn tail: these bytes were acknowledged.
    """
    end = 0
    for entry in entries:
        if entry.offset != end or _content_of(descriptor, entry) is None:
            raise _not_as_committed(entry)
        end += entry.header_bytes + entry.size_bytes + len(padding(entry.size_bytes))
    return end


def _content_of(descriptor: int, entry: IndexEntry) -> bytes | None:
    """A message's content, if header, content and padding are as its record says."""
    start = entry.offset + entry.header_bytes
    if start + entry.size_bytes > os.fstat(descriptor).st_size:
        return None  # or a damaged size would be asked for in memory
    tail = padding(entry.size_bytes)
    head = os.pread(descriptor, entry.header_bytes, entry.offset)
    content = os.pread(descriptor, entry.size_bytes, start)
    if (
        head != member_header(entry.name, entry.size_bytes)
        or hashlib.sha256(content).digest() != entry.sha256
        or os.pread(descriptor, len(tail), start + entry.size_bytes) != tail
    ):
        return None
    return content


def _not_as_committed(entry: IndexEntry) -> DamagedSlot:
    return DamagedSlot(
        f"message {entry.name!r} at offset {entry.offset} is not what was committed",
        hint="the disk returned other bytes than were synced; the directory was kept",
    )


class FilesWriter(DirectoryWriter):
    """The `files` format."""

    slot_format = "files"
    data_name = FILES_NAME

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._pending: list[tuple[str, bytes]] = []
        self._folder = _CLOSED

    def _has_data(self) -> bool:
        folder = self.directory / FILES_NAME
        return folder.is_dir() and any(folder.iterdir())

    def _files(self) -> list[tuple[int, Path]]:
        return [*super()._files(), (self._folder, self.directory / FILES_NAME)]

    def _open_data(self, entries: list[IndexEntry], set_aside: SetAside) -> None:
        folder = self.directory / FILES_NAME
        make_dirs(folder)
        self._folder = open_own_folder(folder)
        find_by_content(folder, entries)
        for entry in entries:
            check_file(folder / entry.name, entry)
        known = {entry.name for entry in entries}
        for path in folder.iterdir():
            if path.name not in known:
                set_aside(path)

    def add(self, name: str, content: bytes, sha256: bytes) -> None:
        try:
            os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NAME_REFUSED:
                raise BadMessage(
                    f"the file system of {self.directory} takes no file of the name {name!r}: "
                    f"{error.strerror}",
                    hint="slot_format: segment takes every name",
                ) from error
            if error.errno != errno.ENOENT:
                raise disk_trouble(error, self.directory) from error
        self._pending.append((name, content))
        self._records.append(index.record(name.encode("utf-8"), 0, 0, len(content), sha256))

    def _write_data(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        made: list[str] = []
        try:
            for name, content in self._pending:
                descriptor = os.open(name, flags, 0o644, dir_fd=self._folder)
                made.append(name)
                try:
                    write_all(descriptor, content)
                finally:
                    os.close(descriptor)
            reached(CrashPoint.DATA_WRITTEN)
            syncfs(self._folder)
        except OSError:
            for name in made:  # or a full disk would stay full of them, set aside at each attempt
                with suppress(OSError):
                    os.unlink(name, dir_fd=self._folder)
            raise
        self._pending.clear()

    def close(self) -> None:
        super().close()
        self._pending.clear()
        if self._folder != _CLOSED:
            os.close(self._folder)
            self._folder = _CLOSED


def check_file(path: Path, entry: IndexEntry) -> None:
    """Check one file of the `files` format against its record. Raises `DamagedSlot`."""
    if not _is_committed(path, entry):
        raise DamagedSlot(
            f"{str(path)!r} is missing or is not what was committed",
            hint="somebody changed it, or the disk is failing; the directory was kept",
        )


def find_by_content(folder: Path, entries: Sequence[IndexEntry]) -> None:
    """Give files their names again that lie in the folder under others, as their content proves.

    Names may have been written in the encoding of another locale, or by a copy that changed them.
    """
    there = {path.name for path in folder.iterdir()}
    missing: dict[bytes, list[IndexEntry]] = {}
    for entry in entries:
        if entry.name not in there:
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
            "%d files in %s had other names than they were stored under (those of another "
            "locale?); they have their own again, as their content proves",
            found,
            folder,
        )


def salvage(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents that a damaged directory still proves: record and data agree.

    Changes nothing.
    """
    try:
        entries = index.salvage_records(read_own(directory / INDEX_NAME))
    except (FileNotFoundError, ForeignFile):
        return
    segment = directory / SEGMENT_NAME
    if not os.path.lexists(segment):
        for entry in entries:
            path = directory / FILES_NAME / entry.name
            if _is_committed(path, entry):
                yield entry.name, path.read_bytes()
        return
    try:
        descriptor = open_own(segment, os.O_RDONLY)
    except ForeignFile:
        return
    try:
        for entry in entries:
            content = _content_of(descriptor, entry)
            if content is not None:
                yield entry.name, content
    finally:
        os.close(descriptor)


def sync_directory(directory: Path) -> None:
    """Make durable what another process wrote into a directory, and is perhaps just syncing.

    Raises `FileNotFoundError` if it is not there any more: then it was sealed, which syncs it.
    """
    segment = directory / SEGMENT_NAME
    if segment.exists():
        fsync_file(segment)
    elif directory.exists():
        descriptor = open_own_folder(directory / FILES_NAME)
        try:
            syncfs(descriptor)
        finally:
            os.close(descriptor)
    fsync_file(directory / INDEX_NAME)


def _is_committed(path: Path, entry: IndexEntry) -> bool:
    try:
        whole = not path.is_symlink() and path.is_file()
        return whole and hashlib.sha256(path.read_bytes()).digest() == entry.sha256
    except ValueError:  # a name with a NUL: no file ever had it
        return False
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


_libc = ctypes.CDLL(None, use_errno=True)


def syncfs(descriptor: int) -> None:
    """Sync the whole file system of an open file: one journal commit for a batch of files."""
    if _libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


WRITERS: dict[str, type[DirectoryWriter]] = {"segment": SegmentWriter, "files": FilesWriter}
