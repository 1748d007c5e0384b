"""Which archives cannot hold a name that contains a given piece: a set of bits for each archive.

For patterns whose start is not known. Searching an archive's list of names takes about a
millisecond, so for a piece that is in few archives, not all lists should be searched.

What must always hold: an archive that holds a name with the piece is never left out. One that does
not may stay in, which costs a search of its list.

How: each six bytes in a row of an archive's names (a gram) set one bit, chosen by a hash. A piece
can only be there if the bits of all its grams are set. Six, because names are mostly numbers or
hashes: shorter grams of digits are in every archive, and longer ones do not help with short pieces.
The bits are divided into `ROWS` rows, and the first bits of the hash choose the row, so that a gram
is looked up in one short row of each archive.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

ROWS = 64
_ROW_CHOICE = ROWS.bit_length() - 1
_GRAM_BYTES = 6
_BITS_PER_GRAM = 2
"""At least this many, and less than twice as many; grams that names share count each time."""
_HASH_BITS = 64
_HASH_MASK = (1 << _HASH_BITS) - 1
_MULTIPLIER = 0x9E3779B97F4A7C15 << 16 & _HASH_MASK
"""2**64 divided by the golden ratio: products of close numbers are far apart. The shift drops the
last two of the eight bytes that are read for a gram of six, at no cost."""


class Gram(NamedTuple):
    """Where the bit of a gram is, in every archive's bits."""

    hash: int

    @property
    def row(self) -> int:
        return self.hash >> _HASH_BITS - _ROW_CHOICE

    def may_be_in(self, row: bytes) -> bool:
        """Whether an archive with these bits in the gram's row may hold the gram."""
        bits = 8 * len(row)
        place = (self.hash >> _HASH_BITS - _ROW_CHOICE - bits.bit_length() + 1) & (bits - 1)
        return bool(row[place >> 3] & 0x80 >> (place & 7))


def grams_of(pieces: Iterable[bytes]) -> Sequence[Gram]:
    """The different grams of pieces of a name, in order. A piece may be too short to have one."""
    grams = (
        int.from_bytes(piece[start : start + _GRAM_BYTES], "little")
        for piece in pieces
        for start in range(len(piece) - _GRAM_BYTES + 1)
    )
    return list(dict.fromkeys(Gram(gram * _MULTIPLIER & _HASH_MASK) for gram in grams))


def gram_rows(names: bytes) -> Sequence[bytes]:
    """The rows of bits of an archive with these names, whatever byte separates them.

    All rows have the same length, a power of two. Takes 5 ms for a thousand names of 24 bytes.
    """
    size = max((_BITS_PER_GRAM * len(names) - 1).bit_length(), _ROW_CHOICE + 3)
    drop, mask = _HASH_BITS - size, (1 << size) - 1
    flags = bytearray(b"0") * (1 << size)
    padded = names + bytes(16)
    for offset in range(8):  # eight bytes at each place
        count = (len(padded) - offset) // 8
        for number in struct.unpack_from(f"<{count}Q", padded, offset):
            flags[number * _MULTIPLIER >> drop & mask] = 49  # "1"
    bits = int(flags, 2).to_bytes(len(flags) // 8, "big")
    row_bytes = len(bits) // ROWS
    return [bits[start : start + row_bytes] for start in range(0, len(bits), row_bytes)]
