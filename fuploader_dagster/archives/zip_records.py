"""The records of a zip file, as we write them; and how its end is found.

What must always hold: the same member gives the same bytes on any machine: no times (1980-01-01,
the earliest), mode 0644, names in UTF-8. Sizes and places of 4 GiB and more, and more than 65,534
members, are written as zip64. Format: APPNOTE.TXT 6.3.10 of PKWARE.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from fuploader_dagster.archives.ranges import RangeSource
from fuploader_dagster.errors import DamagedArchive

STORED, DEFLATED = 0, 8
LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
LOCAL_MAGIC = b"PK\x03\x04"
END_MAGIC = b"PK\x05\x06"
_UTF8, _LATER = 0x800, 0x8
"""Flags: the name is UTF-8; sizes and checksum come after the data."""
_TIME, _DATE = 0, 0x21
_MADE_BY = 3 << 8 | 63  # Unix, so that the mode counts
_MODE = 0o100644 << 16
_NEEDS, _NEEDS64 = 20, 45
_MOST, _MOST_COUNT = 0xFFFFFFFF, 0xFFFF
_ZIP64 = 1
MARK = b"fuploader"
"""The comment of an archive of ours: its manifest may be damaged, it is still no foreign one."""
_SAFE = 2**31
"""A larger member has 8 bytes for its sizes, since its compressed size is not known beforehand."""


class ZipEntry(NamedTuple):
    """A member, as both of its records say."""

    name: bytes
    headers: bytes
    method: int
    crc32: int
    packed_bytes: int
    size_bytes: int
    later: bool
    """Whether sizes and checksum come after its data."""

    @property
    def flags(self) -> int:
        return _UTF8 | (_LATER if self.later else 0)


def local_header(entry: ZipEntry) -> bytes:
    """What comes before a member's data."""
    extra = b""
    sizes = (entry.crc32, entry.packed_bytes, entry.size_bytes)
    if entry.later:
        sizes = (0, 0, 0)
        if entry.size_bytes >= _SAFE:
            extra = struct.pack("<2H2Q", _ZIP64, 16, 0, 0)
            sizes = (0, _MOST, _MOST)
    needs = _NEEDS64 if extra else _NEEDS
    form = (entry.flags, entry.method, _TIME, _DATE)
    head = LOCAL.pack(LOCAL_MAGIC, needs, *form, *sizes, len(entry.name), len(extra))
    return head + entry.name + extra


def descriptor(entry: ZipEntry) -> bytes:
    """What comes after the data of a member whose sizes were not known before."""
    form = "<4sL2Q" if entry.size_bytes >= _SAFE else "<4s3L"
    return struct.pack(form, b"PK\x07\x08", entry.crc32, entry.packed_bytes, entry.size_bytes)


def central_record(entry: ZipEntry, offset: int) -> bytes:
    """A member's record in the directory at the end."""
    numbers = (entry.size_bytes, entry.packed_bytes, offset)
    large = [number for number in numbers if number >= _MOST]
    size, packed, place = (min(number, _MOST) for number in numbers)
    extra = struct.pack(f"<2H{len(large)}Q", _ZIP64, 8 * len(large), *large) if large else b""
    return (
        _CENTRAL.pack(
            b"PK\x01\x02",
            _MADE_BY,
            _NEEDS64 if large or entry.size_bytes >= _SAFE else _NEEDS,
            entry.flags,
            entry.method,
            _TIME,
            _DATE,
            entry.crc32,
            packed,
            size,
            len(entry.name),
            len(extra),
            len(entry.headers),
            0,
            0,
            _MODE,
            place,
        )
        + entry.name
        + extra
        + entry.headers
    )


def end_records(count: int, directory_bytes: int, offset: int) -> bytes:
    """The last bytes of the file."""
    made = b""
    if count >= _MOST_COUNT or directory_bytes >= _MOST or offset >= _MOST:
        made = _END64.pack(
            b"PK\x06\x06",
            _END64.size - 12,
            _MADE_BY,
            _NEEDS64,
            0,
            0,
            count,
            count,
            directory_bytes,
            offset,
        ) + _LOCATOR.pack(b"PK\x06\x07", 0, offset + directory_bytes, 1)
    few = min(count, _MOST_COUNT)
    sizes = (min(directory_bytes, _MOST), min(offset, _MOST))
    return made + _END.pack(END_MAGIC, 0, 0, few, few, *sizes, len(MARK)) + MARK


def directory_place(source: RangeSource) -> tuple[int, int] | None:
    """Where the directory of a zip of ours begins and ends; None if this is no such zip. Only the
    manifest before it proves that it is ours.

    Raises `DamagedArchive` if its end contradicts itself.
    """
    at = source.size_bytes - _END.size - len(MARK)
    if at < 0:
        return None
    last = source.read(at, _END.size + len(MARK))
    if not last.startswith(END_MAGIC):
        return None
    *_, few, size, offset, _ = _END.unpack(last[: _END.size])
    locator_at = at - _LOCATOR.size
    if locator_at >= 0 and (_MOST in (size, offset) or few == _MOST_COUNT):
        locator = source.read(locator_at, _LOCATOR.size)
        if len(locator) == _LOCATOR.size and locator.startswith(b"PK\x06\x07"):
            at = _LOCATOR.unpack(locator)[2]
            record = source.read(at, _END64.size) if at <= locator_at else b""
            if len(record) == _END64.size and record.startswith(b"PK\x06\x06"):
                *_, size, offset = _END64.unpack(record)
    if offset + size != at and not last.endswith(MARK):
        return None
    if offset + size != at:
        raise DamagedArchive(
            f"the end record of {source.address} places the directory at offset {offset} with "
            f"{size} bytes, but it would have to end at {at}"
        )
    return offset, at
