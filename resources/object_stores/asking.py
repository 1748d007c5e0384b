"""One request to a service, and the checks of its answer: the same for all clients.

What must always hold: whatever a service answers, however odd, and whatever its client library
makes of it, the caller gets one of the exceptions of `answers` or an error of ours that names the
request and the address. An answer is limited in time and size; a listing ends.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from urllib3.exceptions import HTTPError

from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.resources.object_stores.answers import (
    AlreadyThere,
    Missing,
    PastTheEnd,
    UploadGone,
    ignores_ranges,
    late,
    makes_no_sense,
)
from fuploader_dagster.resources.object_stores.connections import (
    SLOWEST_BYTES_PER_SECOND,
    answer_within,
)
from fuploader_dagster.settings.secret import shown_cause

_DIGITS = re.compile("[0-9]{1,18}")
_PLACED = re.compile("bytes[ =]([0-9]{1,18})-([0-9]{1,18})/")

T = TypeVar("T")
Token = TypeVar("Token", bound=Hashable)

USUAL_SECONDS = 60.0
"""Longest time for a page of a listing, or an error, beyond twice the read time-out."""
COMPLETING_SECONDS = 900.0
"""S3 says that joining the parts may take minutes, in which it sends white space."""


@contextmanager
def asking(
    tried: str,
    address: str,
    meaning: Callable[[Exception], Exception | None],
    *,
    silence_seconds: float,
    body_seconds: float = USUAL_SECONDS,
) -> Iterator[None]:
    """Around one request and all reading of its answer.

    `meaning` translates what the client library is known to raise, and returns None for the rest.
    """
    handled = sys.exc_info()[1]  # the caller is handling it: not an error of this request
    with answer_within(2 * silence_seconds, body_seconds) as due:
        try:
            yield
        except (FuploaderError, AlreadyThere, Missing, PastTheEnd, UploadGone):
            raise
        except Exception as error:
            if (own := _own_error(error, handled)) is not None:
                raise own from error
            if due.late:
                raise late(tried, address) from shown_cause(error)
            ours = meaning(error) or makes_no_sense(tried, address, error)
            raise ours from shown_cause(error)
        if due.late:  # the client library took the part that came for the whole
            raise late(tried, address)


def _own_error(error: BaseException | None, before: BaseException | None) -> FuploaderError | None:
    """The error of ours that a client library has wrapped: it reads our archive, asks our keys."""
    while error is not None and error is not before:
        if isinstance(error, FuploaderError):
            return error
        error = error.__cause__ or error.__context__
    return None


def pages(
    first: Token, ask: Callable[[Token], tuple[Iterable[T], Token | None]], tried: str, address: str
) -> Iterator[T]:
    """All pages of a listing. `ask` returns a page and where the next begins, None at the end."""
    seen: set[Token] = set()
    place: Token | None = first
    while place is not None:
        if place in seen:
            raise makes_no_sense(tried, address, "its pages go round in a circle")
        seen.add(place)
        found, place = ask(place)
        yield from found


def reading_seconds(length: int) -> float:
    """The time that an answer of this length may take."""
    return max(USUAL_SECONDS, length / SLOWEST_BYTES_PER_SECOND)


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
