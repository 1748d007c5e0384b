"""From the values of JSON, and of users' own rows, to what a database's driver takes.

What must always hold: a value is stored as it is, or its item is rejected. Nothing is rounded, cut
or replaced on the way to the database, and a reason names the column and what is wrong, never the
value.

- A dict or a list becomes JSON text. A JSON column gets any value as JSON, so a string there is a
  JSON string.
- A time with an offset from UTC is stored as UTC where the column has no time zone. A time without
  an offset is sent as it is; sessions are in UTC.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timezone
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import types

Sort = Literal["json", "array", "integer", "moment", "other"]
"""What matters about a column's type; `moment`: date and time without a time zone."""

_WITH_OFFSET = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d(?::\d\d)?)(?:[.,](\d{1,6})\d*)?\s?(Z|z|[+-]\d\d(?::?\d\d)?)"
)


Convert = Callable[[Any], Any]


class Unfit(Exception):
    """A value that the database cannot take. Never leaves `resources`."""


def sort_of(column_type: types.TypeEngine[Any]) -> Sort:
    """What matters about the type."""
    if isinstance(column_type, types.JSON):
        return "json"
    if isinstance(column_type, types.ARRAY):
        return "array"
    if isinstance(column_type, types.Integer):
        return "integer"
    if isinstance(column_type, types.DateTime) and not getattr(column_type, "timezone", False):
        return "moment"
    return "other"


def text(value: str) -> str:
    """The same, if it can be written as UTF-8."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Unfit("text with half of a surrogate pair") from None
    return value


def json_text(value: Any) -> str:
    try:
        return text(json.dumps(value, ensure_ascii=False, allow_nan=False, default=_json_of))
    except (TypeError, ValueError, RecursionError):
        raise Unfit("what cannot be written as JSON") from None


def _json_of(value: Any) -> Any:
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError


def in_utc(value: str) -> str:
    """A time with an offset in UTC, without an offset; any other text is the same."""
    match = _WITH_OFFSET.fullmatch(value)
    if match is None:
        return value
    day, clock, fraction, offset = match.groups()
    seconds = clock if len(clock) > len("00:00") else f"{clock}:00"
    zone = "+00:00" if offset in "Zz" else f"{offset[:3]}:{offset[3:].strip(':') or '00'}"
    try:
        moment = datetime.fromisoformat(f"{day} {seconds}.{(fraction or '0').ljust(6, '0')}{zone}")
    except ValueError:  # the 31st of February: the database says so better
        return value
    return moment_in_utc(moment).isoformat(" ")


def moment_in_utc(value: datetime) -> datetime:
    """Without an offset; one that has none is the same."""
    if value.tzinfo is None:
        return value
    try:
        return value.astimezone(timezone.utc).replace(tzinfo=None)
    except OverflowError:
        raise Unfit("a time outside of the years 1 to 9999") from None


class Conversion:
    """From a value to what a driver takes for a column. Raises `Unfit`."""

    def __init__(
        self, by_type: Mapping[type, Convert | None], otherwise: Convert | None = None
    ) -> None:
        """`by_type`: None if the driver takes such values as they are. `otherwise`: for all other
        types; by default, a few are made simpler, and the rest is unfit."""
        self.by_type = by_type
        self.otherwise = otherwise or self._simpler

    def __call__(self, value: Any) -> Any:
        convert = self.by_type.get(type(value), self.otherwise)
        return value if convert is None else convert(value)

    def _simpler(self, value: Any) -> Any:
        return self(_simpler(value))


AS_JSON = Conversion({type(None): None}, json_text)


def _simpler(value: Any) -> Any:
    """A value of a subclass as one of a plain type, and a few types that no driver knows."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    for plain in (int, float, str):
        if isinstance(value, plain):
            return plain(value)
    if isinstance(value, UUID):
        return str(value)
    raise Unfit(f"a value of the Python type {type(value).__name__}")
