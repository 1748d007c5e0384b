"""The end of an archive: the seek table, and how it leads to the manifest and its pages.

The seek table is the standard one of zstd's seekable format (`contrib/seekable_format`): other
programs find frames by it. Pages and manifest appear in it as frames that decompress to nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from operator import attrgetter

import zstandard

from fuploader_dagster.archives.frame_walk import Damage
from fuploader_dagster.archives.manifest import (
    FRAME_HEADER,
    PAGES_MAGIC,
    Manifest,
    MemberEntry,
    contradiction,
    decode,
    decode_page,
    decode_page_names,
)
from fuploader_dagster.archives.memory_budget import Budget
from fuploader_dagster.archives.ranges import RangeSource, ReadAhead
from fuploader_dagster.disk.tar_headers import BLOCK, END
from fuploader_dagster.errors import DamagedArchive

SEEK_TABLE_MAGIC = 0x184D2A5E
_SEEKABLE_MAGIC = 0x8F92EAB1
_ENTRY = struct.Struct("<II")  # compressed size, decompressed size
_FOOTER = struct.Struct("<IBI")  # number of frames, flags, magic
_MOST_FRAMES = 2**22
"""4 TiB, with frames of 1 MiB. The table is read into memory as large as it claims to be."""
_MOST_MANIFEST_BYTES = 2**26
_PAGES_READ_BYTES = 2**26
"""Read at once: the pages of two million members."""


def seek_table(manifest: Manifest, manifest_frame_bytes: int) -> bytes:
    """The seek table's frame: the last bytes of an archive."""
    pages_bytes = manifest.offset - manifest.pages_offset
    sizes = [
        *zip(manifest.frame_sizes, manifest.frame_tar_sizes, strict=True),
        (pages_bytes, 0),
        (manifest_frame_bytes, 0),
        (len(manifest.end_frame), len(END)),
    ]
    body = b"".join(_ENTRY.pack(*entry) for entry in sizes)
    body += _FOOTER.pack(len(sizes), 0, _SEEKABLE_MAGIC)
    return FRAME_HEADER.pack(SEEK_TABLE_MAGIC, len(body)) + body


def _table_bytes(footer: bytes) -> int | None:
    """Length of the seek table frame, from an archive's last 9 bytes; None if there is none."""
    count, flags, magic = _FOOTER.unpack(footer)
    if magic != _SEEKABLE_MAGIC or flags & 0x7C or count > _MOST_FRAMES:  # 0x7C: reserved bits
        return None
    entry_bytes = _ENTRY.size + (4 if flags & 0x80 else 0)  # each with a checksum
    return int(FRAME_HEADER.size + count * entry_bytes + _FOOTER.size)


def _closing_frames(table: bytes) -> tuple[int, int] | None:
    """Compressed sizes of manifest and end frame, from a seek table.

    None for the seek tables of other programs: in ours, and practically never in theirs, the last
    frame but one decompresses to nothing, and the last to the end of a tar stream.
    """
    entry = _ENTRY.size + (4 if table[-5] & 0x80 else 0)
    entries = table[FRAME_HEADER.size : -_FOOTER.size]
    if len(entries) < 2 * entry:
        return None
    manifest_bytes, nothing = _ENTRY.unpack_from(entries, len(entries) - 2 * entry)
    end_bytes, end = _ENTRY.unpack_from(entries, len(entries) - entry)
    return (manifest_bytes, end_bytes) if (nothing, end) == (0, len(END)) else None


def find_manifest(source: RangeSource) -> Manifest | None:
    """From the end: footer, seek table, manifest. None if this is not an archive of ours.

    Raises `DamagedArchive` if it is one, but its end is damaged.
    """
    size = source.size_bytes
    if size < _FOOTER.size:
        return None
    table_bytes = _table_bytes(source.read(size - _FOOTER.size, _FOOTER.size))
    if table_bytes is None or table_bytes > size:
        return None
    closing = _closing_frames(source.read(size - table_bytes, table_bytes))
    if closing is None:
        return None
    manifest_bytes, end_bytes = closing
    offset = size - table_bytes - end_bytes - manifest_bytes
    claims = f"the seek table at offset {size - table_bytes} of {source.address} claims"
    if manifest_bytes > _MOST_MANIFEST_BYTES:
        what = f"a manifest of {manifest_bytes} bytes, more than is possible"
        raise DamagedArchive(f"{claims} {what}")
    if offset < 0:
        raise DamagedArchive(f"{claims} more bytes than the archive has")
    frame = source.read(offset, manifest_bytes)
    manifest = decode(frame, where=f"offset {offset} of {source.address}")
    if manifest.offset != offset or len(manifest.end_frame) != end_bytes:
        raise DamagedArchive(
            f"the manifest at offset {offset} of {source.address} belongs at offset "
            f"{manifest.offset}: bytes are missing, or were added"
        )
    return manifest


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
        if member.offset != end or member.size_bytes < 0 or member.header_bytes < BLOCK:
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


def closing_damages(source: RangeSource, manifest: Manifest) -> Iterator[Damage]:
    """Compare what surrounds manifest and pages: the manifest determines it, byte by byte."""
    pages_bytes = manifest.offset - manifest.pages_offset
    if source.read(manifest.pages_offset, FRAME_HEADER.size) != FRAME_HEADER.pack(
        PAGES_MAGIC, pages_bytes - FRAME_HEADER.size
    ):
        yield Damage(f"the header of the pages at offset {manifest.pages_offset} changed")
    size = source.size_bytes
    footer = source.read(size - _FOOTER.size, _FOOTER.size)
    end_offset = size - (_table_bytes(footer) or 0) - len(manifest.end_frame)
    expected = manifest.end_frame + seek_table(manifest, end_offset - manifest.offset)
    if source.read(end_offset, size - end_offset) != expected:
        yield Damage(f"end frame or seek table at offset {end_offset} of {source.address} changed")
    if not _is_end(manifest.end_frame):
        yield Damage(f"the end frame at offset {end_offset} of {source.address} does not end a tar")


def _is_end(frame: bytes) -> bool:
    """Whether a frame holds the end of a tar stream, and nothing else."""
    try:
        return (
            zstandard.frame_content_size(frame) == len(END)
            and zstandard.ZstdDecompressor().decompress(frame) == END
        )
    except zstandard.ZstdError:
        return False
