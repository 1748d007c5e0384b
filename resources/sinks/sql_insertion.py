"""Stores the rows of items in chunks, and finds the items whose rows the database does not take.

What must always hold: an item is stored with all its rows or with none, and only an item whose rows
were refused when they were sent alone is rejected. Memory holds one chunk.

A chunk is sent within a savepoint. If the database refuses it, the savepoint is rolled back, and
each half of the items is sent alone, down to one item. Without a `key`, the rows of a chunk that
have the same columns are sent together, otherwise in their order. With one, the last row of a key
wins, so the order is kept exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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

    def _store(self, items: Sequence[_Prepared]) -> None:
        groups, dialect = self._groups(items), self._transaction.dialect

        def insert(connection: sa.Connection) -> None:
            for statement, rows in groups:
                dialect.insert(connection, statement, rows)

        bad = None
        try:
            self._transaction.attempt(insert, self._trying, names=self._table.description.names)
        except BadRows as error:
            bad = error.meaning
        if bad is None:
            self.rows += sum(len(rows) for _, rows in groups)
            self.items += len(items)
        elif len(items) == 1:
            self.rejections.add(items[0].position, bad.words)
            if bad.kind == "unknown":
                self.unknown = self.unknown or bad
                if len(self.rejections) >= ENOUGH_ITEMS:
                    self.refuse_if_unknown()
        else:
            half = len(items) // 2
            self._store(items[:half])
            self._store(items[half:])

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
