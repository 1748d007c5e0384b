"""The index of a slot directory: one record per message, appended in the same commit as the bytes.

What must always hold:

- A record that reads back is the record that was written, and records are in the order of the
  messages. The index names every message of a directory with offset, size and SHA-256; a seal
  commits to the index by its digest, and so to every byte.
- Records count as a whole commit or not at all. What a crash leaves of the last commit, which was
  never acknowledged, is told apart from damage to what was acknowledged. The former is cut off; the
  latter is an error and nothing is cut.

Format (little-endian; docs/formats.md has it byte by byte):

    header, 16 bytes:  magic b"FUPINDEX", version u32 = 2 or 3, CRC-32 of the first 12 bytes
    commit, 24 bytes:  magic b"FUPC", CRC-32 of the rest of these 24 bytes u32, number of the commit
                       u32 (from 0), its records u32, their length u32, their CRC-32 u32
    record, 56 bytes:  CRC-32 of the rest of the record u32, name length u16, header length u16,
                       offset u64, payload size u64, SHA-256 of the payload 32 bytes
            followed by the name in UTF-8
    of version 3:      between the two the length u16 of the message headers that are kept with the
                       file; they follow the name (`disk/header_text.py` has their form)

All records of a file are of its version. Version 3 is written where a pipeline keeps headers;
elsewhere the bytes are those of version 2.

`offset` is where the message's tar header starts in the segment and `header length` how long it
is; in the `files` format both are 0.

Torn or damaged? Commits are written one after the other, each synced before the next begins. So
whatever is in front of a whole commit was synced, and is damaged if it does not read back. A crash
leaves a beginning of the last commit, or zeros where blocks were not written: a complete commit
never ends with a zero, nor holds 64 in a row. Everything else is damage.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fuploader_dagster.errors import DamagedSlot, OtherFormat

INDEX_NAME = "index"
PLAIN = 2
"""The version without message headers."""
WITH_HEADERS = 3
_MAGIC = b"FUPINDEX"
_HEADER = struct.Struct("<8sII")
_COMMIT_MAGIC = b"FUPC"
_COMMIT = struct.Struct("<4sIIIII")
_COMMIT_FIELDS = struct.Struct("<IIII")
_CRC = struct.Struct("<I")
_FIXED = struct.Struct("<HHQQ32s")
_HEADERS_LENGTH = struct.Struct("<H")
_RECORD_BYTES = {
    PLAIN: _CRC.size + _FIXED.size,
    WITH_HEADERS: _CRC.size + _FIXED.size + _HEADERS_LENGTH.size,
}
"""Length of a record without name and headers."""
_DIGEST_AT = _RECORD_BYTES[PLAIN] - 32
"""In a record of either version."""
_IDENTITY = struct.Struct("<IH18x32s")
"""Of a record of either version: CRC-32, name length, digest."""
_LONGEST_NAME = 255
_UNWRITTEN = bytes(64)

_crc32 = zlib.crc32
_pack_crc = _CRC.pack
_pack_fixed = _FIXED.pack
_unpack_identity = _IDENTITY.unpack_from
_unpack_fixed = struct.Struct("<4x" + _FIXED.format.removeprefix("<")).unpack_from
"""Of a record: all but its CRC-32."""
_unpack_with_headers = struct.Struct("<4x" + _FIXED.format.removeprefix("<") + "H").unpack_from
"""The same, with the length of the headers."""
_unpack_headers_length = _HEADERS_LENGTH.unpack_from


class IndexEntry(NamedTuple):
    name: str
    offset: int
    header_bytes: int
    """Length of the tar header."""
    size_bytes: int
    sha256: bytes
    headers: str = ""
    """The message headers that are kept with the file, as text."""

    @property
    def identity(self) -> bytes:
        """See `identity`."""
        return identity(self.sha256, self.headers)


def identity(sha256: bytes, headers: str) -> bytes:
    """What two messages of one name have in common if they are the same one: the digest of their
    content and of the headers that are kept, 32 bytes."""
    if not headers:
        return sha256
    return hashlib.sha256(sha256 + headers.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True)
class IndexContent:
    """The whole commits of an index file."""

    entries: Sequence[IndexEntry]
    end: int
    """Where the last whole commit ends, in bytes; the file's size if nothing is torn, 0 if not
    even the header is whole."""
    commits: int = 0
    version: int | None = None
    """None if not even the header is whole."""


class Identities(NamedTuple):
    """Names and digests of the messages in an index, or in a later section of one."""

    names: Sequence[bytes]
    digests: Sequence[bytes]
    end: int
    """Where the last whole commit ends."""
    version: int | None
    """Of the whole file; None if not even the header is whole."""


class _Commit(NamedTuple):
    number: int
    records: int
    start: int
    end: int


def header(version: int = PLAIN) -> bytes:
    """The first 16 bytes of an index file."""
    start = _MAGIC + _CRC.pack(version)
    return start + _CRC.pack(zlib.crc32(start))


HEADER_BYTES = _HEADER.size
COMMIT_BYTES = _COMMIT.size


def record(  # noqa: PLR0917  called once per message
    name: bytes, offset: int, header_bytes: int, size_bytes: int, sha256: bytes, headers: str = ""
) -> bytes:
    """One record of version 2. On the hot path: about a microsecond."""
    if headers:
        raise ValueError(f"version {PLAIN} of the index has no room for message headers")
    rest = _pack_fixed(len(name), header_bytes, offset, size_bytes, sha256) + name
    return _pack_crc(_crc32(rest)) + rest


def record_with_headers(  # noqa: PLR0917  called once per message
    name: bytes, offset: int, header_bytes: int, size_bytes: int, sha256: bytes, headers: str = ""
) -> bytes:
    """One record of version 3."""
    fixed = _pack_fixed(len(name), header_bytes, offset, size_bytes, sha256)
    raw = headers.encode("utf-8")
    rest = b"".join((fixed, _HEADERS_LENGTH.pack(len(raw)), name, raw))
    return _pack_crc(_crc32(rest)) + rest


def commit(records: Sequence[bytes], number: int) -> bytes:
    """The header and the records of one commit, to be written at once."""
    content = b"".join(records)
    fields = _COMMIT_FIELDS.pack(number, len(records), len(content), zlib.crc32(content))
    return _COMMIT_MAGIC + _pack_crc(zlib.crc32(fields)) + fields + content


def whole_index(records: Sequence[bytes], version: int = PLAIN) -> bytes:
    """A complete index of one commit, or of none if there are no records."""
    return header(version) + (commit(records, 0) if records else b"")


def index_of(entries: Sequence[IndexEntry]) -> bytes:
    """A complete index of these messages: of version 3 if one of them has headers."""
    with_headers = any(entry.headers for entry in entries)
    make = record_with_headers if with_headers else record
    records = [make(entry.name.encode("utf-8"), *entry[1:]) for entry in entries]
    return whole_index(records, WITH_HEADERS if with_headers else PLAIN)


def read_index(content: bytes) -> IndexContent:
    """Read the whole commits; the rest that a crash left of one more is skipped.

    Raises `DamagedSlot` if something that was committed does not read back, and if the file is of
    another kind or version.
    """
    if len(content) < HEADER_BYTES:
        return IndexContent((), 0)
    version = _checked_version(content)
    entries: list[IndexEntry] = []
    end, commits = HEADER_BYTES, 0
    for committed, end in _commits(content, version):  # noqa: B007  the last one's
        entries += committed
        commits += 1
    return IndexContent(entries, end, commits, version)


def entries_by_commit(content: bytes) -> Iterator[Sequence[IndexEntry]]:
    """What `read_index` reads, commit by commit: the entries take four times the file's memory.

    Raises the same errors, at the place where they are.
    """
    if len(content) >= HEADER_BYTES:
        for committed, _ in _commits(content, _checked_version(content)):
            yield committed


def identities(content: bytes, version: int | None = None) -> Identities:
    """Names and digests of the whole commits, in half the time of `read_index`.

    The content begins with the header, or, if a version is given, with a commit of a file of that
    version. Reading ends at the first damage, without an error: whoever opens the directory reports
    it. Raises `DamagedSlot` for a file of another kind or version.
    """
    names: list[bytes] = []
    digests: list[bytes] = []
    position = 0
    if version is None:
        if len(content) < HEADER_BYTES:
            return Identities(names, digests, 0, None)
        version = _checked_version(content)
        position = HEADER_BYTES
    record_bytes = _RECORD_BYTES[version]
    while (found := _commit_at(content, position)) is not None:
        position = found.start
        while position + record_bytes <= found.end:
            _, name_bytes, sha256 = _unpack_identity(content, position)
            name_at = position + record_bytes
            name_end = name_at + name_bytes
            names.append(content[name_at:name_end])
            digests.append(sha256)
            position = name_end + _headers_bytes(content, name_at, version)
    return Identities(names, digests, position, version)


def names_of(content: bytes, sha256: bytes, headers: str | None = None) -> list[str]:
    """Names of all records with this digest, and with these headers if any are kept with them,
    without reading the others. `headers`: None for any."""
    entries: list[IndexEntry] = []
    versions = _possible_versions(content)
    position = content.find(sha256)
    while position != -1:
        start = position - _DIGEST_AT
        for version in versions:
            if start >= HEADER_BYTES and _is_record(content, start, version):
                found: list[IndexEntry] = []
                _add_entries(content, start, start + _RECORD_BYTES[version], found, version)
                if headers is None or version == PLAIN:
                    entries += found
                else:
                    entries += [entry for entry in found if entry.headers == headers]
        position = content.find(sha256, position + 1)
    return [entry.name for entry in entries]


def has_record_of(content: bytes, name: bytes) -> bool:
    """Whether there is a record of this name, in a hundredth of the time of `read_index`."""
    if not 0 < len(name) <= _LONGEST_NAME:
        return False
    length = struct.pack("<H", len(name))
    between = _RECORD_BYTES[PLAIN] - _CRC.size - len(length)
    found = re.compile(re.escape(length) + b"(?=.{%d})" % between, re.DOTALL)
    versions = _possible_versions(content)
    for match in found.finditer(content):
        start = match.start() - _CRC.size
        for version in versions:
            name_at = start + _RECORD_BYTES[version]
            if content.startswith(name, name_at) and _is_record(content, start, version):
                return True
    return False


def salvage_records(content: bytes) -> list[IndexEntry]:
    """Every record that still reads back, wherever it is; none if the version is another one.

    Whether its message reads back too, only the data can tell. Looks at each byte of what is
    damaged: about a second per megabyte.
    """
    versions = _possible_versions(content)
    entries: list[IndexEntry] = []
    position = 0
    while position + _RECORD_BYTES[PLAIN] <= len(content):
        for version in versions:
            if _is_record(content, position, version):
                end = position + _RECORD_BYTES[version]
                position = _add_entries(content, position, end, entries, version)
                break
        else:
            position += 1
    return entries


def _possible_versions(content: bytes) -> Sequence[int]:
    """Of a file that may be damaged: the one that its header says, or all if that is not whole."""
    try:
        version = _version(content)
    except DamagedSlot:
        return (PLAIN, WITH_HEADERS)
    return (version,) if version in _RECORD_BYTES else ()


def _checked_version(content: bytes) -> int:
    version = _version(content)
    if version not in _RECORD_BYTES:
        raise OtherFormat(
            f"the index has version {version}, this software reads {PLAIN} and {WITH_HEADERS}",
            hint="use the version that wrote it to ship the slot",
        )
    return version


def _version(content: bytes) -> int:
    """What the header says. Raises `DamagedSlot` if it is not whole."""
    if len(content) >= HEADER_BYTES:
        magic, version, crc = _HEADER.unpack_from(content)
        if magic == _MAGIC and crc == zlib.crc32(content[: HEADER_BYTES - _CRC.size]):
            return int(version)
    raise DamagedSlot("the index does not start with a valid header")


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


def _commits(content: bytes, version: int) -> Iterator[tuple[list[IndexEntry], int]]:
    """The messages of each whole commit, and where it ends."""
    position, number, messages = HEADER_BYTES, 0, 0
    while (found := _commit_at(content, position)) is not None and found.number == number:
        entries: list[IndexEntry] = []
        position = _add_entries(content, found.start, found.end, entries, version)
        if position != found.end or len(entries) != found.records:
            raise DamagedSlot(
                f"commit {number} of the index does not hold the records that it declares"
            )
        yield entries, position
        number, messages = number + 1, messages + len(entries)
    if not _is_torn(content[position:]):
        raise DamagedSlot(
            f"the index is damaged after {messages} messages, at byte {position} of "
            f"{len(content)}: what was committed there does not read back"
        )


def _headers_bytes(content: bytes, name_at: int, version: int) -> int:
    """Length of the headers of a record whose name begins at `name_at`."""
    if version == PLAIN:
        return 0
    return int(_unpack_headers_length(content, name_at - _HEADERS_LENGTH.size)[0])


def _is_record(content: bytes, position: int, version: int) -> bool:
    name_at = position + _RECORD_BYTES[version]
    if name_at > len(content):
        return False
    crc, name_bytes, _ = _unpack_identity(content, position)
    end = name_at + name_bytes + _headers_bytes(content, name_at, version)
    if not 0 < name_bytes <= _LONGEST_NAME or end > len(content):
        return False
    return bool(_crc32(memoryview(content)[position + _CRC.size : end]) == crc)


def _add_entries(
    content: bytes, position: int, end: int, entries: list[IndexEntry], version: int
) -> int:
    """Add the records between two positions, which were checked; return where the last one ends.

    About a microsecond per record.
    """
    make, add = IndexEntry._make, entries.append
    if version == WITH_HEADERS:
        return _add_entries_with_headers(content, position, end, entries)
    record_bytes = _RECORD_BYTES[PLAIN]
    while position + record_bytes <= end:
        name_bytes, head, offset, payload, sha256 = _unpack_fixed(content, position)
        name_at = position + record_bytes
        position = name_at + name_bytes
        name = content[name_at:position].decode("utf-8", "surrogateescape")
        add(make((name, offset, head, payload, sha256, "")))
    return position


def _add_entries_with_headers(
    content: bytes, position: int, end: int, entries: list[IndexEntry]
) -> int:
    record_bytes = _RECORD_BYTES[WITH_HEADERS]
    while position + record_bytes <= end:
        name_bytes, head, offset, payload, sha256, headers_bytes = _unpack_with_headers(
            content, position
        )
        name_at = position + record_bytes
        headers_at = name_at + name_bytes
        position = headers_at + headers_bytes
        name = content[name_at:headers_at].decode("utf-8", "surrogateescape")
        headers = content[headers_at:position].decode("utf-8", "surrogateescape")
        entries.append(IndexEntry(name, offset, head, payload, sha256, headers))
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
