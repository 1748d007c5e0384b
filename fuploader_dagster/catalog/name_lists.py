"""The names of one archive as one compressed list, and how a pattern is looked for in it.

For patterns of which the beginning is not known: ordered indexes cannot help there, but a list of
names packs to less than half of its size, unpacks at a gigabyte a second and is searched for a
literal piece of the pattern as fast: a millisecond for ten thousand names. Which lists need not be
looked into is known from `name_grams`.

Format: a zstd frame of the names in the archive's order, each behind a NUL, which no name holds;
UTF-8, what is no Unicode by itself (lone surrogates) in the same way.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence

import zstandard

from fuploader_dagster.errors import ConfigError

_WILD = re.compile(r"[*?]|\[!?\]?[^\]]*\]")
LONGEST_PATTERN = 4096
"""Characters. A name has at most 255; taking a pattern apart takes the square of its length."""


def join_names(names: Iterable[str]) -> bytes:
    """The list, not yet packed."""
    return "".join(f"\0{name}" for name in names).encode("utf-8", "surrogatepass")


def pack_names(joined: bytes) -> bytes:
    """The list as it is kept, with zstd's own checksum."""
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(joined)


def unpack_names(packed: bytes) -> list[str]:
    """The names of a list. Raises `zstandard.ZstdError` or `ValueError` for what is none."""
    names = zstandard.ZstdDecompressor().decompress(packed).split(b"\0")[1:]
    return [name.decode("utf-8", "surrogatepass") for name in names]


class NamePattern:
    """A name with `*`, `?` or `[...]`, as `fnmatch` reads it."""

    def __init__(self, pattern: str) -> None:
        """Raises `ConfigError` if it is too long."""
        if len(pattern) > LONGEST_PATTERN:
            raise ConfigError(
                f"the pattern has {len(pattern):,} characters", hint=f"at most {LONGEST_PATTERN:,}"
            )
        self._matches = re.compile(fnmatch.translate(pattern)).match
        self.literals: Sequence[bytes] = [
            piece.encode("utf-8", "surrogatepass") for piece in _WILD.split(pattern) if piece
        ]
        """What every name that fits holds; none where the pattern has no such piece."""

    def fits(self, name: str) -> bool:
        return self._matches(name) is not None

    def find_in(self, packed: bytes) -> Iterator[str]:
        """The names in a list that fit, in its order."""
        if any(b"\0" in piece for piece in self.literals):
            return  # no name has a NUL: it parts the names
        names = zstandard.ZstdDecompressor().decompress(packed) + b"\0"
        for name in _holding(names, self._rarest(names)):
            decoded = name.decode("utf-8", "surrogatepass")
            if self.fits(decoded):
                yield decoded

    def _rarest(self, names: bytes) -> bytes:
        """Of the pieces that a name must hold the one that fewest names hold; it may be none."""
        return min(self.literals, key=names.count, default=b"")


def _holding(names: bytes, piece: bytes) -> Iterator[bytes]:
    if not piece:
        yield from names.split(b"\0")[1:-1]
        return
    end = 0
    while (found := names.find(piece, end)) >= 0:
        start, end = names.rfind(b"\0", 0, found) + 1, names.find(b"\0", found)
        yield names[start:end]
