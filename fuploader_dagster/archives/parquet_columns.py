"""The columns of a Parquet archive: what they are called, of what type, and each member's values.

What must always hold: columns only repeat what the content says; a value that does not fit its
column is NULL there, and the content has it. The same members give the same columns.

`_name` and `_content` are a member's name and bytes, `_header_NAME` the message headers that are
kept. All other columns are fields of the content, if that is a JSON object. Their types are given,
or found by looking at all members: a field whose values are all of one kind has its type, whole and
other numbers together are `double`, everything else is `string`, where what is no text is JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from fuploader_dagster.archives.json_lines import json_value
from fuploader_dagster.disk.header_text import from_text
from fuploader_dagster.settings.archive_formats import is_column

NAME, CONTENT, HEADER = "_name", "_content", "_header_"
MOST_COLUMNS = 500
"""Found by looking. Fields beyond that are in the content alone."""
MOST_NAME_BYTES = 255
"""So are fields with longer names: the footer repeats all names for each row group."""
_INT64 = 2**63


def fields_of(content: bytes) -> Mapping[str, Any]:
    """The fields of a JSON object; none of anything else."""
    try:
        value = json_value(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def header_columns(headers: Iterable[str]) -> list[str]:
    """The names of all headers in these texts, sorted."""
    return sorted({name for text in set(headers) for name in from_text(text)})


class FoundColumns:
    """Finds the types of fields by looking at each member once."""

    def __init__(self) -> None:
        self._kinds: dict[str, set[type]] = {}

    def look_at(self, content: bytes) -> None:
        for field, value in fields_of(content).items():
            kinds = self._kinds.get(field)
            if kinds is None:
                if len(self._kinds) >= MOST_COLUMNS or not _is_column(field):
                    continue
                kinds = self._kinds[field] = set()
            if value is not None:
                kinds.add(_kind(value))

    def columns(self) -> dict[str, str]:
        return {field: _type_for(kinds) for field, kinds in self._kinds.items()}


def _is_column(field: str) -> bool:
    return is_column(field) and len(field.encode()) <= MOST_NAME_BYTES


def _kind(value: Any) -> type:
    if isinstance(value, int) and not isinstance(value, bool) and not _fits(value):
        return object
    return type(value)


def _fits(value: int) -> bool:
    return -_INT64 <= value < _INT64


def _type_for(kinds: set[type]) -> str:
    if kinds == {bool}:
        return "bool"
    if kinds == {int}:
        return "int64"
    return "double" if kinds and kinds <= {int, float} else "string"


def as_type(value: Any, column_type: str) -> Any:
    """The value in a column of this type; None if it does not fit."""
    return None if value is None else _CONVERSIONS[column_type](value)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _as_double(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        made = float(value)
    except OverflowError:
        return None
    return made if made == value else None  # whole numbers beyond 2**53 may be others as doubles


def _as_int64(value: Any) -> int | None:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number and _fits(value) else None


_CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "bool": lambda value: value if isinstance(value, bool) else None,
    "int64": _as_int64,
    "double": _as_double,
    "string": _as_text,
}
