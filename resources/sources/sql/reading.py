"""Reads a table by a cursor, or what has no result yet: one reader at a time, with a position.

What must always hold:

- Rows are read in the order of the key, after the position, and no further than the horizon. The
  position moves at `settle`, and is durable when that returns.
- One process reads; others wait, and one takes over when it ends. A table that several workers
  should read at once needs `status`.
- The first rows after a position that another process left may have been delivered before. As many
  as that process can have had in hand are marked as redelivered.
- With `skip_done`, the table is read in passes. A later pass gives the rows again that still have
  no result, marked as redelivered, and those that came late, for the first time.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from fuploader_dagster.contracts.source import Message
from fuploader_dagster.resources.sources.sql.horizon import Horizon
from fuploader_dagster.resources.sources.sql.key_values import Key
from fuploader_dagster.resources.sources.sql.paging import PAGE_ROWS, PagedSource, PageOf
from fuploader_dagster.resources.sources.sql.position import State
from fuploader_dagster.resources.sources.sql.rows import RowShape
from fuploader_dagster.resources.sources.sql.table import Keyset
from fuploader_dagster.resources.sql.connection import Transaction

if TYPE_CHECKING:
    from fuploader_dagster.resources.sources.sql.source import SqlTable


class ReadingSource(PagedSource):
    def __init__(self, settings: SqlTable, prefetch: int) -> None:
        super().__init__(settings, prefetch)
        self._state: State | None = None
        """What is settled; None while another process reads."""
        self._read_to: Key | None = None
        """The last row that was read."""
        self._doubtful = self._doubtful_ahead = 0
        """How many rows after the position, and after the last one that was read, may have been
        delivered before."""

    def _begin(self) -> None:
        settings = self._settings
        with self._database.transaction(reading=True) as transaction:
            described = settings.described(transaction)
        key = settings.key_of(described)
        self._shape: RowShape = settings.shape(described, key)
        self._keyset: Keyset = settings.keyset(described, key)
        self._position = settings.position(self._database, key)
        self._position.open()
        self._state = None
        dialect = self._database.dialect
        self._waits = settings.lag > 0 or dialect.has_snapshots
        self._horizon = Horizon(settings.lag, self._highest, settings.full_name)
        self._exhausted = True

    def _look(self, most: int) -> tuple[list[Message], bool]:
        state = self._state or self._taken()
        if state is None:
            return [], False
        with self._database.transaction(reading=True) as transaction:
            until = state.again_until
            if until is None and self._waits:
                if self._exhausted:  # up to what was safe before
                    self._horizon.look(transaction, time.monotonic())
                until = self._horizon.safe
                if until is None:
                    return [], False
            again = PAGE_ROWS if state.again_until is not None else self._doubtful_ahead
            page = self._page(
                transaction, self._shape, self._statement(until), PAGE_ROWS, again=again
            )
        self._exhausted = not page.may_be_more
        if not page.rows:
            return [], self._next_phase(state)
        self._read_to = page.rows[-1].attributes
        self._doubtful_ahead = max(0, self._doubtful_ahead - len(page.rows))
        return page.rows, page.may_be_more

    def _settle(self, covered: Sequence[Message], dead: Collection[int]) -> None:
        doubtful = max(0, self._doubtful - len(covered))
        self._move(key=covered[-1].attributes, in_hand=max(self._prefetch, doubtful))
        self._doubtful = doubtful

    def _leave(self, *, orderly: bool) -> None:
        state = self._state
        if state is None:
            return
        try:
            in_hand = max(len(self._out), self._doubtful)
            if orderly and in_hand != state.in_hand:
                self._move(in_hand=in_hand)
        finally:
            self._state = None
            self._position.release(orderly=orderly)

    def _taken(self) -> State | None:
        """Become the reader, unless another process is."""
        begun = State(self._shape.key, in_hand=self._prefetch, pass_began=time.time())
        former = self._position.take(begun)
        if former is None:
            return None
        self._state = replace(former, in_hand=max(former.in_hand, self._prefetch))
        self._read_to = former.key
        self._doubtful = self._doubtful_ahead = former.in_hand
        return self._state

    def _next_phase(self, state: State) -> bool:
        """At the end of the table, or of a later pass: whether there is something to read now."""
        if self._out:  # settling them would move the position back
            return False
        if state.again_until is not None:
            self._read_to = state.again_until
            self._move(key=state.again_until, again_until=None)
            return True
        if state.key is None or not self._settings.is_pass_due(state, time.time()):
            return False
        self._read_to = None
        self._move(key=None, again_until=state.key, pass_began=time.time())
        return True

    def _move(self, **changes: Any) -> None:
        assert self._state is not None  # noqa: S101 - rows come from a reader only
        state = replace(self._state, **changes)
        self._position.move(state)
        self._state = state

    def _statement(self, until: Key | None) -> PageOf:
        return partial(self._settings.page, self._keyset, (self._read_to, until))

    def _highest(self, transaction: Transaction) -> Key | None:
        keyset, settings = self._keyset, self._settings
        statement = settings.by_index(
            keyset,
            sa.select(*keyset.order())
            .select_from(settings.clause)
            .where(*keyset.has_place())
            .order_by(*keyset.last_first())
            .limit(1),
        )
        row = transaction.run(
            lambda connection: connection.execute(statement).first(),
            f"could not read the end of table {self._table_name}",
        )
        return None if row is None else tuple(row)
