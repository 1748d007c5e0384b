"""Examines a table for `fuploader doctor`: whether its rows can be read, quickly and all of them.

What must always hold: nothing is changed, and no row is read. Rights are tried with statements of
no rows, each in a transaction that is rolled back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.diagnosis import Diagnosis, trouble
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.resources.sources.sql.backlog import backlog
from fuploader_dagster.resources.sources.sql.table import Described, describe, plain
from fuploader_dagster.resources.sql.connection import Database
from fuploader_dagster.resources.sql.own_table import tried

if TYPE_CHECKING:
    from fuploader_dagster.resources.sources.sql.source import SqlTable


def examine(settings: SqlTable) -> Iterator[Diagnosis]:
    """Raises an error of this package if there is no such table, or no way to it."""
    with closing(settings.database(reconnects=True)) as database:
        yield from _examined(settings, database)


def _examined(settings: SqlTable, database: Database) -> Iterator[Diagnosis]:
    with database.transaction(reading=True) as transaction:
        described = settings.described(transaction)
        skip_done = settings.skip_done
        results = (
            describe(transaction, skip_done.table, skip_done.schema_name) if skip_done else None
        )
    key = settings.key_of(described)
    found = f"{described.name}: {counted(len(described.types), 'column')}, read by {', '.join(key)}"
    yield Diagnosis("table", "good", found)
    yield from _key(described, key, database)
    if settings.status is None:
        yield from _index(described, key, "every page reads the whole table", ordered=True)
    else:
        first = [settings.status.column]
        yield from _index(described, first, "every look for ready rows reads the whole table")
        yield from _changing(described, settings)
    if skip_done is not None and results is not None:
        yield from _index(results, list(skip_done.match), "every row looks for its result in all")
    if settings.cursor and settings.lag == 0 and not database.dialect.is_a_file:
        yield from _no_lag(database)
    yield _rows(settings, database, described, key)
    if settings.status is not None:
        yield settings.claims().examined(database, "claims")
    elif settings.position_file is None:
        yield settings.positions().examined(database, "position")
    yield _queue(settings, database)


def _queue(settings: SqlTable, database: Database) -> Diagnosis:
    try:
        waiting = backlog(settings, database)
    except FuploaderError as error:
        return trouble("queue", error)
    return Diagnosis(
        "queue", "good", f"{settings.describe()}: {counted(waiting, 'row waits', 'rows wait')}"
    )


def _key(described: Described, key: Sequence[str], database: Database) -> Iterator[Diagnosis]:
    nullable = [name for name in key if name in described.nullable - set(described.primary)]
    if nullable and not described.is_view:
        found = f"column {', '.join(nullable)} may be NULL: such rows are never read"
        yield Diagnosis("key", "warning", found, "make the column NOT NULL")
    if described.is_view:
        found = f"{described.name} is a view: nothing proves that {', '.join(key)} is unique"
        yield Diagnosis("key", "warning", found, "make sure that it is: rows may be lost otherwise")


def _index(
    described: Described, leading: Sequence[str], otherwise: str, *, ordered: bool = False
) -> Iterator[Diagnosis]:
    """Whether an index begins with these columns; `ordered`: in this order."""
    begins = [tuple(index[: len(leading)]) for index in described.indexes.values()]
    if not ordered:
        begins = [tuple(sorted(one)) for one in begins]
    wanted = tuple(leading if ordered else sorted(leading))
    if described.is_view or wanted in begins:
        return
    names = ", ".join(leading)
    found = f"no index of {described.name} begins with {names}: {otherwise}"
    yield Diagnosis("index", "warning", found, f"create an index on ({names})")


def _changing(described: Described, settings: SqlTable) -> Iterator[Diagnosis]:
    columns = set(settings.fields(described.types).values()) & described.changing
    if columns:
        found = f"column {', '.join(sorted(columns))} changes when a row is claimed: one that is "
        found += "read again has another content, and is stored again"
        yield Diagnosis("columns", "warning", found, "leave it out of `columns`")


def _no_lag(database: Database) -> Iterator[Diagnosis]:
    if not database.dialect.has_snapshots:
        found = "lag_seconds is 0: rows of transactions that commit late are never read"
        yield Diagnosis(
            "lag", "warning", found, "set lag_seconds above the longest transaction's time"
        )


def _rows(
    settings: SqlTable, database: Database, described: Described, key: Sequence[str]
) -> Diagnosis:
    keyset, shape = settings.keyset(described, key), settings.shape(described, key)
    page = settings.page(keyset, (None, None), shape.selected(), 0)
    if settings.status is None:
        return tried(database, "rows", "rows can be read", [page])
    status = settings.status
    column: sa.ColumnClause[Any] = sa.column(status.column)
    table = sa.table(settings.table, column, schema=settings.schema_name)
    statements: list[sa.Executable] = [
        page.where(status.is_ready()).with_for_update(skip_locked=True),
        table.update().where(sa.false()).values({column: plain(status.claimed)}),
        table.update().where(sa.false()).values({column: plain(status.done)}),
    ]
    return tried(database, "rows", "rows can be read and claimed", statements)
