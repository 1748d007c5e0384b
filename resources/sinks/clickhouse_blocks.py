"""Encodes rows as blocks of ClickHouse's format Native, and finds those that cannot be stored.

What must always hold: an item is encoded with all its rows or with none. A column is converted as a
whole (`clickhouse_values`) and written by clickhouse-connect; if it refuses one nevertheless, each
half is tried alone, down to one value.

Format of a block: the numbers of columns and rows, in LEB128; then for each column its name and
its type, each with its length in LEB128 before it, and its values. What is made here lacks the two
numbers, because a column is added when it is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any, NamedTuple

from fuploader_dagster.resources.sinks.clickhouse_table import Column

_CANNOT_SEND = "the client cannot send one of the values"


class Waiting(NamedTuple):
    """Rows that have the same columns."""

    columns: Sequence[Column]
    items: list[int]
    """Of each row: the position of its item."""
    values: list[tuple[Any, ...]]


class Encoded(NamedTuple):
    """A block without its numbers."""

    columns: tuple[str, ...]
    rows: int
    body: bytearray


def encoded(waiting: Sequence[Waiting]) -> tuple[list[Encoded], dict[int, str]]:
    """A block of each, without the items that cannot be stored; and the reasons of those, by their
    positions."""
    bad: dict[int, str] = {}
    fit = [(some, _converted(some, bad)) for some in waiting]
    while True:
        known = len(bad)
        made = [_block(some, columns, bad) for some, columns in fit]
        if len(bad) == known:  # else again, without those
            return [one for one in made if one.rows], bad


def _converted(waiting: Waiting, bad: dict[int, str]) -> list[Sequence[Any]]:
    columns: list[Sequence[Any]] = []
    for at, column in enumerate(waiting.columns):
        values = [row[at] for row in waiting.values]
        assert column.kind is not None  # noqa: S101 - `Table.shape` has seen to it
        fit, unfit = column.kind.column(values)
        columns.append(fit)
        for place, reason in unfit.items():
            bad.setdefault(waiting.items[place], f"column {column.name}: {reason}")
    return columns


def _block(waiting: Waiting, columns: Sequence[Sequence[Any]], bad: dict[int, str]) -> Encoded:
    """Of the items that are not bad. Those that turn out to be are added to them."""
    items: Sequence[int] = waiting.items
    keep = [item not in bad for item in items] if bad else []
    if not all(keep):
        columns = [list(compress(one, keep)) for one in columns]
        items = list(compress(items, keep))
    body = bytearray()
    for column, values in zip(waiting.columns, columns, strict=True):
        for place in _append(column, values, body):
            bad.setdefault(items[place], f"column {column.name}: {_CANNOT_SEND}")
    return Encoded(tuple(one.name for one in waiting.columns), len(items), body)


def _append(column: Column, values: Sequence[Any], body: bytearray) -> Sequence[int]:
    """Append the column to the block; or the places of values that the driver cannot send."""
    if not values:
        return ()
    try:
        body += encoded_column(column, values)
        return ()
    except Exception as error:
        if isinstance(error, MemoryError | ImportError):
            raise
    if len(values) == 1:
        return (0,)
    half = len(values) // 2
    first = _append(column, values[:half], bytearray())
    return [*first, *(half + one for one in _append(column, values[half:], bytearray()))]


def encoded_column(column: Column, values: Sequence[Any]) -> bytearray:
    """As it is in a block."""
    from clickhouse_connect.driver.insert import InsertContext  # noqa: PLC0415  an extra

    data = bytearray()
    for word in (column.name, column.type.insert_name):
        text = word.encode()
        number(len(text), data)
        data += text
    context = InsertContext("", [column.name], [column.type])
    context.start_column(column.name)
    column.type.write_column(_of_one_type(values), data, context)
    return data


def number(value: int, data: bytearray) -> None:
    """Append it in LEB128."""
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)


def _of_one_type(values: Sequence[Any]) -> Sequence[Any]:
    """Text as bytes if some of it is: the driver takes all of a column for what the first is."""
    if bytes in set(map(type, values)):
        return [one.encode() if isinstance(one, str) else one for one in values]
    return values
