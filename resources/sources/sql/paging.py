"""What both ways of reading a table share: pages, numbers of deliveries, limits and waiting.

What must always hold: rows are handed out in the order in which they were read, at most as many as
the limit in hand. Those that wait here for the next `receive` were not delivered yet.

A page has at most `PAGE_ROWS`, and ends with the piece of `PIECE_ROWS` that takes it beyond
`PAGE_BYTES`: drivers keep no more than a piece in memory. How many rows are asked for goes by the
page before.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from fuploader_dagster.contracts.source import CommittedBatch, Message, MessageSource
from fuploader_dagster.errors import FuploaderError, SourceRefused, SourceUnavailable
from fuploader_dagster.resources.sources.sql.rows import (
    RowShape,
    chosen,
    described,
    json_as_it_is,
    text_or_bytes,
)
from fuploader_dagster.resources.sql.connection import Transaction
from fuploader_dagster.resources.sql.dialect import AsItIs
from fuploader_dagster.resources.sql.errors import BadRows, explained

if TYPE_CHECKING:
    from fuploader_dagster.resources.sources.sql.source import SqlTable

PAGE_ROWS = 4_000
PIECE_ROWS = 50
PAGE_BYTES = 4 << 20
FIRST_PAGE_ROWS = 100
KEEP_ALIVE_SECONDS = 10.0

_body, _delivery = attrgetter("body"), attrgetter("delivery")
_AS_IT_IS = AsItIs(json_as_it_is, text_or_bytes)

PageOf = Callable[[Sequence[sa.ColumnClause[Any]], int], sa.Select[Any]]
"""The statement for so many rows, with these columns."""


class Page(NamedTuple):
    """Rows that were read together."""

    rows: list[Message]
    may_be_more: bool
    """As many came as were asked for."""


class PagedSource(MessageSource):
    """One consumer. Subclasses look for rows, and settle them."""

    def __init__(self, settings: SqlTable, prefetch: int) -> None:
        self._settings, self._table_name = settings, settings.full_name
        self._database = settings.database(reconnects=False)
        self._prefetch = self._most_in_hand = prefetch
        self._is_open = False
        self._waiting: list[Message] = []
        """Read, and not handed out yet. The attributes of a message are the row's key."""
        self._out: list[Message] = []
        """Handed out, and not settled."""
        self._last_number = 0
        """The last delivery number that was given."""
        self._start = 0
        """The same when the source was opened: up to it nothing can be settled any more."""
        self._page_rows = FIRST_PAGE_ROWS
        self._look_at = 0.0
        """When it is time to look for rows again, on the monotone clock."""
        self._called_at = 0.0
        """When the database was last called."""

    @abstractmethod
    def _begin(self) -> None:
        """Get ready to look for rows."""

    @abstractmethod
    def _look(self, most: int) -> tuple[list[Message], bool]:
        """The next rows, if there are any, and whether there may be more at once. At most `most`
        are claimed."""

    @abstractmethod
    def _settle(self, covered: Sequence[Message], dead: Collection[int]) -> None:
        """Make durable that these are done. `dead`: the numbers of those that are dead letters."""

    @abstractmethod
    def _leave(self, *, orderly: bool) -> None:
        """Give back what is not settled. `orderly`: the database answers. May raise."""

    def open(self) -> None:
        self.close()
        self._start, self._look_at, self._called_at = self._last_number, 0.0, time.monotonic()
        try:
            self._begin()
        except FuploaderError:
            self._database.close()
            raise
        self._is_open = True

    def receive(self, limit: int, timeout_seconds: float) -> list[Message]:
        """As the contract says; with limit 0 it only waits."""
        if not self._is_open:
            raise SourceUnavailable(f"table {self._table_name} is not open")
        room = min(limit, self._room())
        if limit and room <= 0:
            return []
        deadline = time.monotonic() + timeout_seconds
        with self._closing_on_error():
            while True:
                now = time.monotonic()
                if room > 0 and not self._waiting and now >= self._look_at:
                    self._read_on(now)
                if room > 0 and self._waiting:
                    return self._hand_out(room)
                if now >= deadline:
                    self._keep_alive(now)
                    return []
                wake_at = max(self._look_at, now) if room > 0 else deadline
                time.sleep(max(0.0, min(deadline, wake_at, now + KEEP_ALIVE_SECONDS) - now))
                self._keep_alive(time.monotonic())

    def limit_in_hand(self, messages: int) -> None:
        self._most_in_hand = min(messages, self._prefetch)

    def settle(self, batch: CommittedBatch) -> None:
        last = batch.last.delivery
        if not self._is_open or last <= self._start:
            self.close()
            raise SourceUnavailable(
                f"table {self._table_name} was closed after these rows were received",
                hint="nothing is lost: they will be delivered again",
            )
        covered = self._out[: bisect_right(self._out, last, key=_delivery)]
        if not covered:
            return
        with self._closing_on_error():
            self._called_at = time.monotonic()
            self._settle(covered, {message.delivery for message in batch.dead_letters})
        del self._out[: len(covered)]

    def close(self) -> None:
        self._close(orderly=True)

    def describe(self, message: Message) -> dict[str, Any]:
        return described(message, self._table_name)

    def headers_of(self, message: Message, wanted: Mapping[str, str]) -> dict[str, Any]:
        return chosen(message, wanted)

    def _room(self) -> int:
        """How many rows may be handed out now."""
        return self._most_in_hand - len(self._out)

    def _close(self, *, orderly: bool) -> None:
        was_open, self._is_open = self._is_open, False
        self._waiting.clear()
        if was_open:
            with suppress(FuploaderError):  # the next reader finds that out by itself
                self._leave(orderly=orderly)
        self._out.clear()
        self._database.close()

    def _read_on(self, now: float) -> None:
        self._called_at = now
        rows, more = self._look(self._most_in_hand - len(self._out))
        self._waiting.extend(rows)
        self._look_at = now if more else now + self._settings.poll_seconds

    def _hand_out(self, room: int) -> list[Message]:
        messages = self._waiting[:room]
        del self._waiting[: len(messages)]
        self._out.extend(messages)
        return messages

    def _keep_alive(self, now: float) -> None:
        """Servers and routers end connections on which nothing happens."""
        if now - self._called_at < KEEP_ALIVE_SECONDS:
            return
        self._called_at = now
        with self._database.transaction(reading=True) as transaction:
            transaction.run(
                lambda connection: connection.execute(sa.select(sa.literal(1))).scalar(),
                f"could not ask {self._database.where} whether it is there",
            )

    def _page(
        self, transaction: Transaction, shape: RowShape, page: PageOf, most: int, *, again: int
    ) -> Page:
        """The rows of a statement. The first `again` of them count as redelivered.

        A row that the driver cannot read comes alone, with its damage: the others go on.
        """
        rows, trying = min(most, self._page_rows), f"could not read table {self._table_name}"
        first = self._last_number + 1

        def read(rows: int, connection: sa.Connection) -> tuple[list[Message], int]:
            query, size = page(shape.selected(), rows), 0
            found: list[Message] = []
            pieces = transaction.dialect.pieces(
                connection, query, PIECE_ROWS, _AS_IT_IS, reading=transaction.reading
            )
            with closing(pieces):
                for piece in pieces:
                    made = shape.messages(piece, first + len(found), again - len(found))
                    del piece  # not to be kept while the next is read
                    found += made
                    size += sum(map(len, map(_body, made)))
                    if size >= PAGE_BYTES:
                        break
            return found, size

        bad: BadRows | None = None
        try:
            while True:
                try:
                    found, size = transaction.read(partial(read, rows), trying)
                except BadRows as error:
                    bad = error
                    if rows == 1:
                        break
                    rows = 1
                    continue
                self._last_number += len(found)
                self._learn(len(found), size, rows)
                return Page(found, len(found) == rows or size >= PAGE_BYTES)
            keys = transaction.run(
                lambda connection: connection.execute(page(shape.selected_key(), 1)).all(), trying
            )
        except SourceRefused:
            if bad is None:
                raise
        else:
            for key in keys:
                self._last_number += 1
                damaged = shape.unreadable(tuple(key), self._last_number, redelivered=again > 0)
                return Page([damaged], True)
            return Page([], False)
        # It was no driver that could not read a value: the server failed, and the transaction is
        # over. So there is no telling which row it was.
        meaning = replace(bad.meaning, hint="correct the condition `where`, the view, or the row")
        raise explained(meaning, trying, self._database.errors)

    def _learn(self, found: int, size_bytes: int, asked: int) -> None:
        """How many rows the next page should have."""
        if not found:
            return
        fitting = min(PAGE_ROWS, max(1, PAGE_BYTES * found // max(1, size_bytes)))
        self._page_rows = min(fitting, 4 * asked) if asked < fitting else fitting

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except FuploaderError:
            self._close(orderly=False)
            raise
