"""The index of a slot directory: one record per message, appended in the same commit as the bytes.

What must always hold:

- A record that reads back is the record that was written, and records are in the order of the
  messages. The index names every message of a directory with offset, size and SHA-256; a seal
  commits to the index by its digest, and so to every byte.
- Records count as a whole commit or not at all. What a crash leaves of the last commit, which was
  never acknowledged, is told apart from damage to what was acknowledged. The former is cut off; the
  latter is an error and nothing is cut.

Format (little-endian; docs/formats.md has it byte by byte):

    header, 16 bytes:  magic b"FUPINDEX", version u32 = 2, CRC-32 of the first 12 bytes
    commit, 24 bytes:  magic b"FUPC", CRC-32 of the rest of these 24 bytes u32, number of the commit
                       u32 (from 0), its records u32, their length u32, their CRC-32 u32
    record, 56 bytes:  CRC-32 of the rest of the record u32, name length u16, header length u16,
                       offset u64, payload size u64, SHA-256 of the payload 32 bytes
            followed by the name in UTF-8

`offset` is where the message's tar header starts in the segment and `header length` how long it
is; in the `files` format both are 0.

Torn or damaged? Commits are written one after the other, each synced before the next begins. So
whatever is in front of a whole commit was synced, and is damaged if it does not read back. A crash
leaves a beginning of the last commit, or zeros where blocks were not written: a complete commit
never ends with a zero, nor holds 64 in a row. Everything else is damage.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fuploader_dagster.errors import DamagedSlot, OtherFormat

INDEX_NAME = "index"
VERSION = 2
_MAGIC = b"FUPINDEX"
_HEADER = struct.Struct("<8sII")
_COMMIT_MAGIC = b"FUPC"
_COMMIT = struct.Struct("<4sIIIII")
_COMMIT_FIELDS = struct.Struct("<IIII")
_CRC = struct.Struct("<I")
_FIXED = struct.Struct("<HHQQ32s")
_RECORD_BYTES = _CRC.size + _FIXED.size
_IDENTITY = struct.Struct("<IH18x32s")
"""Of a record: CRC-32, name length, digest."""
_LONGEST_NAME = 255
_UNWRITTEN = bytes(64)

_crc32 = zlib.crc32
_pack_crc = _CRC.pack
_pack_fixed = _FIXED.pack
_unpack_identity = _IDENTITY.unpack_from
_unpack_fixed = struct.Struct("<4x" + _FIXED.format.removeprefix("<")).unpack_from
"""Of a record: all but its CRC-32."""


class IndexEntry(NamedTuple):
    name: str
    offset: int
    header_bytes: int
    size_bytes: int
    sha256: bytes


@dataclass(frozen=True)
class IndexContent:
    """The whole commits of an index file."""

    entries: Sequence[IndexEntry]
    end: int
    """Where the last whole commit ends, in bytes; the file's size if nothing is torn, 0 if not
    even the header is whole."""
    commits: int = 0


class Identities(NamedTuple):
    """Names and digests of the messages in an index, or in a later section of one."""

    names: Sequence[bytes]
    digests: Sequence[bytes]
    end: int
    """Where the last whole commit ends."""


class _Commit(NamedTuple):
    number: int
    records: int
    start: int
    end: int


def header() -> bytes:
    """The first 16 bytes of an index file."""
    start = _MAGIC + _CRC.pack(VERSION)
    return start + _CRC.pack(zlib.crc32(start))


HEADER_BYTES = _HEADER.size
COMMIT_BYTES = _COMMIT.size


def record(name: bytes, offset: int, header_bytes: int, size_bytes: int, sha256: bytes) -> bytes:
    """One record. On the hot path: about a microsecond."""
    rest = _pack_fixed(len(name), header_bytes, offset, size_bytes, sha256) + name
    return _pack_crc(_crc32(rest)) + rest


def commit(records: Sequence[bytes], number: int) -> bytes:
    """The header and the records of one commit, to be written at once."""
    content = b"".join(records)
    fields = _COMMIT_FIELDS.pack(number, len(records), len(content), zlib.crc32(content))
    return _COMMIT_MAGIC + _pack_crc(zlib.crc32(fields)) + fields + content


def whole_index(records: Sequence[bytes]) -> bytes:
    """A complete index of one commit, or of none if there are no records."""
    return header() + (commit(records, 0) if records else b"")


def read_index(content: bytes) -> IndexContent:
    """Read the whole commits; the rest that a crash left of one more is skipped.

    Raises `DamagedSlot` if something that was committed does not read back, and if the file is of
    another kind or version.
    """
    if len(content) < HEADER_BYTES:
        return IndexContent((), 0)
    _check_header(content)
    entries: list[IndexEntry] = []
    position, number = HEADER_BYTES, 0
    while (found := _commit_at(content, position)) is not None and found.number == number:
        before = len(entries)
        position = _add_entries(content, found.start, found.end, entries)
        if position != found.end or len(entries) - before != found.records:
            raise DamagedSlot(
                f"commit {number} of the index does not hold the records that it declares"
            )
        number += 1
    if not _is_torn(content[position:]):
        raise DamagedSlot(
            f"the index is damaged after {len(entries)} messages, at byte {position} of "
            f"{len(content)}: what was committed there does not read back"
        )
    return IndexContent(entries, position, number)


def identities(content: bytes, *, at_start: bool) -> Identities:
    """Names and digests of the whole commits, in half the time of `read_index`.

    `at_start`: whether the content begins with the header, or with a commit. Reading ends at the
    first damage, without an error: whoever opens the directory reports it. Raises `DamagedSlot`
    for a file of another kind or version.
    """
    names: list[bytes] = []
    digests: list[bytes] = []
    position = 0
    if at_start:
        if len(content) < HEADER_BYTES:
            return Identities(names, digests, 0)
        _check_header(content)
        position = HEADER_BYTES
    while (found := _commit_at(content, position)) is not None:
        position = found.start
        while position + _RECORD_BYTES <= found.end:
            _, name_bytes, sha256 = _unpack_identity(content, position)
            name_at = position + _RECORD_BYTES
            position = name_at + name_bytes
            names.append(content[name_at:position])
            digests.append(sha256)
    return Identities(names, digests, position)


def names_of(content: bytes, sha256: bytes) -> list[str]:
    """Names of all records with this digest, without reading the others."""
    entries: list[IndexEntry] = []
    position = content.find(sha256)
    while position != -1:
        start = position - (_RECORD_BYTES - len(sha256))
        if start >= HEADER_BYTES and _is_record(content, start):
            _add_entries(content, start, start + _RECORD_BYTES, entries)
        position = content.find(sha256, position + 1)
    return [entry.name for entry in entries]


def salvage_records(content: bytes) -> list[IndexEntry]:
    """Every record that still reads back, wherever it is; none if the version is another one.

    Whether its message reads back too, only the data can tell. Looks at each byte of what is
    damaged: about a second per megabyte.
    """
    if len(content) >= HEADER_BYTES:
        start = content[: HEADER_BYTES - _CRC.size]
        (crc,) = _CRC.unpack_from(content, len(start))
        if start[: len(_MAGIC)] == _MAGIC and zlib.crc32(start) == crc and start != header()[:12]:
            return []
    entries: list[IndexEntry] = []
    position = 0
    while position + _RECORD_BYTES <= len(content):
        if _is_record(content, position):
            position = _add_entries(content, position, position + _RECORD_BYTES, entries)
        else:
            position += 1
    return entries


def _check_header(content: bytes) -> None:
    magic, version, crc = _HEADER.unpack_from(content)
    if magic != _MAGIC or crc != zlib.crc32(content[: HEADER_BYTES - _CRC.size]):
        raise DamagedSlot("the index does not start with a valid header")
    if version != VERSION:
        raise OtherFormat(
            f"the index has version {version}, this software reads {VERSION}",
            hint="use the version that wrote it to ship the slot",
        )


def _commit_at(content: bytes, position: int) -> _Commit | None:
    """The commit at this position, if all of it reads back."""
    start = position + COMMIT_BYTES
    if start > len(content):
        return None
    magic, own_crc, number, records, length, crc = _COMMIT.unpack_from(content, position)
    if magic != _COMMIT_MAGIC or _crc32(content[start - _COMMIT_FIELDS.size : start]) != own_crc:
        return None
    end = start + length
    if end > len(content) or _crc32(memoryview(content)[start:end]) != crc:
        return None
    return _Commit(number, records, start, end)


def _is_record(content: bytes, position: int) -> bool:
    crc, name_bytes, _ = _unpack_identity(content, position)
    end = position + _RECORD_BYTES + name_bytes
    if not 0 < name_bytes <= _LONGEST_NAME or end > len(content):
        return False
    return bool(_crc32(memoryview(content)[position + _CRC.size : end]) == crc)


def _add_entries(content: bytes, position: int, end: int, entries: list[IndexEntry]) -> int:
    """Add the records between two positions, which were checked; return where the last one ends.

    About a microsecond per record.
    """
    make, add = IndexEntry._make, entries.append
    while position + _RECORD_BYTES <= end:
        name_bytes, head, offset, payload, sha256 = _unpack_fixed(content, position)
        name_at = position + _RECORD_BYTES
        position = name_at + name_bytes
        name = content[name_at:position].decode("utf-8", "surrogateescape")
        add(make((name, offset, head, payload, sha256)))
    return position


def _is_torn(rest: bytes) -> bool:
    """Whether a crash during a commit can have left this after the last whole one."""
    position = rest.find(_COMMIT_MAGIC)
    while position != -1:
        if _commit_at(rest, position) is not None:
            return False  # so what is in front of it was synced
        position = rest.find(_COMMIT_MAGIC, position + 1)
    if len(rest) < COMMIT_BYTES or rest.endswith(b"\0") or _UNWRITTEN in rest:
        return True
    magic, own_crc, _, _, length, _ = _COMMIT.unpack_from(rest)
    whole = magic == _COMMIT_MAGIC and zlib.crc32(rest[8:COMMIT_BYTES]) == own_crc
    return bool(whole and len(rest) < COMMIT_BYTES + length)
