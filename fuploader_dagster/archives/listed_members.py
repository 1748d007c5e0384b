"""Reads the members that a manifest lists, from its pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter

from fuploader_dagster.archives.entries import MemberEntry
from fuploader_dagster.archives.frame_walk import Damage
from fuploader_dagster.archives.manifest import FRAME_HEADER, PAGES_MAGIC, Manifest, contradiction
from fuploader_dagster.archives.manifest_pages import decode_page, decode_page_names
from fuploader_dagster.archives.memory_budget import Budget
from fuploader_dagster.archives.ranges import RangeSource, ReadAhead

_PAGES_READ_BYTES = 2**26
"""Read at once: the pages of two million members."""


def read_page(source: RangeSource, manifest: Manifest, index: int) -> list[MemberEntry]:
    """The members that one page lists. One read."""
    start = manifest.pages_offset + FRAME_HEADER.size + sum(manifest.page_sizes[:index])
    packed = source.read(start, manifest.page_sizes[index])
    return decode_page(manifest, index, packed, where=f"offset {start} of {source.address}")


def read_pages(source: RangeSource, manifest: Manifest, budget: Budget) -> list[MemberEntry]:
    """All members, in the order of the archive. One read for each 64 MiB of pages."""
    members: list[MemberEntry] = []
    for index, packed, where in _all_pages(source, manifest):
        page = decode_page(manifest, index, packed, where=where)
        budget.hold(len(page), sum(len(member.name) + len(member.headers) for member in page))
        members += page
    members.sort(key=attrgetter("offset"))
    _check_members(manifest, members, where=f"offset {manifest.offset} of {source.address}")
    return members


def _check_members(manifest: Manifest, members: Sequence[MemberEntry], *, where: str) -> None:
    """Compare all members with the manifest: a faulty writer's work has right digests too."""
    if len({m.name for m in members}) != len(members):
        raise contradiction(where, "two members with the same name")
    end = 0
    for member in members:
        if member.offset != end or not (member.header_bytes or member.stored_bytes):
            raise contradiction(where, f"{member.name!r} does not follow the previous member")
        end = member.end
    if (len(members), end) != (manifest.member_count, sum(manifest.frame_tar_sizes)):
        raise contradiction(where, "members and frames add up to different sizes")


def read_names(source: RangeSource, manifest: Manifest, budget: Budget) -> list[str]:
    """All names, in no particular order; faster than `read_pages`."""
    names: list[str] = []
    for index, packed, where in _all_pages(source, manifest):
        page = decode_page_names(manifest, index, packed, where=where)
        budget.hold(len(page), sum(map(len, page)))
        names += page
    return names


def _all_pages(source: RangeSource, manifest: Manifest) -> Iterator[tuple[int, bytes, str]]:
    """Number, packed bytes and place of each page."""
    at = manifest.pages_offset + FRAME_HEADER.size
    step = min(sum(manifest.page_sizes), _PAGES_READ_BYTES)
    ahead = ReadAhead(source, max(step, 1))
    for index, size in enumerate(manifest.page_sizes):
        yield index, ahead.read(at, size), f"offset {at} of {source.address}"
        at += size


def pages_damages(source: RangeSource, manifest: Manifest) -> Iterator[Damage]:
    """Compare what precedes the pages."""
    pages_bytes = manifest.offset - manifest.pages_offset
    if source.read(manifest.pages_offset, FRAME_HEADER.size) != FRAME_HEADER.pack(
        PAGES_MAGIC, pages_bytes - FRAME_HEADER.size
    ):
        yield Damage(f"the header of the pages at offset {manifest.pages_offset} changed")
