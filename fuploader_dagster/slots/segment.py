"""The `segment` format: one tar stream for all messages of a directory.

The directory holds `segment.tar`, a tar stream without its end, to which each message's header and
payload are appended, and `index`. A commit is one write and one `fdatasync` for each of the two.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from xxhash import xxh3_128

from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import write_all
from fuploader_dagster.disk.own_files import open_own
from fuploader_dagster.disk.tar_headers import member_header, padding
from fuploader_dagster.errors import DamagedSlot
from fuploader_dagster.slots.directory_writer import DirectoryWriter, SetAside
from fuploader_dagster.slots.index import IndexEntry

SEGMENT_NAME = "segment.tar"
_BLOCK_BYTES = 2**20
_LARGEST_OFFSET = 2**62
"""A larger one is damage, and nothing that the system reads from."""


class SegmentWriter(DirectoryWriter):
    slot_format = "segment"
    data_name = SEGMENT_NAME

    def __init__(self, directory: Path, *, keeps_headers: bool = False) -> None:
        super().__init__(directory, keeps_headers=keeps_headers)
        self._pieces: list[bytes] = []
        self._committed_end = 0
        self._end = 0
        self._digest = xxh3_128()

    def xxh128(self) -> str:
        return self._digest.hexdigest()

    def _has_data(self) -> bool:
        path = self.directory / SEGMENT_NAME
        return os.path.lexists(path) and path.lstat().st_size > 0

    def _open_data(self, entries: list[IndexEntry], set_aside: SetAside) -> None:
        self._data = open_own(self.directory / SEGMENT_NAME, os.O_RDWR | os.O_CREAT)
        end = _check_entries(self._data, entries)
        torn = os.fstat(self._data).st_size > end
        os.ftruncate(self._data, end)
        if torn:
            reached(CrashPoint.TAIL_CUT)
        os.fdatasync(self._data)
        self._committed_end = self._end = end
        for start in range(0, end, _BLOCK_BYTES):
            self._digest.update(os.pread(self._data, min(_BLOCK_BYTES, end - start), start))

    def add(self, name: str, content: bytes, sha256: bytes, headers: str = "") -> None:
        head = member_header(name, len(content), headers)
        tail = padding(len(content))
        raw = name.encode("utf-8")
        self._records.append(self._record(raw, self._end, len(head), len(content), sha256, headers))
        self._pieces += (head, content, tail)
        self._end += len(head) + len(content) + len(tail)

    def _write_data(self) -> None:
        os.lseek(self._data, self._committed_end, os.SEEK_SET)
        for block in _blocks(self._pieces):
            write_all(self._data, block)
            self._digest.update(block)
        reached(CrashPoint.DATA_WRITTEN)
        os.fdatasync(self._data)
        self._committed_end = self._end
        self._pieces.clear()

    def close(self) -> None:
        super().close()
        self._pieces.clear()


def _blocks(pieces: Sequence[bytes]) -> Iterator[bytes]:
    """The pieces joined to about 1 MiB each, so that no batch is in memory twice."""
    joined: list[bytes] = []
    size = 0
    for piece in pieces:
        if size + len(piece) > _BLOCK_BYTES and joined:
            yield b"".join(joined)
            joined, size = [], 0
        joined.append(piece)
        size += len(piece)
    if joined:
        yield b"".join(joined)


def _check_entries(descriptor: int, entries: Sequence[IndexEntry]) -> int:
    """Check every message against its record; return where the last one ends.

    Raises `DamagedSlot` at the first that differs. A record is written only after its data was
    synced, so a difference is never a torn tail: these bytes were committed.
    """
    end = 0
    for entry in entries:
        if entry.offset != end or content_of(descriptor, entry) is None:
            raise DamagedSlot(
                f"message {entry.name!r} at offset {entry.offset} is not what was committed",
                hint="the disk returned other bytes than were synced; the directory is untouched",
            )
        end += entry.header_bytes + entry.size_bytes + len(padding(entry.size_bytes))
    return end


def content_of(descriptor: int, entry: IndexEntry) -> bytes | None:
    """A message's content, or None unless header, content and padding are as its record says."""
    head = member_header(entry.name, entry.size_bytes, entry.headers)
    if len(head) != entry.header_bytes:
        return None
    tail = padding(entry.size_bytes)
    end = len(head) + entry.size_bytes
    if end > _BLOCK_BYTES or entry.offset > _LARGEST_OFFSET:
        return _large_content_of(descriptor, entry, head, tail)
    member = os.pread(descriptor, end + len(tail), entry.offset)
    content = member[len(head) : end]
    if (
        len(member) != end + len(tail)
        or not member.startswith(head)
        or not member.endswith(tail)
        or hashlib.sha256(content).digest() != entry.sha256
    ):
        return None
    return content


def stream_contents(
    descriptor: int, entries: Iterable[IndexEntry], xxh128: str
) -> Iterator[tuple[IndexEntry, bytes]]:
    """The contents of all messages of a segment, which nothing proves until the last one was read:
    then, if the whole file has another digest, this raises `DamagedSlot`.

    In a third of the time that `content_of` takes for each.
    """
    digest, end = xxh3_128(), 0
    for members, size in _neighbours(entries):
        if size > _BLOCK_BYTES:
            (entry,) = members
            if end + size > os.fstat(descriptor).st_size:
                break  # else a damaged record could ask for any amount of memory
            digest.update(os.pread(descriptor, entry.header_bytes, end))
            content = os.pread(descriptor, entry.size_bytes, end + entry.header_bytes)
            digest.update(content)
            digest.update(
                os.pread(
                    descriptor,
                    len(padding(entry.size_bytes)),
                    end + entry.header_bytes + entry.size_bytes,
                )
            )
            yield entry, content
        else:
            block = os.pread(descriptor, size, end)
            digest.update(block)
            for entry in members:
                begin = entry.offset - end + entry.header_bytes
                yield entry, block[begin : begin + entry.size_bytes]
        end += size
    if digest.hexdigest() != xxh128:
        raise DamagedSlot("the segment is not what was sealed")


def _neighbours(entries: Iterable[IndexEntry]) -> Iterator[tuple[list[IndexEntry], int]]:
    """Messages whose members are in one block, or a larger one alone; and the bytes of these."""
    members: list[IndexEntry] = []
    start = end = 0
    for entry in entries:
        if entry.offset != end:
            raise DamagedSlot(f"message {entry.name!r} is not where the one before it ends")
        stop = end + entry.header_bytes + entry.size_bytes + len(padding(entry.size_bytes))
        if members and stop - start > _BLOCK_BYTES:
            yield members, end - start
            members, start = [], end
        members.append(entry)
        end = stop
    if members:
        yield members, end - start


def _large_content_of(descriptor: int, entry: IndexEntry, head: bytes, tail: bytes) -> bytes | None:
    """The same, without a second copy of the content in memory."""
    start = entry.offset + len(head)
    end = start + entry.size_bytes
    if end > os.fstat(descriptor).st_size:
        return None  # else a damaged record could ask for any amount of memory
    content = os.pread(descriptor, entry.size_bytes, start)
    if (
        os.pread(descriptor, len(head), entry.offset) != head
        or os.pread(descriptor, len(tail), end) != tail
        or hashlib.sha256(content).digest() != entry.sha256
    ):
        return None
    return content
