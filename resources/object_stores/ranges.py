"""A range of an object, read from the answer to a request for it.

What must always hold: the caller gets exactly the bytes that it asked for (fewer only at the
object's end), or an error; no answer fills memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from urllib3.exceptions import HTTPError

from fuploader_dagster.resources.object_stores.answers import ignores_ranges, makes_no_sense
from fuploader_dagster.resources.object_stores.connections import SLOWEST_BYTES_PER_SECOND

SHORTEST_SECONDS = 60.0
_DIGITS = re.compile("[0-9]{1,18}")
_PLACED = re.compile("bytes[ =]([0-9]{1,18})-([0-9]{1,18})/")


def reading_seconds(length: int) -> float:
    """The time that an answer of this length may take."""
    return max(SHORTEST_SECONDS, length / SLOWEST_BYTES_PER_SECOND)


def exact_range(  # noqa: PLR0917 - all of an answer
    tried: str,
    address: str,
    wanted: tuple[int, int],
    status: int,
    headers: Mapping[str, str],
    read: Callable[[int], bytes],
) -> bytes:
    """The bytes of `wanted` (offset, length) from the answer to it, never more in memory.

    Names in `headers` are lower case; `read` returns at most as many bytes as asked, none at the
    end.
    """
    offset, length = wanted
    stated = headers.get("content-length", "")
    expected = int(stated) if _DIGITS.fullmatch(stated) else None
    if status != 206 and not (offset == 0 and expected is not None and expected <= length):
        raise ignores_ranges(tried, address)
    placed = _PLACED.match(headers.get("content-range", ""))
    if placed is not None:
        first, last = int(placed[1]), int(placed[2])
        if first != offset:
            raise makes_no_sense(
                tried, address, f"asked for bytes from {offset}, it sent from {first}"
            )
        expected = last - first + 1
    data = _up_to(read, length + 1)
    if len(data) > length:
        raise makes_no_sense(tried, address, f"asked for {length} bytes, it sent more")
    if expected is not None and len(data) != expected:
        raise HTTPError(f"only {len(data)} of {expected} bytes came")
    return data


def _up_to(read: Callable[[int], bytes], most: int) -> bytes:
    pieces, left = [], most
    while left > 0 and (piece := read(left)):
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
