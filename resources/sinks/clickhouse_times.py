"""From values to what columns of ClickHouse for days and times hold.

What must always hold: a time without an offset from UTC is UTC, and a number is seconds since 1970.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time, timezone
from decimal import Decimal
from functools import lru_cache
from typing import Any

from fuploader_dagster.resources.sql.values import Unfit

_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)"
    r"(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9})\d*)?)?\s?(?:([Zz])|([+-])(\d\d):?(\d\d)?)?)?"
)
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_FIRST_MOMENT, _LAST_MOMENT = -2_208_988_800, 10_413_791_999
"""Of DateTime64: the years 1900 to 2299."""


def day(first: date, last: date) -> Callable[[Any], Any]:
    """Of Date and Date32: a day between these."""

    def convert(value: Any) -> date:
        found = value
        if isinstance(value, str) and _DAY.fullmatch(value):
            try:
                found = date.fromisoformat(value)
            except ValueError:
                raise Unfit("not a day") from None
        elif isinstance(value, datetime) and value.time() == time():
            found = value.date()
        if not isinstance(found, date) or isinstance(found, datetime):
            raise Unfit("not a day")
        if not first <= found <= last:
            raise Unfit("a day out of range")
        return found

    return convert


def _moment(value: Any) -> tuple[int, int]:
    """Seconds since 1970, and nanoseconds."""
    if isinstance(value, str):
        return _moment_of_text(value)
    if isinstance(value, datetime):
        zone = value.tzinfo or timezone.utc
        try:
            since = value.replace(tzinfo=zone) - _EPOCH
        except OverflowError:
            raise Unfit("a time out of range") from None
        return since.days * 86_400 + since.seconds, since.microseconds * 1_000
    if isinstance(value, date):
        return (value.toordinal() - _EPOCH.toordinal()) * 86_400, 0
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value), 0
    if isinstance(value, float | Decimal) and _FIRST_MOMENT <= value <= _LAST_MOMENT:
        seconds, rest = divmod(Decimal(str(value)).scaleb(9), 10**9)
        return (int(seconds), int(rest)) if rest >= 0 else (int(seconds) - 1, int(rest) + 10**9)
    raise Unfit("not a time")


def _moment_of_text(value: str) -> tuple[int, int]:
    match = _MOMENT.fullmatch(value)
    if match is None:
        raise Unfit("not a time")
    day, hours, minutes, seconds, fraction, _, sign, east_hours, east_minutes = match.groups()
    hour, minute, second = int(hours or 0), int(minutes or 0), int(seconds or 0)
    since = _start_of(day)
    if since is None or hour > 23 or minute > 59 or second > 59:
        raise Unfit("not a time")
    since += hour * 3_600 + minute * 60 + second
    if sign:
        east = int(east_hours) * 3_600 + int(east_minutes or 0) * 60
        since += east if sign == "-" else -east
    return since, int(fraction.ljust(9, "0")) if fraction else 0


@lru_cache(maxsize=1_000)
def _start_of(day: str) -> int | None:
    """Of a day in UTC, in seconds since 1970; None if there is no such day."""
    try:
        return (date.fromisoformat(day).toordinal() - _EPOCH.toordinal()) * 86_400
    except ValueError:
        return None


def seconds(value: Any) -> int:
    """Of DateTime: whole seconds since 1970."""
    whole, _ = _moment(value)
    if not 0 <= whole < 1 << 32:
        raise Unfit("a time out of range")
    return whole


def ticks(scale: int) -> Callable[[Any], Any]:
    """Of DateTime64: units of 10^-scale seconds since 1970."""

    def convert(value: Any) -> int:
        seconds, nanoseconds = _moment(value)
        ticks: int = seconds * 10**scale + nanoseconds // 10 ** (9 - scale)
        if not _FIRST_MOMENT <= seconds <= _LAST_MOMENT or not -(1 << 63) <= ticks < 1 << 63:
            raise Unfit("a time out of range")
        return ticks

    return convert
