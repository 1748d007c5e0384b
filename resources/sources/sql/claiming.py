"""Claims rows by a status column: any number of workers, on any machine, read a table at once.

What must always hold:

- A row is claimed by one transaction, which finds it ready with FOR UPDATE SKIP LOCKED, sets it to
  `claimed` and notes its key with our name in a table of ours. So no two workers claim one row.
- Settled rows are set to `done` in one transaction with the note that they are claimed.
- What a worker gave back, or had when it died, is taken over by the next one, which reads exactly
  these rows again, before any others and marked as redelivered. A worker lives while it holds its
  lock.

Format of the table: claim (the primary key: when it was made, as nanoseconds since 1970, and a
random part), reader, owner (empty: given back), row_keys (JSON, keys as in `key_values`) and
row_count.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from fuploader_dagster.contracts.source import Message
from fuploader_dagster.errors import UNREADABLE_JSON, SourceRefused, SourceUnavailable
from fuploader_dagster.resources.sources.sql.key_values import Key, decoded, encoded
from fuploader_dagster.resources.sources.sql.paging import PagedSource
from fuploader_dagster.resources.sources.sql.reader_lock import ReaderLock
from fuploader_dagster.resources.sources.sql.table import plain
from fuploader_dagster.resources.sql.connection import Transaction
from fuploader_dagster.resources.sql.own_table import OwnTable, long_text, name_column

if TYPE_CHECKING:
    from fuploader_dagster.resources.sources.sql.source import SqlTable

CLAIM_ROWS = 1_000
"""At once, because the statement that claims them has the key of each."""
LOOK_FOR_THE_DEAD_SECONDS = 5.0
"""While there is enough to do; otherwise at each look."""


@dataclass
class _Claim:
    """A row of our table that has our name."""

    name: str
    keys: list[Key]
    """Those that are not settled, in the order in which they are delivered."""


class ClaimingSource(PagedSource):
    def __init__(self, settings: SqlTable, prefetch: int) -> None:
        super().__init__(settings, prefetch)
        self._status = settings.required_status
        self._own = settings.claims()
        self._claims: list[_Claim] = []
        self._owner = ""
        self._looked_for_the_dead = self._dead_every = 0.0

    def _begin(self) -> None:
        settings = self._settings
        with self._database.transaction(reading=True) as transaction:
            described = settings.described(transaction)
        key = settings.key_of(described)
        self._shape = settings.shape(described, key)
        self._keyset = settings.keyset(described, key)
        self._own.make_sure(self._database)
        self._owner, self._claims = secrets.token_hex(16), []
        self._lock = self._lock_of(self._owner)
        self._looked_for_the_dead = self._dead_every = 0.0
        with self._database.transaction() as transaction:
            self._lock.taken(transaction)
            transaction.commit()

    def _look(self, most: int) -> tuple[list[Message], bool]:
        now = time.monotonic()
        if now - self._looked_for_the_dead >= self._dead_every:
            found = self._take_over()
            if found:
                return found, True
            self._looked_for_the_dead = now
        with self._database.transaction() as transaction:
            rows = min(most, CLAIM_ROWS)
            page = self._page(transaction, self._shape, self._ready, rows, again=0)
            if page.rows:
                self._claim(transaction, [one.attributes for one in page.rows])
        self._dead_every = LOOK_FOR_THE_DEAD_SECONDS if page.rows else 0.0
        return page.rows, page.may_be_more

    def _room(self) -> int:
        """What is claimed counts as handed out by the queue already."""
        return len(self._waiting) or super()._room()

    def _settle(self, covered: Sequence[Message], dead: Collection[int]) -> None:
        status = self._status
        failed = [one.attributes for one in covered if one.delivery in dead]
        done = [one.attributes for one in covered if one.delivery not in dead]
        if status.failed is None:
            done, failed = [*done, *failed], []
        left = len(covered)
        with self._database.transaction() as transaction:
            self._set(transaction, done, status.done)
            self._set(transaction, failed, status.failed)
            for claim in self._claims:
                if left <= 0:
                    break
                self._note(transaction, claim.name, claim.keys[left:])
                left -= len(claim.keys)
            transaction.commit()
        left = len(covered)
        while left > 0:
            claim = self._claims[0]
            taken = min(left, len(claim.keys))
            del claim.keys[:taken]
            left -= taken
            if not claim.keys:
                del self._claims[0]

    def _leave(self, *, orderly: bool) -> None:
        claims, self._claims = self._claims, []
        if orderly:
            table = self._own.table
            names = [claim.name for claim in claims]
            with self._database.transaction() as transaction:
                if names:
                    self._run(
                        transaction,
                        table.update().where(
                            table.c.claim.in_(names), table.c.owner == self._owner
                        ),
                        {"owner": ""},
                    )
                transaction.commit()
        self._lock.remove()  # on a server, the connection is closed next

    def _ready(self, columns: Sequence[sa.ColumnClause[Any]], rows: int) -> sa.Select[Any]:
        return (
            self._settings.page(self._keyset, (None, None), columns, rows)
            .where(self._status.is_ready())
            .with_for_update(skip_locked=True)
        )

    def _claim(self, transaction: Transaction, keys: list[Key]) -> None:
        self._set(transaction, keys, self._status.claimed, ready=True)
        claim = _Claim(f"{time.time_ns():020d}-{secrets.token_hex(8)}", keys)
        values = {
            "claim": claim.name,
            "reader": self._settings.reader_name,
            "owner": self._owner,
            **_noted(keys),
        }
        self._run(transaction, self._own.table.insert(), values)
        transaction.commit()
        self._claims.append(claim)

    def _set(
        self, transaction: Transaction, keys: Sequence[Key], value: Any, *, ready: bool = False
    ) -> None:
        """Set the status of rows that have the one that we gave them, or are still ready."""
        if not keys:
            return
        status = self._status
        column: sa.ColumnClause[Any] = sa.column(status.column)
        table = sa.table(self._settings.table, column, schema=self._settings.schema_name)
        was = status.is_ready() if ready else column == plain(status.claimed)
        self._run(
            transaction,
            table.update().where(self._keyset.one_of(keys), was).values({column: plain(value)}),
        )

    def _note(self, transaction: Transaction, claim: str, keys: Sequence[Key]) -> None:
        """What is left of a claim; refused if another worker has taken it over."""
        table = self._own.table
        ours = (table.c.claim == claim, table.c.owner == self._owner)
        if keys:
            changed = self._run(transaction, table.update().where(*ours), _noted(keys))
        else:
            changed = self._run(transaction, table.delete().where(*ours))
        if changed != 1:
            raise SourceUnavailable(
                f"another worker has taken over our rows of table {self._table_name}",
                hint="nothing is lost: what was not settled is read again",
            )

    def _take_over(self) -> list[Message]:
        """The rows of one claim that was given back, or whose worker is dead."""
        living: set[str] = set()
        for claim, owner, raw in self._claims_of_others():
            if owner in living:
                continue
            with self._database.transaction() as transaction:
                if owner and not self._is_dead(transaction, owner):
                    living.add(owner)
                    continue
                table = self._own.table
                changed = self._run(
                    transaction,
                    table.update().where(table.c.claim == claim, table.c.owner == owner),
                    {"owner": self._owner},
                )
                if changed != 1:  # another worker was quicker
                    continue
                found = self._found_again(transaction, _keys_of(raw, self._own.name))
                self._note(transaction, claim, [one.attributes for one in found])
                transaction.commit()
            if found:
                self._claims.append(_Claim(claim, [one.attributes for one in found]))
                return found
        return []

    def _claims_of_others(self) -> Sequence[Any]:
        table = self._own.table
        statement = (
            sa.select(table.c.claim, table.c.owner, table.c.row_keys)
            .where(
                table.c.reader == self._settings.reader_name,
                table.c.owner != self._owner,
            )
            .order_by(table.c.claim)
        )
        with self._database.transaction(reading=True) as transaction:
            return transaction.run(
                lambda connection: connection.execute(statement).all(),
                f"could not read {self._own.name}",
            )

    def _found_again(self, transaction: Transaction, keys: Sequence[Key]) -> list[Message]:
        """Rows of a claim that are still there, and still claimed."""
        found: list[Message] = []
        left = list(keys)
        while left:
            page = self._page(
                transaction, self._shape, partial(self._claimed, left), len(left), again=len(left)
            )
            if not page.rows:
                break
            found += page.rows
            last = page.rows[-1].attributes
            left = left[left.index(last) + 1 :] if last in left else []
        return found

    def _claimed(
        self, keys: Sequence[Key], columns: Sequence[sa.ColumnClause[Any]], rows: int
    ) -> sa.Select[Any]:
        return (
            sa.select(*columns)
            .select_from(self._settings.clause)
            .where(
                self._keyset.one_of(keys),
                sa.column(self._status.column) == plain(self._status.claimed),
            )
            .order_by(*self._keyset.order())
            .limit(rows)
        )

    def _is_dead(self, transaction: Transaction, owner: str) -> bool:
        lock = self._lock_of(owner)
        if not lock.taken(transaction):
            return False
        if self._database.dialect.is_a_file:
            lock.remove()
        else:
            lock.release(transaction)
        return True

    def _lock_of(self, owner: str) -> ReaderLock:
        return self._settings.lock(self._database, f"{self._own.name}/{owner}")

    def _run(
        self,
        transaction: Transaction,
        statement: sa.Executable,
        values: dict[str, Any] | None = None,
    ) -> int:
        """How many rows a statement changed."""
        return transaction.run(
            lambda connection: connection.execute(statement, values).rowcount,
            f"could not claim rows of table {self._table_name}",
        )


def claim_table(name: str, schema: str | None) -> OwnTable:
    columns: list[sa.Column[Any]] = [
        name_column("claim", 64, primary_key=True),
        name_column("reader"),
        name_column("owner", 32),
        long_text("row_keys"),
        sa.Column("row_count", sa.BigInteger, nullable=False),
    ]
    return OwnTable("claim table", name, schema, columns, deletes=True)


def _noted(keys: Iterable[Key]) -> dict[str, Any]:
    parts = [encoded(key) for key in keys]
    return {"row_keys": msgspec.json.encode(parts).decode(), "row_count": len(parts)}


def _keys_of(raw: str, where: str) -> list[Key]:
    try:
        return [decoded(parts) for parts in msgspec.json.decode(raw, type=list[list[list[str]]])]
    except (*UNREADABLE_JSON, LookupError, TypeError, ArithmeticError):
        raise SourceRefused(
            f"a claim in {where} cannot be read",
            hint="was it changed by hand? Remove it, and set its rows back to ready",
        ) from None
