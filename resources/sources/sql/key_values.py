"""The values of a row's key, as JSON: in positions and claims, and in message ids.

What must always hold: a value comes back from JSON as it was read from the database, so that the
database compares it in the same way. A key has no NULL.

Format: a list of [type, text] for each column; types are bool, int, float, decimal, str, bytes (as
hex), datetime, date, time, seconds (a time of MySQL's) and uuid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from fuploader_dagster.errors import SourceRefused

Key = tuple[Any, ...]

_TYPES: Mapping[type, tuple[str, Callable[[Any], str], Callable[[str], Any]]] = {
    bool: ("bool", lambda value: str(int(value)), lambda text: bool(int(text))),
    int: ("int", str, int),
    float: ("float", repr, float),
    Decimal: ("decimal", str, Decimal),
    str: ("str", str, str),
    bytes: ("bytes", lambda value: value.hex(), bytes.fromhex),
    datetime: ("datetime", lambda value: value.isoformat(), datetime.fromisoformat),
    date: ("date", lambda value: value.isoformat(), date.fromisoformat),
    time: ("time", lambda value: value.isoformat(), time.fromisoformat),
    timedelta: (
        "seconds",
        lambda value: str(value // timedelta(microseconds=1)),
        lambda text: timedelta(microseconds=int(text)),
    ),
    UUID: ("uuid", str, UUID),
}
_READERS = {name: read for name, _, read in _TYPES.values()}


def encoded(key: Key) -> list[list[str]]:
    """For JSON. Raises `SourceRefused` for a type that cannot be a key."""
    return [_encoded(value) for value in key]


def decoded(parts: Sequence[Sequence[str]]) -> Key:
    """The values of what `encoded` made. Raises `ValueError`, `LookupError` or `TypeError` for
    anything else."""
    return tuple(_READERS[name](text) for name, text in parts)


def in_a_word(key: Key) -> str:
    """The key as the id of a message."""
    return ",".join(text for _, text in encoded(key))


def _encoded(value: Any) -> list[str]:
    known = _TYPES.get(type(value))
    if known is None:
        raise SourceRefused(
            f"a column of the key has values of the type {type(value).__name__}",
            hint="name columns with numbers, texts, dates or UUIDs",
        )
    name, write, _ = known
    return [name, write(value)]
