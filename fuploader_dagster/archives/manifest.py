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

Version 2 is that of archives in which a member has message headers, version 1 that of all others.
Its manifest's digest covers the version too, so that a changed one is noticed. Readers before
version 2 know no such tar headers, and would call each member damaged; of version 2 they say that a
newer reader is needed, and unpack it anyway.

Digests prove that nothing changed by chance; someone who forges an archive forges them too. So a
manifest or page is believed only as far as it can be true of the bytes that are there. Whatever
decodes one checks it; `seek_table` checks the members of all pages together.

Digests are the first 16 bytes of SHA-256: 128 bits find any damage, and a full digest per member
would make archives of small messages 4 % larger. The object store keeps the full digest of the
whole archive with the object.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from hashlib import sha256
from itertools import accumulate
from operator import sub
from typing import NamedTuple, TypeVar
from zlib import crc32

import msgspec
import zstandard

from fuploader_dagster.disk.header_text import MOST_BYTES
from fuploader_dagster.disk.tar_headers import BLOCK, padding
from fuploader_dagster.errors import UNREADABLE_JSON, DamagedArchive

DIGEST_BYTES = 16
PLAIN = 1
"""The version without message headers."""
WITH_HEADERS = 2
PAGE_MEMBERS = 4096
_PAGE_HEADER_BYTES = 2**23
"""Of message headers per page, on average: with more there are more pages."""

RESULTS_KEY = "results"
"""In `metadata`: how many of the members, the last ones, are results and no messages. It is there
only where the messages were processed."""

FRAME_HEADER = struct.Struct("<II")  # magic, length of what follows
PAGES_MAGIC = 0x184D2A5C
MANIFEST_MAGIC = 0x184D2A5D
_MARK = {version: b"FUPLMAN" + bytes([version]) for version in (PLAIN, WITH_HEADERS)}
_MARK_BYTES = len(_MARK[PLAIN])
_PREFIX_BYTES = FRAME_HEADER.size + _MARK_BYTES + 32
_MOST_UNPACKED_BYTES = {"Manifest": 2**26, "Page": 2**25, "_PageNames": 2**25}
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


class MemberEntry(NamedTuple):
    """One member of a finished archive, as the manifest lists it."""

    name: str
    size_bytes: int
    digest: bytes | None
    """The first 16 bytes of the payload's SHA-256; None in archives without a manifest."""
    offset: int
    """Where its header begins in the decompressed tar stream."""
    header_bytes: int
    headers: str = ""
    """The message headers that are kept with it, as text (`disk/header_text.py`)."""

    @property
    def payload_offset(self) -> int:
        return self.offset + self.header_bytes

    @property
    def end(self) -> int:
        """Where the next member begins."""
        return self.payload_offset + self.size_bytes + len(padding(self.size_bytes))


class FrameEntry(NamedTuple):
    """One independent zstd frame of an archive."""

    offset: int
    """In the archive file."""
    size_bytes: int
    """Compressed."""
    tar_offset: int
    tar_bytes: int
    """What it decompresses to."""
    digest: bytes
    """The first 16 bytes of the SHA-256 of the compressed bytes."""


class Page(msgspec.Struct, frozen=True, omit_defaults=True):
    """Some of the members, as columns, in the order of the archive."""

    names: list[str]
    sizes: list[int]
    distances: list[int]
    """In blocks of 512 bytes from the previous member's header to this one's; for the first member
    from the start of the tar stream."""
    header_blocks: list[int]
    """Length of the header in blocks: 1, or more with pax."""
    digests: bytes
    headers: list[str] | None = None
    """The message headers of each; None if none of the members has any."""

    def members(self) -> list[MemberEntry]:
        digests = self.digests
        members = [
            MemberEntry(name, size, digests[at : at + DIGEST_BYTES], position * BLOCK, n * BLOCK)
            for name, size, at, position, n in zip(
                self.names,
                self.sizes,
                range(0, len(digests), DIGEST_BYTES),
                accumulate(self.distances),
                self.header_blocks,
                strict=True,
            )
        ]
        if self.headers is None:
            return members
        return [
            member._replace(headers=headers)
            for member, headers in zip(members, self.headers, strict=True)
        ]


class _PageNames(msgspec.Struct, frozen=True):
    """The only column to decode for names."""

    names: list[str]


class Manifest(msgspec.Struct, frozen=True):
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
    """The bytes of the end frame."""

    @property
    def results(self) -> int:
        """Number of members that are results: the last ones."""
        return int(self.metadata.get(RESULTS_KEY, "0"))

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
        return _page_of(name, len(self.page_sizes))


def _page_of(name: str, pages: int) -> int:
    return crc32(name.encode("utf-8", "surrogatepass")) * pages >> 32


# -- encoding ----------------------------------------------------------------------------------


def encode_pages(
    names: Sequence[str],
    sizes: Sequence[int],
    lengths: Sequence[int],
    digests: bytes,
    headers: Sequence[str] = (),
) -> list[bytes]:
    """The pages of these members; `lengths` in the tar stream, `digests` of 16 bytes each.

    `headers` are the message headers of each member; without any of them, nobody has some.
    """
    header_bytes = sum(len(text.encode("utf-8")) for text in headers)
    count = max(-(-len(names) // PAGE_MEMBERS), -(-header_bytes // _PAGE_HEADER_BYTES))
    chosen: list[list[int]] = [[] for _ in range(count)]
    for i, name in enumerate(names):
        chosen[_page_of(name, count)].append(i)
    positions = [offset // BLOCK for offset in accumulate(lengths, initial=0)]
    blocks = [(length - size) // BLOCK for length, size in zip(lengths, sizes, strict=True)]
    digest_of = [digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)]
    pages = []
    for members in chosen:  # map over __getitem__: a quarter of the time of comprehensions
        at = list(map(positions.__getitem__, members))
        kept = list(map(headers.__getitem__, members)) if header_bytes else []
        page = Page(
            names=list(map(names.__getitem__, members)),
            sizes=list(map(sizes.__getitem__, members)),
            distances=list(map(sub, at, [0, *at])),
            header_blocks=list(map(blocks.__getitem__, members)),
            digests=b"".join(map(digest_of.__getitem__, members)),
            headers=kept if any(kept) else None,
        )
        pages.append(_packed(page))
    return pages


def pages_frame(pages: Sequence[bytes]) -> bytes:
    body = b"".join(pages)
    return FRAME_HEADER.pack(PAGES_MAGIC, len(body)) + body


def encode(manifest: Manifest, version: int = PLAIN) -> bytes:
    """The manifest's frame."""
    packed = _packed(manifest)
    body = _MARK[version] + _own_digest(_MARK[version], packed) + packed
    return FRAME_HEADER.pack(MANIFEST_MAGIC, len(body)) + body


def _own_digest(mark: bytes, packed: bytes) -> bytes:
    return sha256(packed if mark == _MARK[PLAIN] else mark + packed).digest()


def _packed(record: msgspec.Struct) -> bytes:
    packed = zstandard.ZstdCompressor(level=3).compress(msgspec.msgpack.encode(record))
    if _unpacked(packed, type(record), "memory") != record:
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
            f"program reads {PLAIN} and {WITH_HEADERS}",
            hint="a newer fuploader_dagster may read it; zstd and tar can in any case",
        )
    packed = frame[_PREFIX_BYTES:]
    if _own_digest(mark, packed) != frame[at + _MARK_BYTES : _PREFIX_BYTES]:
        raise DamagedArchive(f"the manifest at {where} does not match its own digest")
    manifest = _unpacked(packed, Manifest, where)
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
    if not (
        0 <= manifest.member_count * BLOCK <= tar_bytes
        and 0 <= manifest.payload_bytes <= tar_bytes
        and len(manifest.page_sizes) <= manifest.member_count
    ):
        raise contradiction(where, "more members than its frames have room for")
    results = manifest.metadata.get(RESULTS_KEY, "0")
    if not (_NUMBER.fullmatch(results) and int(results) <= manifest.member_count):
        raise contradiction(where, f"{results[:20]!r} results of {manifest.member_count} members")
    return manifest


def decode_page(
    manifest: Manifest, index: int, packed: bytes | memoryview, *, where: str
) -> list[MemberEntry]:
    """The members of a page, in the order of the archive. Errors as in `decode`."""
    _check_page(manifest, index, packed, where)
    page = _unpacked(packed, Page, where)
    count = len(page.names)
    if not (
        count == len(page.sizes) == len(page.distances) == len(page.header_blocks)
        and len(page.digests) == count * DIGEST_BYTES
        and (page.headers is None or len(page.headers) == count)
    ):
        raise contradiction(where, "columns of different lengths")
    _check_count(manifest, count, where)
    if any(not 0 <= n < 2**63 for c in (page.sizes, page.distances, page.header_blocks) for n in c):
        raise contradiction(where, "a member of impossible size or position")
    if any(len(text) > MOST_BYTES for text in page.headers or ()):
        raise contradiction(where, "longer message headers than can be kept")
    members = page.members()
    end = 0
    for member in members:
        if member.offset < end or member.header_bytes < BLOCK:
            raise contradiction(where, f"{member.name!r} does not follow the previous member")
        end = member.end
    if end > sum(manifest.frame_tar_sizes):
        raise contradiction(where, "members after the end of its frames")
    return members


def decode_page_names(
    manifest: Manifest, index: int, packed: bytes | memoryview, *, where: str
) -> list[str]:
    """The names in a page, in a third of the time of `decode_page`. Errors as in `decode`."""
    _check_page(manifest, index, packed, where)
    names = _unpacked(packed, _PageNames, where).names
    _check_count(manifest, len(names), where)
    return names


def _check_page(manifest: Manifest, index: int, packed: bytes | memoryview, where: str) -> None:
    if digest(packed) != manifest.page_digests[index * DIGEST_BYTES :][:DIGEST_BYTES]:
        raise DamagedArchive(f"page {index} of the manifest at {where} does not match its digest")


def _check_count(manifest: Manifest, count: int, where: str) -> None:
    if count > manifest.member_count:
        raise contradiction(where, f"a page of {count} of its {manifest.member_count} members")


def _unpacked(packed: bytes | memoryview, kind: type[_Record], where: str) -> _Record:
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
