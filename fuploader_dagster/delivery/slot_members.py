"""The members of a slot, from its segment or from plain files.

What must always hold: it never follows a link and never reads outside its slot.

- `SegmentMembers`: the members are in one file, already as tar; reading is one sequential copy.
- `FolderMembers`: one file per member (`slot_format: files`); the headers are made here.
- `RenamedMembers`: those of another source, some of them under other names.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

from fuploader_dagster.archives.members import MemberSource, MemberToPack, PlainMember
from fuploader_dagster.disk.own_files import closed_after
from fuploader_dagster.disk.tar_headers import member_bytes, member_header, padding
from fuploader_dagster.errors import DamagedData, DamagedSlot
from fuploader_dagster.slots.index import IndexEntry


class SegmentMembers(MemberSource):
    """Members in a segment file. `offsets` are those of their headers.

    Without offsets the members follow each other from the file's start. `xxh128` is the digest that
    was recorded for the whole file, if there is one. `damage` is raised if they are not there.
    """

    def __init__(
        self,
        path: Path,
        members: Sequence[MemberToPack],
        offsets: Sequence[int] | None = None,
        xxh128: str | None = None,
        *,
        damage: type[DamagedData] = DamagedSlot,
    ) -> None:
        self.path = path
        self.xxh128 = xxh128
        self.damage = damage
        self.members = members
        self.lengths = [member_bytes(m.name, m.size_bytes, m.headers) for m in members]
        self._offsets = list(accumulate(self.lengths, initial=0)) if offsets is None else offsets
        self._ends = [o + n for o, n in zip(self._offsets, self.lengths, strict=False)]
        self._descriptor: int | None = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)

    def read(self, first: int, last: int) -> bytes:
        runs = []
        start = first
        for i in range(first + 1, last):
            if self._offsets[i] != self._ends[i - 1]:
                runs.append(self._read(start, self._offsets[start], self._ends[i - 1]))
                start = i
        runs.append(self._read(start, self._offsets[start], self._ends[last - 1]))
        return b"".join(runs) if len(runs) > 1 else runs[0]

    def read_piece(self, index: int, start: int, stop: int) -> bytes:
        offset = self._offsets[index]
        return self._read(index, offset + start, offset + stop)

    def _read(self, index: int, start: int, stop: int) -> bytes:
        assert self._descriptor is not None, "closed"  # noqa: S101
        data = os.pread(self._descriptor, stop - start, start)
        if len(data) != stop - start:
            raise self.damage(
                f"{self.path} ends at {start + len(data)}, but its index says that there are "
                f"members up to {stop} (from {self.place(index)} on)",
                hint="something cut it off, or the disk is failing (dmesg, SMART)",
            )
        return data

    def place(self, index: int) -> str:
        return f"{self.members[index].name!r} at offset {self._offsets[index]} of {self.path}"

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class FolderMembers(MemberSource):
    """Members as files in a directory, called by the members' names unless there are `file_names`.

    `damage` is raised if they are not what the members say.
    """

    def __init__(
        self,
        path: Path,
        members: Sequence[MemberToPack],
        file_names: Sequence[str] | None = None,
        *,
        damage: type[DamagedData] = DamagedSlot,
    ) -> None:
        self.path = path
        self.damage = damage
        self.members = members
        self._file_names = file_names
        self.lengths = [member_bytes(m.name, m.size_bytes, m.headers) for m in members]
        self._descriptor: int | None = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    def read(self, first: int, last: int) -> bytes:
        parts: list[bytes] = []
        for i in range(first, last):
            member = self.members[i]
            size = member.size_bytes
            with closed_after(self._open(i)) as descriptor:
                payload = os.read(descriptor, size + 1)
            if len(payload) != size:
                raise self._changed(i)
            parts += (member_header(member.name, size, member.headers), payload, padding(size))
        return b"".join(parts)

    def read_piece(self, index: int, start: int, stop: int) -> bytes:
        member = self.members[index]
        size = member.size_bytes
        header = member_header(member.name, size, member.headers)
        begin, end = max(start - len(header), 0), min(stop - len(header), size)
        with closed_after(self._open(index)) as descriptor:
            if os.fstat(descriptor).st_size != size:
                raise self._changed(index)
            payload = os.pread(descriptor, end - begin, begin) if end > begin else b""
        if len(payload) != max(end - begin, 0):
            raise self._changed(index)
        part = header[start:stop] + payload
        return part + bytes(stop - start - len(part))

    def _open(self, index: int) -> int:
        assert self._descriptor is not None, "closed"  # noqa: S101
        try:
            # NONBLOCK: opening a named pipe that took the file's place must not hang
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(self._file_name(index), flags, dir_fd=self._descriptor)
        except OSError as e:
            raise self.damage(
                f"{self.place(index)} cannot be opened: {e.strerror}",
                hint="only this pipeline may change a sealed slot",
            ) from e
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise self._changed(index)
        return descriptor

    def _changed(self, index: int) -> DamagedData:
        size = self.members[index].size_bytes
        return self.damage(
            f"{self.place(index)} is no longer the file of {size} bytes that was sealed",
            hint="only this pipeline may change a sealed slot",
        )

    def place(self, index: int) -> str:
        return f"{self.members[index].name!r} in {self.path / self._file_name(index)}"

    def _file_name(self, index: int) -> str:
        return self.members[index].name if self._file_names is None else self._file_names[index]

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class RenamedMembers(MemberSource):
    """The members of another source; `names` gives those that get another name, by their index."""

    def __init__(self, source: MemberSource, names: Mapping[int, str]) -> None:
        self._source = source
        self._names = names
        self.damage = source.damage
        self.members = [
            PlainMember(names[i], m.size_bytes, m.sha256, m.headers) if i in names else m
            for i, m in enumerate(source.members)
        ]
        self.lengths = [
            member_bytes(m.name, m.size_bytes, m.headers) if i in names else source.lengths[i]
            for i, m in enumerate(self.members)
        ]

    def read(self, first: int, last: int) -> bytes:
        return b"".join(self.read_piece(i, 0, self.lengths[i]) for i in range(first, last))

    def read_piece(self, index: int, start: int, stop: int) -> bytes:
        if index not in self._names:
            return self._source.read_piece(index, start, stop)
        member = self.members[index]
        header = member_header(member.name, member.size_bytes, member.headers)
        part = header[start:stop]
        shift = self._source.lengths[index] - self.lengths[index]
        start = max(start, len(header))
        return part + (
            self._source.read_piece(index, start + shift, stop + shift) if stop > start else b""
        )

    def place(self, index: int) -> str:
        return self._source.place(index)

    def close(self) -> None:
        self._source.close()


def append_member(
    segment: BinaryIO,
    name: str,
    size_bytes: int,
    pieces: Iterable[bytes | memoryview],
    headers: str,
) -> IndexEntry:
    """Write one more member into a segment, for `SegmentMembers`; returns its index entry."""
    head = member_header(name, size_bytes, headers)
    offset = segment.tell()
    segment.write(head)
    digest, written = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        written += segment.write(piece)
    if written != size_bytes:
        raise DamagedData(f"{name!r} has {written:,} bytes, not the {size_bytes:,} that it should")
    segment.write(padding(size_bytes))
    return IndexEntry(name, offset, len(head), size_bytes, digest.digest(), headers)
