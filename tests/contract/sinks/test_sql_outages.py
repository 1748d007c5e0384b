"""What may pass by itself is told from what a person has to put right, and ends within the timeout.

Nothing is stored then, and the next attempt stores it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from fuploader_dagster.contracts.sink import Delivery, ItemRows, StoredRows
from fuploader_dagster.errors import SinkUnavailable
from fuploader_dagster.resources.sql import mysql, postgresql
from fuploader_dagster.testing.sink_contract import chain, no_reject
from tests.contract.sinks.attempts import (
    COLUMNS,
    DELIVERY,
    client_of,
    failure,
    items,
    new_user,
    user_of,
    wrong,
)
from tests.contract.sinks.databases import (
    Database,
    SqliteFile,
    Table,
    on_each,
    on_each_server,
)
from tests.servers.mariadb import MariadbServer
from tests.servers.ports import free_port, wait_until
from tests.servers.postgresql import PostgresqlServer


@pytest.fixture
def table(database: Database) -> Table:
    return Table(database, COLUMNS)


@on_each
def test_another_transaction_that_holds_the_row_is_waited_for_no_longer_than_set(
    table: Table,
) -> None:
    settings = table.settings()
    settings.sink().store(Delivery("shop", "rows", "before"), [], no_reject)
    with _holding_row_of(table):
        error = failure(table.settings(timeout_seconds=1))
    assert isinstance(error, SinkUnavailable)
    assert table.rows("id") == []
    settings.sink().store(DELIVERY, items(), no_reject)
    assert len(table.rows()) == 3


@on_each_server
def test_a_server_that_is_down_may_come_back(table: Table) -> None:
    url = table.database.url(free_port())
    error = failure(table.settings(url=url))
    assert isinstance(error, SinkUnavailable)
    with pytest.raises(SinkUnavailable):
        wrong(table.settings(url=url))


@on_each_server
def test_a_server_that_hangs_is_given_up(database: Database, table: Table) -> None:
    assert isinstance(database, PostgresqlServer | MariadbServer)
    sink = table.settings(timeout_seconds=3).sink()
    sink.store(Delivery("shop", "rows", "before"), [], no_reject)

    def hanging() -> Iterator[ItemRows]:
        yield from items()
        database.pause()

    begun = time.monotonic()
    try:
        with pytest.raises(SinkUnavailable) as caught:
            sink.store(DELIVERY, hanging(), no_reject)
    finally:
        database.resume()
    assert time.monotonic() - begun < 60
    assert len(list(chain(caught.value))) == 1
    sink.close()
    again = table.settings().sink()
    assert again.store(DELIVERY, items(), no_reject).rows == 3
    again.close()
    assert len(table.rows()) == 3


@on_each_server
def test_a_transaction_whose_client_is_silent_is_given_up(
    database: Database, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine may be gone, and the next attempt waits for the ledger's row."""
    settings = table.settings()
    settings.sink().store(Delivery("shop", "rows", "before"), [], no_reject)
    stored: list[StoredRows] = []

    def silent() -> Iterator[ItemRows]:
        yield from items()
        monkeypatch.undo()  # only the silent one is given up soon
        stored.append(settings.sink().store(DELIVERY, items(), no_reject))

    for _ in range(10):  # on a busy machine it may be given up before it has read its items
        for module in (postgresql, mysql):
            monkeypatch.setattr(module, "IDLE_SECONDS", 1)
        with pytest.raises(SinkUnavailable):
            settings.sink().store(DELIVERY, silent(), no_reject)
        if stored:
            break
    assert [one.rows for one in stored] == [3]
    assert len(table.rows()) == 3


@on_each_server
def test_a_deadlock_may_pass(database: Database, table: Table) -> None:
    settings = table.settings(key=["id"], timeout_seconds=30)
    stored = items(40)
    settings.sink().store(Delivery("shop", "rows", "before"), stored, no_reject)
    other = client_of(database, database.url())
    cursor = other.cursor()
    if isinstance(database, PostgresqlServer):
        cursor.execute("SET deadlock_timeout = '10min'")  # so that it is not the one to give up
    cursor.execute(f"UPDATE {table.name} SET name = 'other' WHERE id > 0")  # noqa: S608
    with ThreadPoolExecutor(1) as pool:
        ours = pool.submit(failure, settings)
        wait_until(
            lambda: database.rows(_WAITING[type(database)]) == [(1,)],
            seconds=30,
            what="the wait for a lock",
            diagnose=lambda: str(ours),
        )
        cursor.execute(f"UPDATE {table.name} SET name = 'other' WHERE id = 0")  # noqa: S608
        error = ours.result(60)
    other.rollback()
    other.close()
    assert isinstance(error, SinkUnavailable), error
    assert "deadlock" in str(error).lower() or "another transaction" in str(error)
    assert settings.sink().store(DELIVERY, items(), no_reject).rows == 3


@on_each_server
def test_too_many_connections_may_pass(database: Database, table: Table) -> None:
    assert isinstance(database, PostgresqlServer | MariadbServer)
    limit = "CONNECTION LIMIT 1" if isinstance(database, PostgresqlServer) else ""
    url = new_user(database, f"GRANT SELECT ON {table.name} TO {{user}}", limit=limit)
    if isinstance(database, MariadbServer):
        user = user_of(url, database)
        database.execute(f"ALTER USER {user} WITH MAX_USER_CONNECTIONS 1")
    with ExitStack() as stack:
        stack.enter_context(client_of(database, url))
        assert isinstance(failure(table.settings(url=url)), SinkUnavailable)


_WAITING: dict[type, str] = {
    PostgresqlServer: "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
    # Not innodb_trx: who asks for it every 0.1 s gets the same answer for ever.
    MariadbServer: "SELECT CAST(variable_value AS INTEGER) FROM information_schema.global_status "
    "WHERE variable_name = 'INNODB_ROW_LOCK_CURRENT_WAITS'",
}


@contextmanager
def _holding_row_of(table: Table) -> Iterator[None]:
    """Another transaction that has inserted a row of the same key, and does not end."""
    database = table.database
    insert = f"INSERT INTO {table.name} (id, name) VALUES (1, 'other')"  # noqa: S608
    if isinstance(database, SqliteFile):
        client: Any = sqlite3.connect(database.path)
    else:
        client = client_of(database, database.url())
    cursor = client.cursor()
    cursor.execute(insert)
    try:
        yield
    finally:
        client.rollback()
        client.close()
