"""The end of an archive: finding the manifest from the last bytes, and checking what closes it."""

from __future__ import annotations

from collections.abc import Iterator

import zstandard

from fuploader_dagster.errors import DamagedArchive
from fuploader_dagster.frame_walk import Damage
from fuploader_dagster.manifest import (
    SEEK_FOOTER_BYTES,
    Manifest,
    closing_frames,
    decode,
    seek_table,
    seek_table_bytes,
)
from fuploader_dagster.range_source import RangeSource
from fuploader_dagster.tarstream import END


def find_manifest(source: RangeSource) -> Manifest | None:
    """From the end: footer, seek table, manifest. None if this is no archive of ours.

    Raises `DamagedArchive` if it is one, but its end is not as it was written.
    """
    size = source.size_bytes
    if size < SEEK_FOOTER_BYTES:
        return None
    table_bytes = seek_table_bytes(source.read(size - SEEK_FOOTER_BYTES, SEEK_FOOTER_BYTES))
    if table_bytes is None or table_bytes > size:
        return None
    closing = closing_frames(source.read(size - table_bytes, table_bytes))
    if closing is None:
        return None
    manifest_bytes, end_bytes = closing
    offset = size - table_bytes - end_bytes - manifest_bytes
    if offset < 0:
        raise DamagedArchive(
            f"the seek table at offset {size - table_bytes} of {source.address} states more bytes "
            "than there are"
        )
    frame = source.read(offset, manifest_bytes)
    manifest = decode(frame, where=f"offset {offset} of {source.address}")
    if manifest.offset != offset or len(manifest.end_frame) != end_bytes:
        raise DamagedArchive(
            f"the manifest at offset {offset} of {source.address} belongs to offset "
            f"{manifest.offset}: bytes are missing, or there are too many"
        )
    return manifest


def closing_damages(source: RangeSource, manifest: Manifest) -> Iterator[Damage]:
    """Compare what lies behind the manifest: it follows from the manifest, byte by byte."""
    size = source.size_bytes
    footer = source.read(size - SEEK_FOOTER_BYTES, SEEK_FOOTER_BYTES)
    end_offset = size - (seek_table_bytes(footer) or 0) - len(manifest.end_frame)
    expected = manifest.end_frame + seek_table(manifest, end_offset - manifest.offset)
    if source.read(end_offset, size - end_offset) != expected:
        yield Damage(f"end frame or seek table at offset {end_offset} of {source.address} changed")
    try:
        end = zstandard.ZstdDecompressor().decompress(manifest.end_frame)
    except zstandard.ZstdError:
        end = b""
    if end != END:
        yield Damage(f"the end frame at offset {end_offset} of {source.address} is no end of tar")
