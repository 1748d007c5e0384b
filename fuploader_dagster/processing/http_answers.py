"""What a handler's answer means: results, a bad item, or "try again".

What must always hold: what any item could get (a wrong address, a login page, a handler that is
down or being deployed) is a `RetryItem`, so it makes no dead letters as long as it is all that the
handler has to say. Only what the handler says about this item is a `BadItem`.

| answer | error | because |
|---|---|---|
| 300 to 399 | `RetryItem` | redirects are not followed: `url` is wrong for every item |
| 401, 402, 403, 407 | `RetryItem` | login, rights or a quota: the same for every item |
| 404, 405, 410, 415, 421, 426 | `RetryItem` | `url` or `body` is wrong, or a deployment runs |
| 408, 425, 429 | `RetryItem` | it asks for another attempt |
| 409, 423 | `RetryItem` | it still works on an earlier attempt with this Idempotency-Key |
| any other 400 to 499 | `BadItem` | it refuses this item |
| 500 and above, below 200 | `RetryItem` | it failed |
| 200 to 299, not as configured | `RetryItem` | mostly something in between answered |

An item that always gets such a `RetryItem` while others succeed becomes a dead letter all the same,
after its last retry.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from fuploader_dagster.contracts.processor import Result
from fuploader_dagster.contracts.retry_after import pause_seconds
from fuploader_dagster.errors import UNREADABLE_JSON, BadItem, FuploaderError, RetryItem

JSON_TYPE = "application/json"

_HINTS = {
    401: "check the handler's login in `headers`",
    402: "check the account at the handler",
    403: "check the handler's login in `headers`, and its rights",
    404: "check the path in `url`",
    405: "check the path in `url`: the handler has to take POST there",
    407: "a proxy in between asks for a login",
    410: "check the path in `url`",
    415: "check `body`, and the Content-Type in `headers`",
    421: "check the host in `url`",
    426: "check whether `url` has to begin with https://",
}
_PASSING = {408, 409, 423, 425, 429}


@dataclass(frozen=True)
class Refusal:
    """An answer that is no success. Its texts may be shown."""

    status: int
    said: str
    """How its body begins."""
    retry_after: str | None = None
    location: str = ""
    """Where a redirect leads."""


def error_for(tried: str, refusal: Refusal, now_seconds: float) -> FuploaderError:
    """The error to raise for it."""
    status = refusal.status
    text = f"{tried}: the handler answered {status}"
    if 300 <= status < 400:
        target = refusal.location or "nowhere"
        return RetryItem(
            f"{text}, a redirect to {target}, which is not followed",
            hint="if the handler is there, set that address as `url`",
        )
    if refusal.said:
        text += f": {refusal.said}"
    if 400 <= status < 500 and status not in _HINTS and status not in _PASSING:
        return BadItem(text)
    return RetryItem(
        text,
        hint=_HINTS.get(status, ""),
        retry_after_seconds=pause_seconds(refusal.retry_after, now_seconds),
    )


@dataclass(frozen=True)
class Reading:
    """How answers are read."""

    as_json: bool
    """Results are taken from JSON; else the whole answer is one result."""
    path: tuple[str, ...]
    """Fields that lead to them, from the outside in."""
    per_item: bool
    """They are a list with one element per item, because items are sent in batches."""


def read_results(
    tried: str, content: bytes, content_type: str, reading: Reading, items: int
) -> list[list[Result]]:
    """The results of each item. An empty answer: none for any of them.

    Raises `BadItem` if a batch has to be taken apart, and `RetryItem` for an answer that does not
    fit the settings.
    """
    if not content:
        return [[] for _ in range(items)]
    if not reading.as_json:
        return [[Result(content, content_type=content_type)]]
    try:
        found = _at(tried, content, reading.path)
        if not reading.per_item:
            return [_results(found)]
        if not found.startswith(b"["):
            raise _misfit(tried, f"{_place(reading.path)} is not a list", items)
        elements = _elements(found)
    except UNREADABLE_JSON as error:
        raise _misfit(tried, f"the answer is not JSON: {error}", 1) from None
    if len(elements) != items:
        said = f"{_place(reading.path)} has {len(elements)} elements for {items} items"
        raise _misfit(tried, said, items)
    return [_results(element) for element in elements]


def _results(value: bytes) -> list[Result]:
    """Of one item: null, a list, or one result."""
    if value == b"null":
        return []
    values = _elements(value) if value.startswith(b"[") else [value]
    return [Result(one, content_type=JSON_TYPE) for one in values]


def _at(tried: str, content: bytes, path: tuple[str, ...]) -> bytes:
    """The JSON text that the path leads to. No number in it is rounded, nothing is reordered."""
    found = bytes(msgspec.json.decode(content, type=msgspec.Raw))
    for depth, field in enumerate(path, start=1):
        fields = (
            msgspec.json.decode(found, type=dict[str, msgspec.Raw])
            if found.startswith(b"{")
            else {}
        )
        if field not in fields:
            raise _misfit(tried, f"the answer has no field {'.'.join(path[:depth])}", 1)
        found = bytes(fields[field])
    return found


def _elements(value: bytes) -> list[bytes]:
    return [bytes(one) for one in msgspec.json.decode(value, type=list[msgspec.Raw])]


def _place(path: tuple[str, ...]) -> str:
    return ".".join(path) or "the answer"


def _misfit(tried: str, what: str, items: int) -> FuploaderError:
    if items > 1:
        return BadItem(f"{tried}: {what}")
    return RetryItem(
        f"{tried}: {what}",
        hint="check `answer`, `wrap` and `batch`, and that this is the handler's address",
    )
