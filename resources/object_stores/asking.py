"""One request to a service, and what its answer is worth: the same for all clients.

What must always hold: whatever a service answers, however odd, and whatever its client library
makes of it, the caller gets one of the exceptions of `answers` or an error of ours that names the
request and the address. An answer ends in time and in size; a listing comes to its end.
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
"""What a page of a listing, or an error, may take beyond twice the read time-out."""
COMPLETING_SECONDS = 900.0
"""S3 documents minutes for putting the parts together; meanwhile it sends white space."""


@contextmanager
def asking(
    tried: str,
    address: str,
    meaning: Callable[[Exception], Exception | None],
    *,
    silence_seconds: float,
    body_seconds: float = USUAL_SECONDS,
) -> Iterator[None]:
    """Around one request and all that is read of its answer.

    `meaning` translates what the client library is known to raise, and gives None for the rest.
    """
    handled = sys.exc_info()[1]  # by the caller, at the moment: no error of this request's
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
        if due.late:  # and what came so far was taken for all
            raise late(tried, address)


def _own_error(error: BaseException | None, before: BaseException | None) -> FuploaderError | None:
    """What of ours a client library has wrapped: it reads our archive and asks for our keys."""
    while error is not None and error is not before:
        if isinstance(error, FuploaderError):
            return error
        error = error.__cause__ or error.__context__
    return None


def pages(
    first: Token, ask: Callable[[Token], tuple[Iterable[T], Token | None]], tried: str, address: str
) -> Iterator[T]:
    """All pages of a listing. `ask` gives a page and where the next one begins, None at the end."""
    seen: set[Token] = set()
    place: Token | None = first
    while place is not None:
        if place in seen:
            raise makes_no_sense(tried, address, "its pages lead in a circle")
        seen.add(place)
        found, place = ask(place)
        yield from found


def reading_seconds(length: int) -> float:
    """The time that an answer of so many bytes may take."""
    return max(USUAL_SECONDS, length / SLOWEST_BYTES_PER_SECOND)


def exact_range(  # noqa: PLR0917 - all of an answer
    tried: str,
    address: str,
    wanted: tuple[int, int],
    status: int,
    headers: Mapping[str, str],
    read: Callable[[int], bytes],
) -> bytes:
    """The bytes of `wanted` (offset, length) out of the answer to it, never more in memory.

    `headers` have names in lower case; `read` gives at most so many bytes, none at the end.
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
            raise makes_no_sense(tried, address, f"asked from byte {offset}, it sent from {first}")
        expected = last - first + 1
    data = _up_to(read, length + 1)
    if len(data) > length:
        raise makes_no_sense(tried, address, f"asked for {length} bytes, it sent more")
    if expected is not None and len(data) != expected:
        raise HTTPError(f"{len(data)} of {expected} bytes came")
    return data


def _up_to(read: Callable[[int], bytes], most: int) -> bytes:
    pieces, left = [], most
    while left > 0 and (piece := read(left)):
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
