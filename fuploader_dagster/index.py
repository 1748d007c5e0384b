"""The index of a slot directory: one record per message, appended in the same commit as the bytes.

What must always hold: a record that reads back is the record that was written (each has its own
CRC-32), and records lie in the order of the messages. The index names every message of a directory
with offset, size and SHA-256; a seal commits to the index by its digest, and so to every byte.

Format (little-endian; docs/formats.md has it byte by byte):

    header, 16 bytes:  magic b"FUPINDEX", version u32 = 1, CRC-32 of the first 12 bytes
    record, 56 bytes:  CRC-32 of the rest of the record u32, name length u16, header length u16,
                       offset u64, payload size u64, SHA-256 of the payload 32 bytes
            followed by the name in UTF-8

`offset` is where the message's tar header starts in the segment and `header length` how long it
is; in the `files` format both are 0.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fuploader_dagster.errors import DamagedSlot

INDEX_NAME = "index"
VERSION = 1
_MAGIC = b"FUPINDEX"
_HEADER = struct.Struct("<8sII")
_CRC = struct.Struct("<I")
_FIXED = struct.Struct("<HHQQ32s")
_RECORD_BYTES = _CRC.size + _FIXED.size
_IDENTITY = struct.Struct("<IH18x32s")
"""Of a record: its CRC-32, the name's length, the digest."""

_crc32 = zlib.crc32
_pack_crc = _CRC.pack
_pack_fixed = _FIXED.pack
_unpack_identity = _IDENTITY.unpack_from


class IndexEntry(NamedTuple):
    """One message of a directory."""

    name: str
    offset: int
    header_bytes: int
    size_bytes: int
    sha256: bytes


@dataclass(frozen=True)
class IndexContent:
    """The valid prefix of an index file."""

    entries: Sequence[IndexEntry]
    end: int
    """Where the valid prefix ends, in bytes; the file's size if nothing is torn, 0 if not even
    the header is whole."""


def header() -> bytes:
    """The first 16 bytes of an index file."""
    start = _MAGIC + _CRC.pack(VERSION)
    return start + _CRC.pack(zlib.crc32(start))


HEADER_BYTES = _HEADER.size


def record(name: bytes, offset: int, header_bytes: int, size_bytes: int, sha256: bytes) -> bytes:
    """One record. On the hot path: about a microsecond."""
    rest = _pack_fixed(len(name), header_bytes, offset, size_bytes, sha256) + name
    return _pack_crc(_crc32(rest)) + rest


class Identities(NamedTuple):
    """What tells the messages of an index, or of a later part of one, from each other."""

    names: Sequence[bytes]
    digests: Sequence[bytes]
    end: int
    """Where the last whole record ends."""


def identities(content: bytes, *, at_start: bool) -> Identities:
    """Names and digests of the whole records: in half the time of `read_index`.

    `at_start`: whether the content begins with the header, or with a record. Raises what
    `read_index` raises.
    """
    names: list[bytes] = []
    digests: list[bytes] = []
    size, position = len(content), 0
    if at_start:
        if size < HEADER_BYTES:
            return Identities(names, digests, 0)
        _check_header(content)
        position = HEADER_BYTES
    view = memoryview(content)
    while position + _RECORD_BYTES <= size:
        crc, name_bytes, sha256 = _unpack_identity(content, position)
        name_at = position + _RECORD_BYTES
        end = name_at + name_bytes
        if end > size or _crc32(view[position + _CRC.size : end]) != crc:
            break
        names.append(content[name_at:end])
        digests.append(sha256)
        position = end
    return Identities(names, digests, position)


def names_of(content: bytes, sha256: bytes) -> list[str]:
    """Names of all records with this digest, without reading the others."""
    names: list[str] = []
    position = content.find(sha256)
    while position != -1:
        start = position - (_RECORD_BYTES - len(sha256))
        if start >= HEADER_BYTES:
            crc, name_bytes, _ = _unpack_identity(content, start)
            end = start + _RECORD_BYTES + name_bytes
            if end <= len(content) and _crc32(content[start + _CRC.size : end]) == crc:
                name = content[end - name_bytes : end]
                names.append(name.decode("utf-8", "surrogateescape"))
        position = content.find(sha256, position + 1)
    return names


def read_index(content: bytes) -> IndexContent:
    """Read records until the first that is torn.

    Raises `DamagedSlot` if the header is whole and wrong: then it is not a torn tail but a file
    of somebody else, or of a later version.
    """
    if len(content) < HEADER_BYTES:
        return IndexContent((), 0)
    _check_header(content)
    entries: list[IndexEntry] = []
    position, size = HEADER_BYTES, len(content)
    while position + _RECORD_BYTES <= size:
        (crc,) = _CRC.unpack_from(content, position)
        name_bytes, head, offset, payload, sha256 = _FIXED.unpack_from(
            content, position + _CRC.size
        )
        end = position + _RECORD_BYTES + name_bytes
        if end > size or zlib.crc32(memoryview(content)[position + _CRC.size : end]) != crc:
            break
        name = content[end - name_bytes : end].decode("utf-8", "surrogateescape")
        entries.append(IndexEntry(name, offset, head, payload, sha256))
        position = end
    return IndexContent(entries, position)


def _check_header(content: bytes) -> None:
    magic, version, crc = _HEADER.unpack_from(content)
    if magic != _MAGIC or crc != zlib.crc32(content[: HEADER_BYTES - _CRC.size]):
        raise DamagedSlot("the index does not start with a valid header")
    if version != VERSION:
        raise DamagedSlot(
            f"the index has version {version}, this software reads {VERSION}",
            hint="use the version that wrote it to ship the slot",
        )
