"""The manifest: what is in an archive, where, and how each byte of it is checked.

What must always hold: the manifest and the seek table after it vouch for every byte of the archive.
The manifest has the digests of frames and pages, a page those of its members, the manifest its own,
and the seek table follows from the manifest. So any change is found, with name and offset.

An archive is: frames of members, pages, manifest, end frame, seek table (docs/formats.md has the
bytes). Pages, manifest and seek table are skippable frames, which any zstd skips. The end frame
holds the tar stream's end and comes after the manifest, so that wherever an archive is cut off,
either tar's end is missing, or the seek table that a manifest promises.

The members are listed in pages of about 4,096, each in the page that a checksum of its name
selects. So one of millions is found by reading one page of a few hundred kilobytes. A page keeps
its members as columns, which encode ten times as fast and compress better than records. The column
of message headers is there only if a member of the page has some.

Version 2 is that of `.tar.zst` in which a member has message headers, version 1 that of all others.
Its manifest's digest covers the version too, so that a changed one is noticed. Readers before
version 2 know no such tar headers, and would call each member damaged; of version 2 they say that a
newer reader is needed, and unpack it anyway. Version 3 is that of other formats than tar (`forms`):
there a member's place and length are counted in bytes, and metadata say which format it is.

Digests prove that nothing changed by chance; someone who forges an archive forges them too. So a
manifest or page is believed only as far as it can be true of the bytes that are there. Whatever
decodes one (`decode` here, `manifest_pages` for pages) checks it; `listed_members` checks the
members of all pages together.

Digests are the first 16 bytes of SHA-256: 128 bits find any damage, and a full digest per member
would make archives of small messages 4 % larger. The object store keeps the full digest of the
whole archive with the object.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from hashlib import sha256
from itertools import accumulate
from typing import Any, TypeVar
from zlib import crc32

import msgspec
import zstandard

from fuploader_dagster.archives.entries import FrameEntry
from fuploader_dagster.disk.tar_headers import BLOCK
from fuploader_dagster.errors import UNREADABLE_JSON, DamagedArchive

DIGEST_BYTES = 16
PLAIN = 1
"""The version without message headers."""
WITH_HEADERS = 2
OTHER_FORM = 3
"""The version of archives that are no tar."""
FORM_KEY = "format"
"""In `metadata` of version 3: which format it is."""
RESULTS_KEY = "results"
"""In `metadata`: how many of the members, the last ones, are results and no messages. It is there
only where the messages were processed."""
FAILURES_KEY = "failures"
"""In `metadata`: how many parts of items have no results, while others of the same items have. It
is there only if there are any; `failures` lists those that fit into `MOST_FAILURES_BYTES`."""
MOST_FAILURES_BYTES = 2**24

FRAME_HEADER = struct.Struct("<II")  # magic, length of what follows
PAGES_MAGIC = 0x184D2A5C
MANIFEST_MAGIC = 0x184D2A5D
_MARK = {version: b"FUPLMAN" + bytes([version]) for version in (PLAIN, WITH_HEADERS, OTHER_FORM)}
_MARK_BYTES = len(_MARK[PLAIN])
_PREFIX_BYTES = FRAME_HEADER.size + _MARK_BYTES + 32
_MOST_UNPACKED_BYTES = {"Manifest": 2**26, "Page": 2**25, "PageNames": 2**25}
"""Enough for a manifest of three million frames, and twice a page of 4,096 of the longest paths.
Python's objects take up to eight times as much."""
_MOST_PAGE_BYTES = 2**26
_NUMBER = re.compile("[0-9]{1,15}")
_MOST_EXPANSION = 2**16
"""zstd expands four bytes to at most 128 KiB."""

_Record = TypeVar("_Record", bound=msgspec.Struct)


def digest(data: bytes | memoryview) -> bytes:
    """The first 16 bytes of SHA-256."""
    return sha256(data).digest()[:DIGEST_BYTES]


class FailedPart(msgspec.Struct, frozen=True):
    """A part of an item that has no result, while others have."""

    item: str
    """The name of the item."""
    name: str
    reason: str
    detail: dict[str, Any] = {}


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """Leads to everything else in the archive."""

    metadata: dict[str, str]
    member_count: int
    payload_bytes: int
    page_sizes: list[int]
    page_digests: bytes
    frame_sizes: list[int]
    frame_tar_sizes: list[int]
    frame_digests: bytes
    end_frame: bytes
    """The bytes of the end frame; of formats that end otherwise, the digest of what follows."""
    failures: list[FailedPart] = []
    """Parts of items that have no results, the first ones (`FAILURES_KEY`). Left out if there is
    none, so that other archives are what they were before there was this field."""

    @property
    def form(self) -> str:
        """Which format it is; empty for `.tar.zst`."""
        return self.metadata.get(FORM_KEY, "")

    @property
    def results(self) -> int:
        """Number of members that are results: the last ones."""
        return int(self.metadata.get(RESULTS_KEY, "0"))

    @property
    def failure_count(self) -> int:
        """Number of parts of items that have no results; `failures` may list fewer."""
        return int(self.metadata.get(FAILURES_KEY, "0"))

    def frames(self) -> list[FrameEntry]:
        digests = self.frame_digests
        return [
            FrameEntry(offset, size, tar_offset, tar_bytes, digests[at : at + DIGEST_BYTES])
            for offset, size, tar_offset, tar_bytes, at in zip(
                accumulate(self.frame_sizes, initial=0),
                self.frame_sizes,
                accumulate(self.frame_tar_sizes, initial=0),
                self.frame_tar_sizes,
                range(0, len(digests), DIGEST_BYTES),
                strict=False,  # the running sums have one more item: the end
            )
        ]

    @property
    def pages_offset(self) -> int:
        """Where the frame of the pages begins in the archive file."""
        return sum(self.frame_sizes)

    @property
    def offset(self) -> int:
        """Where the manifest's own frame begins in the archive file."""
        return self.pages_offset + FRAME_HEADER.size + sum(self.page_sizes)

    def page_of(self, name: str) -> int:
        """The page that lists the member of this name, if it exists."""
        return page_of(name, len(self.page_sizes))


def page_of(name: str, pages: int) -> int:
    return crc32(name.encode("utf-8", "surrogatepass")) * pages >> 32


def listed(failures: Iterable[FailedPart]) -> list[FailedPart]:
    """The first ones, as many as fit into a manifest."""
    fitting: list[FailedPart] = []
    left = MOST_FAILURES_BYTES
    for failure in failures:
        left -= len(msgspec.msgpack.encode(failure))
        if left < 0:
            break
        fitting.append(failure)
    return fitting


# -- encoding ----------------------------------------------------------------------------------


def encode(manifest: Manifest, version: int = PLAIN) -> bytes:
    """The manifest's frame."""
    packed = packed_record(manifest)
    body = _MARK[version] + _own_digest(_MARK[version], packed) + packed
    return FRAME_HEADER.pack(MANIFEST_MAGIC, len(body)) + body


def _own_digest(mark: bytes, packed: bytes) -> bytes:
    return sha256(packed if mark == _MARK[PLAIN] else mark + packed).digest()


def packed_record(record: msgspec.Struct) -> bytes:
    packed = zstandard.ZstdCompressor(level=3).compress(msgspec.msgpack.encode(record))
    if unpacked_record(packed, type(record), "memory") != record:
        raise DamagedArchive(
            "the manifest of a new archive does not decode to what was encoded",
            hint="nothing was written; check this machine's memory",
        )
    return packed


# -- decoding ----------------------------------------------------------------------------------


def is_manifest(frame: bytes) -> bool:
    """Whether a frame, or its beginning, claims to be a manifest of ours, of any version."""
    at = FRAME_HEADER.size
    return (
        frame[:4] == MANIFEST_MAGIC.to_bytes(4, "little")
        and frame[at : at + _MARK_BYTES - 1] == _MARK[PLAIN][:-1]
    )


def decode(frame: bytes, *, where: str) -> Manifest:
    """The manifest in a frame. Raises `DamagedArchive` unless every byte is as it was written.

    `where` names the archive and offset for the error.
    """
    at = FRAME_HEADER.size
    if (
        not is_manifest(frame)
        or len(frame) < _PREFIX_BYTES
        or FRAME_HEADER.unpack_from(frame)[1] != len(frame) - at
    ):
        raise DamagedArchive(f"there is no manifest at {where}")
    mark = frame[at : at + _MARK_BYTES]
    if mark not in _MARK.values():
        raise DamagedArchive(
            f"the manifest at {where} has format version {frame[at + _MARK_BYTES - 1]}, this "
            f"program reads {PLAIN} to {OTHER_FORM}",
            hint="a newer fuploader_dagster may read it; the usual programs for its format can in "
            "any case",
        )
    packed = frame[_PREFIX_BYTES:]
    if _own_digest(mark, packed) != frame[at + _MARK_BYTES : _PREFIX_BYTES]:
        raise DamagedArchive(f"the manifest at {where} does not match its own digest")
    manifest = unpacked_record(packed, Manifest, where)
    sizes = (manifest.frame_sizes, manifest.frame_tar_sizes, manifest.page_sizes)
    tar_bytes = sum(manifest.frame_tar_sizes)
    if not (
        len(manifest.frame_sizes) == len(manifest.frame_tar_sizes)
        and len(manifest.frame_digests) == len(manifest.frame_sizes) * DIGEST_BYTES
        and len(manifest.page_digests) == len(manifest.page_sizes) * DIGEST_BYTES
        and all(0 < size < 2**32 for column in sizes for size in column)
        and all(size <= _MOST_PAGE_BYTES for size in manifest.page_sizes)
    ):
        raise contradiction(where, "columns of different lengths, or frames of impossible size")
    if any(
        unpacked > packed * _MOST_EXPANSION
        for packed, unpacked in zip(manifest.frame_sizes, manifest.frame_tar_sizes, strict=True)
    ):
        raise contradiction(where, "a frame that unpacks to more than zstd can store in it")
    is_tar = mark != _MARK[OTHER_FORM]
    if is_tar == bool(manifest.form):
        raise contradiction(where, f"format {manifest.form[:20]!r} does not fit its version")
    if not (
        0 <= manifest.member_count * (BLOCK if is_tar else 1) <= tar_bytes
        and manifest.payload_bytes >= 0
        and (manifest.payload_bytes <= tar_bytes or not is_tar)
        and len(manifest.page_sizes) <= manifest.member_count
    ):
        raise contradiction(where, "more members than its frames have room for")
    results = manifest.metadata.get(RESULTS_KEY, "0")
    if not (_NUMBER.fullmatch(results) and int(results) <= manifest.member_count):
        raise contradiction(where, f"{results[:20]!r} results of {manifest.member_count} members")
    failures = manifest.metadata.get(FAILURES_KEY, "0")
    if not (_NUMBER.fullmatch(failures) and int(failures) >= len(manifest.failures)):
        raise contradiction(where, f"{failures[:20]!r} failures, of which it lists more")
    return manifest


def unpacked_record(packed: bytes | memoryview, kind: type[_Record], where: str) -> _Record:
    try:
        # Checked first: zstd would allocate whatever the frame states.
        if not 0 <= zstandard.frame_content_size(packed) <= _MOST_UNPACKED_BYTES[kind.__name__]:
            raise contradiction(where, "a page or manifest of impossible size")
        return msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(packed), type=kind)
    except (zstandard.ZstdError, MemoryError, *UNREADABLE_JSON) as e:
        what = str(e) or "it unpacks to more than this machine's memory"
        raise DamagedArchive(f"the manifest at {where} cannot be decoded: {what}") from e


def contradiction(where: str, what: str) -> DamagedArchive:
    return DamagedArchive(f"the manifest at {where} contradicts itself: {what}")
