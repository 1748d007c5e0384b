"""How many rows wait to be settled."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import sqlalchemy as sa

from fuploader_dagster.resources.sql.connection import Database

if TYPE_CHECKING:
    from fuploader_dagster.resources.sources.sql.source import SqlTable

MOST_COUNTED = 1_000_000
"""Counting more would take the database too long."""


def backlog(settings: SqlTable, database: Database) -> int:
    """Rows that are not settled, also those that workers have in hand or that wait for `lag`."""
    with database.transaction(reading=True) as transaction:
        described = settings.described(transaction)
    key = settings.key_of(described)
    keyset = settings.keyset(described, key)
    after, claimed = None, 0
    if settings.status is None:
        state = settings.position(database, key).read()
        if state is not None and not (
            state.again_until is None and settings.is_pass_due(state, time.time())
        ):
            after = state.key
    else:
        claimed = _claimed(settings, database)
    one: sa.ColumnElement[int] = sa.literal_column("1").label("one")
    waiting = settings.page(keyset, (after, None), [one], MOST_COUNTED)
    if settings.status is not None:
        waiting = waiting.where(settings.status.is_ready())
    count = sa.select(sa.func.count()).select_from(waiting.subquery("waiting"))
    with database.transaction(reading=True) as transaction:
        found = transaction.run(
            lambda connection: connection.execute(count).scalar_one(),
            f"could not count the rows of table {settings.full_name}",
        )
    return int(found) + claimed


def _claimed(settings: SqlTable, database: Database) -> int:
    claims = settings.claims()
    total = sa.select(sa.func.sum(claims.table.c.row_count)).where(
        claims.table.c.reader == settings.reader_name
    )
    with database.transaction(reading=True) as transaction:
        if not claims.exists(transaction):
            return 0
        found = transaction.run(
            lambda connection: connection.execute(total).scalar(), f"could not read {claims.called}"
        )
    return int(found or 0)
