"""Archives of other formats, which custom packers make: 7z, zip, tar with another compression.

They are shipped and verified as a whole. Only their own programs can read their members, so reading
one raises `ForeignArchive`, which says what the archive is and how to unpack it. (A zip of our own
has a manifest, and is none of them.)
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from fuploader_dagster.archives.ranges import RangeSource
from fuploader_dagster.contracts.object_store import Progress
from fuploader_dagster.errors import DamagedArchive, PermanentError

_PARQUET = b"PAR1"
_READ_BYTES = 4 * 2**20
_7Z_START_BYTES = 32


class _Kind(NamedTuple):
    offset: int
    magic: bytes
    name: str
    unpack: str


_KINDS = (
    _Kind(0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x"),
    _Kind(0, b"PK\x03\x04", "a zip archive", "unzip"),
    _Kind(0, b"PK\x05\x06", "an empty zip archive", "unzip"),
    _Kind(0, _PARQUET, "a Parquet file", "parquet-tools show"),
    _Kind(0, b"Rar!\x1a\x07", "a rar archive", "unrar x"),
    _Kind(0, b"\x1f\x8b", "compressed with gzip", "tar -xzf"),
    _Kind(0, b"\xfd7zXZ\0", "compressed with xz", "tar -xJf"),
    _Kind(0, b"BZh", "compressed with bzip2", "tar -xjf"),
    _Kind(0, b"\x04\x22\x4d\x18", "compressed with lz4", "tar --use-compress-program=lz4 -xf"),
    _Kind(257, b"ustar", "a tar without compression", "tar -xf"),
)
_HEAD_BYTES = 262
_ZIP_END = struct.Struct("<20sH")  # the rest, length of the comment
_LONGEST_ZIP_END = _ZIP_END.size + 2**16


class ForeignArchive(PermanentError):
    """An archive of another format, whose members cannot be listed or read here."""


def refuse_foreign(source: RangeSource) -> None:
    """Raise `ForeignArchive` if the first bytes are those of another format."""
    kind = _kind_of(source)
    if kind is not None:
        raise ForeignArchive(
            f"{source.address} is {kind.name} of another program; members can only be read from "
            f".tar.zst, and from .jsonl.zst, .zip and .parquet of this package",
            hint=f"get it whole with `fuploader cat {source.address} > FILE`, then "
            f"`{kind.unpack} FILE`; `fuploader verify` compares it as a whole",
        )


def refuse_cut_off(source: RangeSource) -> None:
    """Raise `DamagedArchive` for a zip or Parquet file without its end, whoever made it."""
    head = source.read(0, 4)
    if head == _PARQUET and source.read(max(source.size_bytes - 4, 4), 4) != _PARQUET:
        raise DamagedArchive(
            f"{source.address} is cut off at offset {source.size_bytes}: it is a Parquet file "
            f"without its end"
        )
    if head != b"PK\x03\x04":
        return
    start = max(source.size_bytes - _LONGEST_ZIP_END, 0)
    tail = source.read(start, source.size_bytes - start)
    end = tail.rfind(b"PK\x05\x06")
    comment = tail[end + _ZIP_END.size :]
    if (
        end < 0
        or len(tail) - end < _ZIP_END.size
        or _ZIP_END.unpack_from(tail, end)[1] > len(comment)
    ):
        raise DamagedArchive(
            f"{source.address} is cut off at offset {source.size_bytes}: it is a zip without a "
            f"whole end record",
            hint="`zip -FF` or `bsdtar` may find members in what is left",
        )


def needs_manifest(source: RangeSource) -> bool:
    """Whether members of an archive of ours in this format are found by the manifest alone."""
    return _kind_of(source) is not None


def _kind_of(source: RangeSource) -> _Kind | None:
    head = source.read(0, _HEAD_BYTES)
    return next((kind for kind in _KINDS if head.startswith(kind.magic, kind.offset)), None)


def is_complete(path: Path) -> bool | None:
    """Whether an archive of another format is complete; None if the format does not say so, or is
    unknown."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(_KINDS[0].magic):  # 7z: its first header says where its last one ends
        if len(head) < _7Z_START_BYTES:
            return False
        offset, size = struct.unpack_from("<QQ", head, 12)
        return bool(path.stat().st_size == _7Z_START_BYTES + offset + size)
    if head.startswith(b"PK"):
        return zipfile.is_zipfile(path)
    for magic, opener in ((b"\x1f\x8b", gzip.open), (b"\xfd7zXZ", lzma.open), (b"BZh", bz2.open)):
        if head.startswith(magic):
            return _reads_to_its_end(opener, path)
    return None


def _reads_to_its_end(opener: Callable[[Path], Any], path: Path) -> bool:
    try:
        with opener(path) as stream:
            while stream.read(_READ_BYTES):
                pass
    except (EOFError, OSError, lzma.LZMAError, zlib.error):
        return False
    return True


def verify_whole(
    source: RangeSource, expected_sha256: str, progress: Progress | None = None
) -> None:
    """Read everything and compare its digest. Raises `DamagedArchive`."""
    digest = sha256()
    offset = 0
    while block := source.read(offset, min(_READ_BYTES, source.size_bytes - offset)):
        digest.update(block)
        offset += len(block)
        if progress:
            progress(offset, source.size_bytes)
    if digest.hexdigest() != expected_sha256:
        raise DamagedArchive(
            f"{source.address} has {offset} bytes with SHA-256 {digest.hexdigest()}, but was "
            f"stored with {expected_sha256}",
            hint="unpack what you can with the program that made it",
        )
