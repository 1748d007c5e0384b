"""How a Parquet file of ours is recognised, without reading Parquet: by its end.

The file ends with its footer, the footer's length and `PAR1`. Before the footer stand the pages,
the manifest and its mark (`placed_manifest`), where no program looks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from fuploader_dagster.archives.frame_walk import Damage
from fuploader_dagster.archives.manifest import Manifest, digest
from fuploader_dagster.archives.placed_manifest import find_before, trailer_damages
from fuploader_dagster.archives.ranges import RangeSource
from fuploader_dagster.errors import DamagedArchive, PermanentError

FORM = "parquet"
MAGIC = b"PAR1"
SCHEMA_KEY = b"fuploader.columns"
"""In the footer's metadata of every archive of ours: what its columns are."""
KEEPS_KEY = "keeps"
"""In the manifest's metadata of archives whose content was left out: `columns`."""
END = struct.Struct("<L4s")  # length of the footer, magic
MOST_FOOTER_BYTES = 2**28
_KEY_BYTES = 2**18
"""The key is that near to the end, with as many columns as are found, and the longest names."""


class ContentNotKept(PermanentError):
    """The archive has only columns: the content was left out when it was packed."""


def footer_place(source: RangeSource) -> int | None:
    """Where the footer begins; None if this is no Parquet file."""
    at = source.size_bytes - END.size
    if at < len(MAGIC):
        return None
    footer_bytes, magic = END.unpack(source.read(at, END.size))
    start = at - int(footer_bytes)
    if magic != MAGIC or footer_bytes > MOST_FOOTER_BYTES or start < len(MAGIC):
        return None
    return start


def find_parquet_manifest(source: RangeSource) -> Manifest | None:
    """The manifest of a Parquet file of ours; None if this is none. Raises `DamagedArchive`."""
    start = footer_place(source)
    manifest = None if start is None else find_before(source, start, FORM)
    if manifest is None:
        tail_offset = max(source.size_bytes - _KEY_BYTES, 0)
        tail = source.read(tail_offset, _KEY_BYTES)
        if tail.endswith(MAGIC) and SCHEMA_KEY in tail:
            raise DamagedArchive(
                f"the end of {source.address}, after offset {tail_offset}, is damaged: it leads "
                f"to no manifest"
            )
    return manifest


def parquet_damages(source: RangeSource, manifest: Manifest) -> Iterator[Damage]:
    """Compare what follows the manifest."""
    start = footer_place(source)
    assert start is not None  # noqa: S101 - the manifest was found by it
    yield from trailer_damages(source, manifest, start)
    if digest(source.read(start, source.size_bytes - start)) != manifest.end_frame:
        yield Damage(f"the footer at offset {start} of {source.address} changed")
