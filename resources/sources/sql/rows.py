"""From a row to a message: its body is a JSON object, always the same for the same row.

What must always hold: the bytes depend on the row and on `columns` alone, never on the server, the
session or the time. Fields are in the order of `columns`, by default in that of the table.

- NULL is null; whole numbers up to 64 bits and floating-point numbers are numbers (NaN and infinity
  null), booleans are true and false.
- NUMERIC and DECIMAL become text, all digits as the database writes them: "12.50".
- Bytes become base64.
- Dates and times are written as ISO 8601 says. A time with a zone is in UTC, and ends with Z.
- JSON columns are nested as they are, and arrays become lists. MariaDB's JSON is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from functools import partial
from itertools import chain, repeat, starmap
from operator import itemgetter
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import types

from fuploader_dagster.contracts.source import Message
from fuploader_dagster.disk.header_text import folded
from fuploader_dagster.errors import UNREADABLE_JSON
from fuploader_dagster.resources.sources.sql.key_values import Key, encoded, in_a_word
from fuploader_dagster.resources.sql.values import sort_of

UNREADABLE = "the driver cannot read one of the row's values; the body has only its key"
_message = partial(tuple.__new__, Message)
"""Makes a message of a tuple; twice as fast as its own `_make`, which is written in Python."""
_UNDAMAGED = repeat("")
_PLAIN_NAME = re.compile(r"[^\x00-\x1f\x7f\"\\\ud800-\udfff]+")
"""A name that is the same in JSON."""
_MOST_FIELDS = 250
_MINUTE = 60
_HOUR = 3_600

Change = Callable[[Any], Any]


class RowShape:
    """What is selected of a row, and how its body is made."""

    def __init__(
        self, fields: Mapping[str, str], key: Sequence[str], column_types: Mapping[str, Any]
    ) -> None:
        """`fields`: the column of each field of the body."""
        self.names = tuple(fields)
        self.key = tuple(key)
        columns = tuple(fields.values())
        self._selected = (*columns, *(name for name in self.key if name not in columns))
        self._has_more = len(self._selected) > len(columns)
        places = [self._selected.index(name) for name in self.key]
        self._key_of: Callable[[Sequence[Any]], Any] = itemgetter(*places)
        changes = [_change(column_types[column]) for column in columns]
        self._changes = [(at, change) for at, change in enumerate(changes) if change is not None]
        self._encoder = msgspec.json.Encoder(enc_hook=_otherwise)
        self._object = _object(self.names)

    def selected(self) -> list[sa.ColumnClause[Any]]:
        """The columns of the body, then those of the key that are not among them."""
        return [sa.column(name) for name in self._selected]

    def selected_key(self) -> list[sa.ColumnClause[Any]]:
        return [sa.column(name) for name in self.key]

    def messages(self, rows: Sequence[Sequence[Any]], first: int, again: int) -> list[Message]:
        """From rows of `selected`. `first`: the number of the first; so many of them come `again`.

        Python code for each row would take longer than the database does, so here is none if
        no value has to be changed.
        """
        keys = list(map(self._key_of, rows))
        named: Iterable[str]
        if len(self.key) == 1:
            kinds = set(map(type, keys))
            alone, keys = keys, list(zip(keys))
            if kinds == {str}:
                named = alone
            else:
                named = map(str if kinds == {int} else in_a_word, alone if kinds == {int} else keys)
        else:
            named = map(in_a_word, keys)
        bodies = map(self._encoder.encode, starmap(self._object, self._of_bodies(rows)))
        numbers = range(first, first + len(rows))
        redelivered = chain(repeat(True, max(0, again)), repeat(False))
        return list(map(_message, zip(bodies, numbers, redelivered, named, keys, _UNDAMAGED)))  # noqa: B905 - some have no end

    def _of_bodies(self, rows: Sequence[Sequence[Any]]) -> Iterable[Sequence[Any]]:
        """The values of the bodies."""
        width, changes = len(self.names), self._changes
        if self._has_more:
            rows = [row[:width] for row in rows]
        if not changes:
            return rows
        changed = list(map(list, rows))
        for row in changed:
            for at, change in changes:
                row[at] = change(row[at])
        return changed

    def unreadable(self, key: Key, number: int, *, redelivered: bool) -> Message:
        """For a row of which only the key can be read."""
        body = self._encoder.encode(dict(zip(self.key, key, strict=True)))
        return Message(body, number, redelivered, in_a_word(key), key, UNREADABLE)


def _object(names: Sequence[str]) -> Callable[..., Any]:
    """Makes of values what is encoded as an object with these names."""
    if len(names) > _MOST_FIELDS or not all(map(_PLAIN_NAME.fullmatch, names)):
        return lambda *values: dict(zip(names, values, strict=True))
    fields = {f"f{at}": name for at, name in enumerate(names)}
    return msgspec.defstruct("Row", list(fields), rename=fields, gc=False)


def described(message: Message, table: str) -> dict[str, Any]:
    """For a dead letter; the rest is in the body."""
    return {"table": table, "key": [text for _, text in encoded(message.attributes)]}


def chosen(message: Message, wanted: Mapping[str, str]) -> dict[str, Any]:
    """Fields of the row, as headers to be kept. NULL is left out."""
    try:
        fields = msgspec.json.decode(message.body)
    except UNREADABLE_JSON:  # a body that is not ours
        return {}
    named = {folded(name): value for name, value in reversed(fields.items())}
    return {kept_as: named[name] for name, kept_as in wanted.items() if named.get(name) is not None}


def json_as_it_is(text: bytes | str) -> msgspec.Raw:
    """Given to a driver that would decode JSON, and change its numbers."""
    return msgspec.Raw(text)


class NotText(bytes):
    """Text of SQLite that is not UTF-8. It cannot be a key: as bytes it is compared otherwise."""


def text_or_bytes(raw: bytes) -> str | NotText:
    """For SQLite, which does not check that text is UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return NotText(raw)


def _otherwise(value: Any) -> str | bytes:
    return bytes(value) if isinstance(value, NotText) else str(value)


def _change(column_type: Any) -> Change | None:
    if sort_of(column_type) == "json":
        return _json
    item_type = getattr(column_type, "item_type", column_type)
    if isinstance(item_type, types.Numeric) and not isinstance(item_type, types.Float):
        return _digits
    return _clock if isinstance(column_type, types.Time) else None


def _json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    raw = value.encode()
    try:
        msgspec.json.decode(raw)
    except UNREADABLE_JSON:
        return value
    return msgspec.Raw(raw)


def _digits(value: Any) -> Any:
    """All digits: `str` would write 0E-10."""
    if isinstance(value, list):
        return [_digits(one) for one in value]
    return format(value, "f") if isinstance(value, Decimal) else value


def _clock(value: Any) -> Any:
    """MySQL's times, which may be negative and longer than a day."""
    if not isinstance(value, timedelta):
        return value
    sign, size = ("-", -value) if value < timedelta() else ("", value)
    seconds = size // timedelta(seconds=1)
    fraction = f".{size.microseconds:06d}" if size.microseconds else ""
    clock = f"{seconds // _HOUR:02d}:{seconds // _MINUTE % _MINUTE:02d}:{seconds % _MINUTE:02d}"
    return f"{sign}{clock}{fraction}"
