"""The formats of archives: which class writes, which one reads, and how each ends.

`tar.zst` is the default, and has no name in the manifest. Adding a format: an encoder, a reader,
how its manifest is found and what follows it, here; its bytes in docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from fuploader_dagster.archives.frame_encoder import FrameEncoder
from fuploader_dagster.archives.frame_reader import FrameReader, TarReader
from fuploader_dagster.archives.frame_walk import Damage
from fuploader_dagster.archives.line_frames import LineFrames, LineReader
from fuploader_dagster.archives.listed_members import pages_damages
from fuploader_dagster.archives.manifest import Manifest
from fuploader_dagster.archives.ranges import RangeSource
from fuploader_dagster.archives.seek_table import find_by_seek_table, seek_table_damages
from fuploader_dagster.archives.zip_frames import (
    ZipFrames,
    ZipReader,
    find_zip_manifest,
    zip_damages,
)
from fuploader_dagster.archives.zstd_frames import TarFrames
from fuploader_dagster.errors import DamagedArchive


class _Form(NamedTuple):
    encoder: Callable[[int], FrameEncoder]
    reader: type[FrameReader]
    end_damages: Callable[[RangeSource, Manifest], Iterator[Damage]]


TAR = "tar.zst"
_FORMS = {
    TAR: _Form(TarFrames, TarReader, seek_table_damages),
    "jsonl.zst": _Form(LineFrames, LineReader, lambda s, m: seek_table_damages(s, m, b"")),
    "zip": _Form(ZipFrames, ZipReader, zip_damages),
}


FORMS = tuple(_FORMS)


def encoder_for(form: str, level: int) -> FrameEncoder:
    """What makes a new archive of this format."""
    return _FORMS[form].encoder(level)


def reader_for(manifest: Manifest) -> type[FrameReader]:
    """What reads members of the archive with this manifest."""
    return _FORMS[manifest.form or TAR].reader


def find_manifest(source: RangeSource) -> Manifest | None:
    """From the end of the archive, whichever format it has. None if it is not one of ours.

    Raises `DamagedArchive` if it is one, but its end is damaged.
    """
    manifest = find_by_seek_table(source) or find_zip_manifest(source)
    if manifest is not None and (manifest.form or TAR) not in _FORMS:
        raise DamagedArchive(
            f"the manifest of {source.address} says that it is of format {manifest.form[:20]!r}",
            hint="a newer fuploader_dagster may read it",
        )
    return manifest


def closing_damages(source: RangeSource, manifest: Manifest) -> Iterator[Damage]:
    """Compare what surrounds manifest and pages: the manifest determines it, byte by byte."""
    yield from pages_damages(source, manifest)
    yield from _FORMS[manifest.form or TAR].end_damages(source, manifest)
