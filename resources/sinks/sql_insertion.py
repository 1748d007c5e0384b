"""Stores the rows of items in chunks, and finds the items whose rows the database does not take.

What must always hold: an item is stored with all its rows or with none, and only an item whose rows
were refused when they were sent alone is rejected. Memory holds one chunk.

A chunk is sent within a savepoint. If the database refuses it, the savepoint is rolled back, and
each half of the items is sent alone, down to one item. Where the database says which row it is, its
item is sent alone at once, between those before it and those after it. Without a `key`, the rows of
a chunk that have the same columns are sent together, otherwise in their order. With one, the last
row of a key wins, so the order is kept exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import sqlalchemy as sa

from fuploader_dagster.contracts.sink import ItemRows
from fuploader_dagster.resources.sinks.rejections import ENOUGH_ITEMS, Rejections
from fuploader_dagster.resources.sinks.sql_table import PreparedRow, TargetTable, UnknownColumn
from fuploader_dagster.resources.sql.connection import Transaction
from fuploader_dagster.resources.sql.dialect import Statement
from fuploader_dagster.resources.sql.errors import OF_A_SINK, BadRows, Meaning, explained
from fuploader_dagster.resources.sql.values import Unfit

CHUNK_ROWS = 1_000
CHUNK_BYTES = 4 << 20
_FEW_ITEMS = 8
"""Are sent after a bad one, if it came early."""


class _Prepared(NamedTuple):
    """An item that is ready to be sent."""

    position: int
    rows: Sequence[PreparedRow]


class Insertion:
    """The rows of one delivery, in its transaction."""

    def __init__(
        self,
        transaction: Transaction,
        table: TargetTable,
        slot: str,
        *,
        look_again: Callable[[], TargetTable],
    ) -> None:
        """`look_again`: asks the database for the table, which may have got a column since."""
        self.rows = 0
        self.items = 0
        """Stored, with rows."""
        self.rejections = Rejections()
        self.unknown: Meaning | None = None
        """The first error of which nobody knows whether an item is to blame."""
        self._transaction, self._table, self._slot = transaction, table, slot
        self._look_again: Callable[[], TargetTable] | None = look_again
        self._trying = f"could not insert into table {table.description.name}"

    def add(self, items: Iterable[ItemRows]) -> None:
        """Store them all; those that are bad are in `rejections` afterwards."""
        for chunk in self._chunks(items):
            self._store(chunk)

    def _chunks(self, items: Iterable[ItemRows]) -> Iterator[list[_Prepared]]:
        chunk: list[_Prepared] = []
        rows = size = 0
        for item in items:
            if not item.rows:
                continue
            prepared = self._prepared(item)
            if prepared is None:
                continue
            chunk.append(prepared)
            for row in prepared.rows:
                rows += 1
                size += row.size
            if rows >= CHUNK_ROWS or size >= CHUNK_BYTES:
                yield chunk
                chunk, rows, size = [], 0, 0
        if chunk:
            yield chunk

    def _prepared(self, item: ItemRows) -> _Prepared | None:
        try:
            rows = [self._table.prepared(row, self._slot) for row in item.rows]
            return _Prepared(item.position, rows)
        except UnknownColumn as error:
            if self._look_again is not None:
                self._table, self._look_again = self._look_again(), None
                return self._prepared(item)
            self.rejections.add_unknown_column(item.position, str(error))
        except Unfit as error:
            self.rejections.add(item.position, str(error))
        return None

    def _store(self, chunk: Sequence[_Prepared]) -> None:
        left = [chunk]
        while left:
            items = left.pop()
            bad = self._refused(items)
            if bad is None:
                self.items += len(items)
            elif len(items) == 1:
                self._reject(items[0], bad)
            else:
                left += self._parts(items, bad.row)

    def _refused(self, items: Sequence[_Prepared]) -> Meaning | None:
        """Why the database does not take these items together; None if they are stored."""
        groups, dialect = self._groups(items), self._transaction.dialect

        def insert(connection: sa.Connection) -> None:
            for statement, rows in groups:
                dialect.insert(connection, statement, rows)

        try:
            self._transaction.attempt(insert, self._trying, names=self._table.description.names)
        except BadRows as error:
            return error.meaning
        self.rows += sum(len(rows) for _, rows in groups)
        return None

    def _reject(self, item: _Prepared, bad: Meaning) -> None:
        self.rejections.add(item.position, bad.words)
        if bad.kind == "unknown":
            self.unknown = self.unknown or bad
            if len(self.rejections) >= ENOUGH_ITEMS:
                self.refuse_if_unknown()

    def _parts(self, items: Sequence[_Prepared], row: int | None) -> list[Sequence[_Prepared]]:
        """What to send next, the first one last: the halves, or, if the database says which row is
        to blame, what is before its item, the item, some of what follows, and the rest."""
        place = None if row is None else _item_of(items, row)
        if place is None:
            half = len(items) // 2
            return [items[half:], items[:half]]
        some = place + 1 + max(_FEW_ITEMS, 2 * place)
        parts = [items[some:], items[place + 1 : some], items[place : place + 1], items[:place]]
        return [part for part in parts if part]

    def refuse_if_unknown(self) -> None:
        """Raise `SinkRefused` if no item was stored, and nobody knows whose fault it is."""
        if self.unknown is not None and not self.items:
            raise explained(self.unknown, self._trying, OF_A_SINK)

    def _groups(
        self, items: Sequence[_Prepared]
    ) -> Sequence[tuple[Statement, list[tuple[Any, ...]]]]:
        groups: list[tuple[Statement, list[tuple[Any, ...]]]] = []
        by_statement: dict[str, list[tuple[Any, ...]]] = {}
        for item in items:
            for statement, values, _ in item.rows:
                if self._table.key and groups and groups[-1][0] is not statement:
                    by_statement.clear()
                rows = by_statement.get(statement.sql)
                if rows is None:
                    rows = by_statement[statement.sql] = []
                    groups.append((statement, rows))
                rows.append(values)
        return groups


def _item_of(items: Sequence[_Prepared], row: int) -> int | None:
    """The item that has this one of all rows; None if they are not sent in their order."""
    if len({id(one.statement) for item in items for one in item.rows}) != 1:
        return None
    ends = accumulate(len(item.rows) for item in items)
    return next((place for place, end in enumerate(ends) if row < end), None)
