"""The names of one archive as one compressed list, and the search for a pattern in it.

For patterns whose start is not known: an ordered index cannot help with those, but a list of names
packs to less than half its size, unpacks at a gigabyte per second, and is searched as fast for a
literal piece of the pattern: a millisecond for ten thousand names. `name_grams` knows which lists
need no search.

Format: a zstd frame of the names in the archive's order, each after a NUL, which no name contains,
in UTF-8 (lone surrogates in the same way).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence

import zstandard

from fuploader_dagster.errors import ConfigError

_WILD = re.compile(r"[*?]|\[!?\]?[^\]]*\]")
LONGEST_PATTERN = 4096
"""Characters. A name has at most 255, and the time to parse a pattern grows with its square."""


def join_names(names: Iterable[str]) -> bytes:
    """The list before it is packed."""
    return "".join(f"\0{name}" for name in names).encode("utf-8", "surrogatepass")


def pack_names(joined: bytes) -> bytes:
    """The list as it is stored, with zstd's own checksum."""
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(joined)


def unpack_names(packed: bytes) -> list[str]:
    """The names of a packed list. Raises `zstandard.ZstdError` or `ValueError` if it is damaged."""
    names = zstandard.ZstdDecompressor().decompress(packed).split(b"\0")[1:]
    return [name.decode("utf-8", "surrogatepass") for name in names]


class NamePattern:
    """A name with `*`, `?` or `[...]`, as `fnmatch` reads it."""

    def __init__(self, pattern: str) -> None:
        """Raises `ConfigError` if it is too long."""
        if len(pattern) > LONGEST_PATTERN:
            raise ConfigError(
                f"the pattern has {len(pattern):,} characters",
                hint=f"use at most {LONGEST_PATTERN:,}",
            )
        self._matches = re.compile(fnmatch.translate(pattern)).match
        self.literals: Sequence[bytes] = [
            piece.encode("utf-8", "surrogatepass") for piece in _WILD.split(pattern) if piece
        ]
        """The pieces that every matching name contains, if the pattern has any."""

    def fits(self, name: str) -> bool:
        return self._matches(name) is not None

    def find_in(self, packed: bytes) -> Iterator[str]:
        """The names in a packed list that match, in its order."""
        if any(b"\0" in piece for piece in self.literals):
            return  # no name contains a NUL: it separates the names
        names = zstandard.ZstdDecompressor().decompress(packed) + b"\0"
        rarest = min(self.literals, key=names.count, default=b"")
        for name in _holding(names, rarest):
            decoded = name.decode("utf-8", "surrogatepass")
            if self.fits(decoded):
                yield decoded


def _holding(names: bytes, piece: bytes) -> Iterator[bytes]:
    """The names that contain the piece; all of them if it is empty."""
    if not piece:
        yield from names.split(b"\0")[1:-1]
        return
    end = 0
    while (found := names.find(piece, end)) >= 0:
        start, end = names.rfind(b"\0", 0, found) + 1, names.find(b"\0", found)
        yield names[start:end]
