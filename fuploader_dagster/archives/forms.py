"""The formats of archives: which class writes, which one reads, and how each ends.

`tar.zst` is the default, and has no name in the manifest. Adding a format: an encoder, a reader,
how its manifest is found and what follows it, here; its bytes in docs/formats.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

from fuploader_dagster.archives.checked_members import unchecked_contents
from fuploader_dagster.archives.frame_encoder import FrameEncoder
from fuploader_dagster.archives.frame_reader import FrameReader, TarReader
from fuploader_dagster.archives.frame_walk import Damage
from fuploader_dagster.archives.line_frames import LineFrames, LineReader
from fuploader_dagster.archives.listed_members import pages_damages
from fuploader_dagster.archives.manifest import Manifest
from fuploader_dagster.archives.members import MemberSource
from fuploader_dagster.archives.parquet_columns import FoundColumns, header_columns
from fuploader_dagster.archives.parquet_end import find_parquet_manifest, parquet_damages
from fuploader_dagster.archives.ranges import RangeSource
from fuploader_dagster.archives.seek_table import find_by_seek_table, seek_table_damages
from fuploader_dagster.archives.zip_frames import (
    ZipFrames,
    ZipReader,
    find_zip_manifest,
    zip_damages,
)
from fuploader_dagster.archives.zstd_frames import TarFrames
from fuploader_dagster.errors import ConfigError, DamagedArchive


class Columns(NamedTuple):
    """What a Parquet archive has of its members."""

    types: Mapping[str, str] = {}
    """By field; without any, a look at all members finds them."""
    content: bool = True
    """Whether the content is kept too."""


ALL_COLUMNS = Columns()


class _Form(NamedTuple):
    encoder: Callable[[int, Sequence[MemberSource], Columns], FrameEncoder]
    reader: Callable[[], type[FrameReader]]
    end_damages: Callable[[RangeSource, Manifest], Iterator[Damage]]


def _parquet() -> ModuleType:
    """The module that needs pyarrow. Raises `ConfigError` if that is missing."""
    try:
        return importlib.import_module("fuploader_dagster.archives.parquet_frames")
    except ImportError as error:
        raise ConfigError(
            f"Parquet needs pyarrow, which cannot be imported: {error}",
            hint="pip install 'fuploader-dagster[parquet]'; ls, find and cat without a name work "
            "without it",
        ) from error


def _parquet_encoder(level: int, sources: Sequence[MemberSource], columns: Columns) -> FrameEncoder:
    types, keep = columns
    headers = header_columns(m.headers for source in sources for m in source.members if m.headers)
    made = _parquet().ParquetFrames
    if types:
        encoder: FrameEncoder = made(level, types, headers, found=False, content=keep)
        return encoder
    found = FoundColumns()
    for source in sources:
        for content in unchecked_contents(source, made.frame_bytes):
            found.look_at(content)
    looked: FrameEncoder = made(level, found.columns(), headers, found=True, content=keep)
    return looked


def _parquet_reader() -> type[FrameReader]:
    reader: type[FrameReader] = _parquet().ParquetReader
    return reader


TAR = "tar.zst"
_FORMS = {
    TAR: _Form(lambda level, *_: TarFrames(level), lambda: TarReader, seek_table_damages),
    "jsonl.zst": _Form(
        lambda level, *_: LineFrames(level),
        lambda: LineReader,
        lambda source, manifest: seek_table_damages(source, manifest, b""),
    ),
    "zip": _Form(lambda level, *_: ZipFrames(level), lambda: ZipReader, zip_damages),
    "parquet": _Form(_parquet_encoder, _parquet_reader, parquet_damages),
}
FORMS = tuple(_FORMS)


def encoder_for(
    form: str, level: int, sources: Sequence[MemberSource], columns: Columns
) -> FrameEncoder:
    """What makes a new archive of this format of these members."""
    return _FORMS[form].encoder(level, sources, columns)


def reader_for(manifest: Manifest) -> type[FrameReader]:
    """What reads members of the archive with this manifest."""
    return _FORMS[manifest.form or TAR].reader()


def find_manifest(source: RangeSource) -> Manifest | None:
    """From the end of the archive, whichever format it has. None if it is not one of ours.

    Raises `DamagedArchive` if it is one, but its end is damaged.
    """
    finders = (find_by_seek_table, find_zip_manifest, find_parquet_manifest)
    manifest = next(filter(None, (find(source) for find in finders)), None)
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
