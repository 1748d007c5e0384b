"""The end of an archive of zstd frames: the seek table, and how it leads to the manifest.

The seek table is the standard one of zstd's seekable format (`contrib/seekable_format`): other
programs find frames by it. Pages and manifest appear in it as frames that decompress to nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import zstandard

from fuploader_dagster.archives.frame_walk import Damage
from fuploader_dagster.archives.manifest import FRAME_HEADER, Manifest, decode, is_manifest
from fuploader_dagster.archives.ranges import RangeSource
from fuploader_dagster.disk.tar_headers import END
from fuploader_dagster.errors import DamagedArchive

SEEK_TABLE_MAGIC = 0x184D2A5E
_SEEKABLE_MAGIC = 0x8F92EAB1
_ENTRY = struct.Struct("<II")  # compressed size, decompressed size
_FOOTER = struct.Struct("<IBI")  # number of frames, flags, magic
_MOST_FRAMES = 2**22
"""4 TiB, with frames of 1 MiB. The table is read into memory as large as it claims to be."""
MOST_MANIFEST_BYTES = 2**26


def seek_table(manifest: Manifest, manifest_frame_bytes: int, end_bytes: int = len(END)) -> bytes:
    """The seek table's frame: the last bytes of an archive. `end_bytes`: what the end frame
    decompresses to."""
    pages_bytes = manifest.offset - manifest.pages_offset
    sizes = [
        *zip(manifest.frame_sizes, manifest.frame_tar_sizes, strict=True),
        (pages_bytes, 0),
        (manifest_frame_bytes, 0),
        (len(manifest.end_frame), end_bytes),
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


def _closing_frames(table: bytes) -> tuple[int, int, int] | None:
    """Sizes of manifest and end frame, from a seek table, and what the latter decompresses to.

    None for the seek tables of other programs: in ours, and practically never in theirs, the last
    frame but one decompresses to nothing, and the last to the end of a tar stream. (In an archive
    of JSON lines to nothing, which the manifest has to confirm.)
    """
    entry = _ENTRY.size + (4 if table[-5] & 0x80 else 0)
    entries = table[FRAME_HEADER.size : -_FOOTER.size]
    if len(entries) < 2 * entry:
        return None
    manifest_bytes, nothing = _ENTRY.unpack_from(entries, len(entries) - 2 * entry)
    end_bytes, end = _ENTRY.unpack_from(entries, len(entries) - entry)
    return (manifest_bytes, end_bytes, end) if nothing == 0 and end in (0, len(END)) else None


def find_by_seek_table(source: RangeSource) -> Manifest | None:
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
    manifest_bytes, end_bytes, end = closing
    offset = size - table_bytes - end_bytes - manifest_bytes
    claims = f"the seek table at offset {size - table_bytes} of {source.address} claims"
    if manifest_bytes > MOST_MANIFEST_BYTES:
        what = f"a manifest of {manifest_bytes} bytes, more than is possible"
        raise DamagedArchive(f"{claims} {what}")
    if offset < 0:
        raise DamagedArchive(f"{claims} more bytes than the archive has")
    frame = source.read(offset, manifest_bytes)
    if end == 0 and not is_manifest(frame):
        return None
    manifest = decode(frame, where=f"offset {offset} of {source.address}")
    misplaced = manifest.offset != offset or len(manifest.end_frame) != end_bytes
    if misplaced or (end == 0) == (not manifest.form):
        raise DamagedArchive(
            f"the manifest at offset {offset} of {source.address} belongs at offset "
            f"{manifest.offset}: bytes are missing, or were added"
        )
    return manifest


def seek_table_damages(
    source: RangeSource, manifest: Manifest, end: bytes = END
) -> Iterator[Damage]:
    """Compare what follows the manifest, which determines it byte by byte. `end`: what the end
    frame of this format holds."""
    size = source.size_bytes
    footer = source.read(size - _FOOTER.size, _FOOTER.size)
    end_offset = size - (_table_bytes(footer) or 0) - len(manifest.end_frame)
    expected = manifest.end_frame + seek_table(manifest, end_offset - manifest.offset, len(end))
    if source.read(end_offset, size - end_offset) != expected:
        yield Damage(f"end frame or seek table at offset {end_offset} of {source.address} changed")
    if not _holds(manifest.end_frame, end):
        what = "a tar" if end else "the archive"
        yield Damage(
            f"the end frame at offset {end_offset} of {source.address} does not end {what}"
        )


def _holds(frame: bytes, end: bytes) -> bool:
    """Whether a frame holds the end of a stream, and nothing else."""
    try:
        return (
            zstandard.frame_content_size(frame) == len(end)
            and zstandard.ZstdDecompressor().decompress(frame) == end
        )
    except zstandard.ZstdError:
        return False
