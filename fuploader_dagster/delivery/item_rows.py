"""From an item to its rows: the fields of its JSON, or what a user's function makes of it.

What must always hold: an item that has no rows for a reason raises `BadItem`, and the reason has no
value of the item in it: it is logged and shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from fuploader_dagster.contracts.functions import USER_ERRORS, name_of
from fuploader_dagster.contracts.processor import Item
from fuploader_dagster.contracts.sink import Row, SinkSettings
from fuploader_dagster.delivery.unforeseen import type_and_place
from fuploader_dagster.errors import UNREADABLE_JSON, BadItem, TemporaryError

_decode = msgspec.json.Decoder().decode

RowsOf = Callable[[Item], Sequence[Row]]


def rows_of(settings: SinkSettings) -> RowsOf:
    """The function that makes the rows of an item, as the settings say. It raises `BadItem`."""
    function = settings.rows
    if function is not None:
        return lambda item: _called(function, item)
    if settings.columns is None:
        return _objects
    given = settings.columns
    fields = given if isinstance(given, Mapping) else {name: name for name in given}
    paths = [
        (column, field, field.split(".") if "." in field else None)
        for column, field in fields.items()
    ]
    return lambda item: [
        {
            column: one.get(field) if path is None else _field(one, field, path)
            for column, field, path in paths
        }
        for one in _objects(item)
    ]


def _objects(item: Item) -> Sequence[dict[str, Any]]:
    found = _value(item.content)
    if type(found) is dict:  # as nearly always
        return [found]
    rows = found if isinstance(found, list) else [found]
    if not all(isinstance(row, dict) for row in rows):
        raise BadItem("it is JSON, but neither an object nor a list of objects")
    return rows


def _value(content: bytes) -> Any:
    """As `json.loads` reads it. Where msgspec reads something, it is the same in a quarter of the
    time; what it refuses (NaN, UTF-16, half a surrogate pair) may still be read."""
    with suppress(*UNREADABLE_JSON):
        return _decode(content)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadItem(f"it is not JSON: {_without_values(error)}") from None


def _without_values(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__


def _field(row: dict[str, Any], field: str, path: Sequence[str]) -> Any:
    """The value of a field, or of one inside it; None if there is no such field."""
    if field in row:
        return row[field]
    found: Any = row
    for part in path:
        if not isinstance(found, dict):
            return None
        found = found.get(part)
    return found


def _called(function: Callable[[Item], Any], item: Item) -> Sequence[Row]:
    try:
        made = function(item)
    except (BadItem, TemporaryError):
        raise
    except USER_ERRORS as error:  # its text may quote the item
        raise BadItem(f"{name_of(function)} raised {type_and_place(error)}") from None
    rows = [] if made is None else [made] if isinstance(made, Mapping) else made
    if not isinstance(rows, (list, tuple)):
        raise BadItem(f"{name_of(function)} gave a {type(made).__name__}, not a row or a list")
    for row in rows:
        if not isinstance(row, Mapping) or not all(isinstance(name, str) for name in row):
            raise BadItem(f"{name_of(function)} gave a row that is no dict of names and values")
    return rows
