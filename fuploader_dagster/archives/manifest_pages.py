"""The pages of a manifest: the members of an archive, each in the page that its name selects.

What must always hold: a page is believed only as far as it can be true of its manifest, which has
its digest. Format: docs/formats.md, "Pages".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate, repeat
from operator import sub

import msgspec

from fuploader_dagster.archives.entries import MemberEntry
from fuploader_dagster.archives.manifest import (
    DIGEST_BYTES,
    FRAME_HEADER,
    PAGES_MAGIC,
    Manifest,
    contradiction,
    digest,
    packed_record,
    page_of,
    unpacked_record,
)
from fuploader_dagster.disk.header_text import MOST_BYTES
from fuploader_dagster.disk.tar_headers import BLOCK
from fuploader_dagster.errors import DamagedArchive

_entry = partial(tuple.__new__, MemberEntry)
PAGE_MEMBERS = 4096
_PAGE_HEADER_BYTES = 2**23
"""Of message headers per page, on average: with more there are more pages."""


class Page(msgspec.Struct, frozen=True, omit_defaults=True):
    """Some of the members, as columns, in the order of the archive."""

    names: list[str]
    sizes: list[int]
    distances: list[int]
    """In blocks of 512 bytes from the previous member's header to this one's; for the first member
    from the start of the tar stream. Of other formats, in bytes."""
    header_blocks: list[int]
    """Length of the header in blocks: 1, or more with pax. Empty in other formats."""
    digests: bytes
    headers: list[str] | None = None
    """The message headers of each; None if none of the members has any."""
    lengths: list[int] | None = None
    """Length of each in the stream of all frames, in bytes; None in a tar."""

    def members(self) -> list[MemberEntry]:
        """Without Python code for each: there may be millions."""
        count, digests = len(self.names), self.digests
        offsets: Iterable[int] = accumulate(self.distances)
        header_bytes: Iterable[int] = repeat(0, count)
        lengths: Iterable[int] = repeat(0, count)
        if self.lengths is None:
            offsets = [blocks * BLOCK for blocks in offsets]
            header_bytes = [blocks * BLOCK for blocks in self.header_blocks]
        else:
            lengths = self.lengths
        columns = zip(
            self.names,
            self.sizes,
            [digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)],
            offsets,
            header_bytes,
            repeat("", count) if self.headers is None else self.headers,
            lengths,
            strict=True,
        )
        return list(map(_entry, columns))


class PageNames(msgspec.Struct, frozen=True):
    """The only column to decode for names."""

    names: list[str]


# -- encoding ----------------------------------------------------------------------------------


def encode_pages(
    names: Sequence[str],
    sizes: Sequence[int],
    lengths: Sequence[int],
    digests: bytes,
    headers: Sequence[str] = (),
    *,
    is_tar: bool = True,
) -> list[bytes]:
    """The pages of these members; `lengths` in the stream of frames, `digests` of 16 bytes each.

    `headers` are the message headers of each member; without any of them, nobody has some.
    """
    header_bytes = sum(len(text.encode("utf-8")) for text in headers)
    count = max(-(-len(names) // PAGE_MEMBERS), -(-header_bytes // _PAGE_HEADER_BYTES))
    chosen: list[list[int]] = [[] for _ in range(count)]
    for i, name in enumerate(names):
        chosen[page_of(name, count)].append(i)
    positions = list(accumulate(lengths, initial=0))
    blocks: list[int] = []
    if is_tar:
        positions = [offset // BLOCK for offset in positions]
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
            header_blocks=list(map(blocks.__getitem__, members)) if is_tar else [],
            digests=b"".join(map(digest_of.__getitem__, members)),
            headers=kept if any(kept) else None,
            lengths=None if is_tar else list(map(lengths.__getitem__, members)),
        )
        pages.append(packed_record(page))
    return pages


def pages_frame(pages: Sequence[bytes]) -> bytes:
    body = b"".join(pages)
    return FRAME_HEADER.pack(PAGES_MAGIC, len(body)) + body


# -- decoding ----------------------------------------------------------------------------------


def decode_page(
    manifest: Manifest, index: int, packed: bytes | memoryview, *, where: str
) -> list[MemberEntry]:
    """The members of a page, in the order of the archive. Errors as in `decode`."""
    _check_page(manifest, index, packed, where)
    page = unpacked_record(packed, Page, where)
    count = len(page.names)
    if not (
        count == len(page.sizes) == len(page.distances)
        and (page.lengths is None) == (not manifest.form)
        and count == len(page.header_blocks if page.lengths is None else page.lengths)
        and len(page.digests) == count * DIGEST_BYTES
        and (page.headers is None or len(page.headers) == count)
    ):
        raise contradiction(where, "columns of different lengths")
    _check_count(manifest, count, where)
    numbers = (page.sizes, page.distances, page.header_blocks, page.lengths or ())
    if any(column and not (min(column) >= 0 and max(column) < 2**63) for column in numbers):
        raise contradiction(where, "a member of impossible size or position")
    if any(len(text) > MOST_BYTES for text in page.headers or ()):
        raise contradiction(where, "longer message headers than can be kept")
    members = page.members()
    end = 0
    for member in members:
        if member.offset < end or not (member.header_bytes or member.stored_bytes):
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
    names = unpacked_record(packed, PageNames, where).names
    _check_count(manifest, len(names), where)
    return names


def _check_page(manifest: Manifest, index: int, packed: bytes | memoryview, where: str) -> None:
    if digest(packed) != manifest.page_digests[index * DIGEST_BYTES :][:DIGEST_BYTES]:
        raise DamagedArchive(f"page {index} of the manifest at {where} does not match its digest")


def _check_count(manifest: Manifest, count: int, where: str) -> None:
    if count > manifest.member_count:
        raise contradiction(where, f"a page of {count} of its {manifest.member_count} members")
