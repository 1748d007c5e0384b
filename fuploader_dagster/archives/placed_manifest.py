"""Where the manifest is in files whose format has an end of its own: just before that end.

A zip ends with its central directory, a Parquet file with its footer, and programs find all else
from there. So what stands between the members and that end is invisible to them: the pages, the
manifest, and a mark of 16 bytes that says how long the manifest is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from fuploader_dagster.archives.frame_walk import Damage
from fuploader_dagster.archives.manifest import Manifest, decode
from fuploader_dagster.archives.ranges import RangeSource
from fuploader_dagster.archives.seek_table import MOST_MANIFEST_BYTES
from fuploader_dagster.errors import DamagedArchive

_MARK = b"FUPLEND\x03"
_TRAILER = struct.Struct("<8sQ")  # mark, bytes of the manifest's frame
TRAILER_BYTES = _TRAILER.size


def trailer(manifest_bytes: int) -> bytes:
    """The mark."""
    return _TRAILER.pack(_MARK, manifest_bytes)


def find_before(source: RangeSource, end: int, form: str) -> Manifest | None:
    """The manifest of an archive whose own end begins there; None if there is no mark.

    Raises `DamagedArchive` if there is one, but it does not lead to a manifest of this format.
    """
    offset = end - TRAILER_BYTES
    if offset < 0:
        return None
    mark, manifest_bytes = _TRAILER.unpack(source.read(offset, TRAILER_BYTES))
    if mark != _MARK:
        return None
    start = offset - manifest_bytes
    if start < 0 or manifest_bytes > MOST_MANIFEST_BYTES:
        raise DamagedArchive(
            f"the mark at offset {offset} of {source.address} claims a manifest of "
            f"{manifest_bytes} bytes, which is not possible"
        )
    where = f"offset {start} of {source.address}"
    manifest = decode(source.read(start, manifest_bytes), where=where)
    if (manifest.offset, manifest.form) != (start, form):
        raise DamagedArchive(
            f"the manifest at {where} belongs at offset {manifest.offset} of a {manifest.form} "
            f"archive: bytes are missing, or were added"
        )
    return manifest


def trailer_damages(source: RangeSource, manifest: Manifest, end: int) -> Iterator[Damage]:
    """Compare the mark."""
    offset = end - TRAILER_BYTES
    if source.read(offset, TRAILER_BYTES) != trailer(offset - manifest.offset):
        yield Damage(f"the mark at offset {offset} of {source.address} changed")
