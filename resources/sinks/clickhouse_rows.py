"""The rows of one delivery, on their way: checked, encoded as blocks, and kept until all are known.

What must always hold: an item is kept with all its rows or with none. Memory holds one chunk of
rows; the blocks are in a temporary file, in memory while it is small. Reading it again gives the
same blocks, so an INSERT that is repeated has the same content.

A block is what ClickHouse's format Native has: columns of rows that have the same columns. Within
an INSERT blocks may have different columns; the server fills in defaults, and makes one part of
them all. An INSERT takes up to `INSERT_ROWS` rows or `INSERT_BYTES`, which is one block to the
server (max_insert_block_size is 1,048,449).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from types import TracebackType
from typing import Any, NamedTuple

from fuploader_dagster.contracts.sink import ItemRows, Row
from fuploader_dagster.resources.sinks.clickhouse_blocks import (
    Waiting,
    encoded,
    encoded_column,
    number,
)
from fuploader_dagster.resources.sinks.clickhouse_table import Column, Table, UnknownColumn
from fuploader_dagster.resources.sinks.rejections import Rejections
from fuploader_dagster.resources.sql.values import Unfit

CHUNK_ROWS = 10_000
CHUNK_BYTES = 2 << 20
INSERT_ROWS = 1_000_000
INSERT_BYTES = 64 << 20
_IN_MEMORY_BYTES = 4 << 20
_ROW_BYTES = 64
_LARGE_TYPES = {"String", "FixedString", "Array", "Map", "Tuple", "JSON"}
_MOST_SHAPES = 1_000


class Block(NamedTuple):
    """Where an encoded block is in the file."""

    start: int
    length: int
    columns: tuple[str, ...]
    rows: int


class _Shape:
    """Of rows that have the same columns, in whatever order."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = columns
        self.names = tuple(one.name for one in columns)
        self.sized = [
            place for place, one in enumerate(columns) if one.type.base_type in _LARGE_TYPES
        ]
        """Places of values that may be large."""
        # Of a single name, `itemgetter` gives the value without a tuple around it.
        self._values = itemgetter(*self.names) if len(columns) > 1 else None

    def take(self, row: Row) -> tuple[_Shape, tuple[Any, ...]]:
        """The values of a row."""
        if self._values is None:
            return self, (row[self.names[0]],)
        return self, self._values(row)


class RowsToStore:
    """Use as a context manager: the temporary file goes with it."""

    def __init__(self, table: Table, look_again: Callable[[], Table]) -> None:
        """`look_again`: asks the server for the table, which may have got a column since."""
        self.table = table
        self.rows = 0
        self.items = 0
        """Kept, with rows."""
        self.rejections = Rejections()
        self._look_again: Callable[[], Table] | None = look_again
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115
        self._end = 0
        self._blocks: list[Block] = []
        self._shapes: dict[tuple[str, ...], _Shape] = {}
        self._waiting: dict[tuple[str, ...], Waiting] = {}
        self._waiting_rows = self._waiting_bytes = 0
        self._waiting_items = 0

    def __enter__(self) -> RowsToStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, items: Iterable[ItemRows]) -> None:
        """Take them all; those that are bad are in `rejections` afterwards."""
        for item in items:
            if item.rows:
                self._take(item)
            if self._waiting_rows >= CHUNK_ROWS or self._waiting_bytes >= CHUNK_BYTES:
                self._encode()
        self._encode()

    def inserts(self) -> Iterator[Sequence[Block]]:
        """The blocks of each INSERT."""
        some: list[Block] = []
        rows = size = 0
        for block in self._blocks:
            if some and (rows + block.rows > INSERT_ROWS or size + block.length > INSERT_BYTES):
                yield some
                some, rows, size = [], 0, 0
            some.append(block)
            rows += block.rows
            size += block.length
        if some:
            yield some

    def sent(self, blocks: Sequence[Block], slot: str) -> Iterator[bytes]:
        """The blocks as they are sent, with the column that says whose rows they are."""
        column = self.table.columns[self.table.slot_column]
        slots: tuple[int, bytes] = (0, b"")
        for block in blocks:
            if slots[0] != block.rows:
                slots = (block.rows, bytes(encoded_column(column, [slot] * block.rows)))
            head = bytearray()
            number(len(block.columns) + 1, head)
            number(block.rows, head)
            self._file.seek(block.start)
            yield bytes(head)
            yield self._file.read(block.length)
            yield slots[1]

    def _take(self, item: ItemRows) -> None:
        try:
            taken = [self._shape(tuple(row)).take(row) for row in item.rows]
        except UnknownColumn as error:
            if self._look_again is not None:
                self._encode()  # by what was known when they came
                self.table, self._look_again = self._look_again(), None
                self._shapes.clear()
                self._take(item)
                return
            self.rejections.add_unknown_column(item.position, str(error))
            return
        except Unfit as error:
            self.rejections.add(item.position, str(error))
            return
        for shape, values in taken:
            waiting = self._waiting.get(shape.names)
            if waiting is None:
                waiting = self._waiting[shape.names] = Waiting(shape.columns, [], [])
            waiting.items.append(item.position)
            waiting.values.append(values)
            self._waiting_bytes += _ROW_BYTES
            for place in shape.sized:
                one = values[place]
                self._waiting_bytes += len(one) if type(one) is str else _size(one)
        self._waiting_rows += len(taken)
        self._waiting_items += 1

    def _shape(self, names: tuple[str, ...]) -> _Shape:
        shape = self._shapes.get(names)
        if shape is None:
            if len(self._shapes) >= _MOST_SHAPES:
                self._shapes.clear()
            shape = self._shapes[names] = _Shape(self.table.shape(sorted(names)))
        return shape

    def _encode(self) -> None:
        """Turn what waits into blocks."""
        blocks, bad = encoded(list(self._waiting.values()))
        for columns, rows, body in blocks:
            self._write(body, columns, rows)
        for position, reason in bad.items():
            self.rejections.add(position, reason)
        self.items += self._waiting_items - len(bad)
        self._waiting.clear()
        self._waiting_rows = self._waiting_bytes = self._waiting_items = 0

    def _write(self, body: bytearray, columns: tuple[str, ...], rows: int) -> None:
        self._file.seek(self._end)
        self._file.write(body)
        self._blocks.append(Block(self._end, len(body), columns, rows))
        self._end += len(body)
        self.rows += rows


def _size(value: Any) -> int:
    """In bytes, about."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return _ROW_BYTES + sum(_size(name) + _size(one) for name, one in value.items())
    if isinstance(value, list | tuple):
        return _ROW_BYTES + sum(map(_size, value))
    return 8


def columns_of(blocks: Sequence[Block]) -> Mapping[str, None]:
    """All columns that one of the blocks has, in their order."""
    return dict.fromkeys(name for block in blocks for name in block.columns)
