"""Mutations of valid inputs, drawn by hypothesis."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

from hypothesis import strategies as st

Edit = tuple[int, int, int]
"""What, where, and with what; any numbers do."""

INTERESTING = (
    *(b"\0", b"\xff", b"\0" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\xff" * 7 + b"\x7f"),
    *(b"0", b"9" * 25, b"-1", b"1e400", b"null", b"NaN", b"true", b'""', b"[]", b"{}", b"'"),
    *(b'"', b"\\", b"\n", b" ", b",", b":", b"../", b"/", b"\\ud800", b"\xc3", b"\xed\xa0\x80"),
    *(b"[" * 1200, b'{"a":' * 1200, b"!!int ''", b"0b_", b"2026-13-45", b"&a [*a]", b"~nobody"),
    *(b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18", b"\x1f\x8b\x08\x00", b"9" * 5000),
)

VARIANTS = 16
"""Inputs made of one draw. hypothesis takes half a millisecond for a draw, most readers less."""
_EDIT_BYTES = 8
_MOST_EDITS = 5

draws: st.SearchStrategy[bytes] = st.binary(min_size=2, max_size=2 + _EDIT_BYTES * _MOST_EDITS)


def choices(drawn: bytes, variant: int) -> tuple[int, list[Edit], bool]:
    """Base, changes, and whether checksums are put right. Variant 0 is what was drawn, so that
    hypothesis can make it smaller; the others follow from it by chance."""
    if variant:
        dice = random.Random(drawn + bytes([variant]))
        drawn = dice.randbytes(2 + _EDIT_BYTES * dice.randint(0, _MOST_EDITS))
    places = range(2, len(drawn) - _EDIT_BYTES + 1, _EDIT_BYTES)
    edits = [struct.unpack_from("<BHxI", drawn, at) for at in places]
    return drawn[0], [(kind % 9, place, value) for kind, place, value in edits], drawn[1] % 2 == 1


def mutated(base: bytes, changes: Sequence[Edit], others: Sequence[bytes]) -> bytes:
    """The base after all changes. `others`: from which pieces are taken."""
    data = bytearray(base)
    for kind, place, value in changes:
        at = place % (len(data) + 1)
        size = 1 + value % 64
        if kind == 0 and at < len(data):
            data[at] ^= 1 << value % 8
        elif kind == 1 and at < len(data):
            data[at] = value % 256
        elif kind == 2:
            data[at : at + value % 9] = value.to_bytes(4, "little") * 2
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size] * (1 + value % 3)
        elif kind == 5:
            data[at:at] = INTERESTING[value % len(INTERESTING)]
        elif kind == 6:
            piece = INTERESTING[value % len(INTERESTING)]
            data[at : at + len(piece)] = piece
        elif kind == 7:
            other = others[value % len(others)]
            begin = value // 7 % (len(other) + 1)
            data[at : at + size] = other[begin : begin + size * 4]
        elif kind == 8:
            del data[at:]
    return bytes(data)
