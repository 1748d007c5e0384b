"""What a person has to put right is said with the name of the table, column or right.

Nothing is stored then, and no item is rejected.
"""

from __future__ import annotations

import secrets
import sys
from typing import Any
from urllib.parse import quote

import pytest

from fuploader_dagster.contracts.sink import Delivery
from fuploader_dagster.errors import ConfigError, SinkRefused
from fuploader_dagster.resources.sinks.sql import SqlSink
from fuploader_dagster.testing.sink_contract import no_reject, unreadable
from tests.contract.sinks.attempts import (
    AGAIN,
    COLUMNS,
    DELIVERY,
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
from tests.servers.ports import LOOPBACK
from tests.servers.postgresql import PostgresqlServer


@pytest.fixture
def table(database: Database) -> Table:
    return Table(database, COLUMNS)


@on_each
def test_a_missing_table_is_named(table: Table) -> None:
    error = failure(table.settings(table="no_such_orders"))
    assert isinstance(error, SinkRefused)
    assert "no table no_such_orders" in str(error)


@on_each
@pytest.mark.parametrize(
    "more",
    [{"columns": ["id", "colour"]}, {"key": ["colour"]}, {"slot_column": "colour"}],
    ids=["columns", "key", "slot column"],
)
def test_a_column_that_settings_name_and_the_table_lacks_is_named(
    table: Table, more: dict[str, Any]
) -> None:
    sink = table.settings(**more).sink()
    with pytest.raises(SinkRefused, match="no column colour"):
        sink.store(DELIVERY, unreadable(), no_reject)
    sink.close()
    with pytest.raises(SinkRefused, match="no column colour"):
        wrong(table.settings(**more))


@on_each
def test_a_key_needs_a_unique_constraint(table: Table) -> None:
    error = failure(table.settings(key=["name"]))
    assert isinstance(error, SinkRefused)
    assert "no unique key (name)" in str(error)


def test_an_index_of_an_expression_is_no_unique_key_of_its_columns(
    postgresql: PostgresqlServer,
) -> None:
    table = Table(postgresql, "id INTEGER, name VARCHAR(100)")
    postgresql.execute(f"CREATE UNIQUE INDEX ON {table.name} (id, lower(name))")
    error = failure(table.settings(key=["id"]))
    assert "no unique key (id)" in str(error)


@on_each
def test_a_redo_needs_a_key_or_a_slot_column(table: Table) -> None:
    sink = table.settings().sink()
    sink.store(DELIVERY, items(), no_reject)
    with pytest.raises(SinkRefused, match="slot_column"):
        sink.store(AGAIN, unreadable(), no_reject)
    sink.close()
    assert len(table.rows()) == 3


@on_each
def test_a_redo_with_a_slot_column_deletes_the_earlier_rows_of_its_slot(table: Table) -> None:
    sink = table.settings(slot_column="slot").sink()
    table.database.execute(f"INSERT INTO {table.name} VALUES (99, 'of nobody', NULL)")  # noqa: S608
    sink.store(DELIVERY, items(3), no_reject)
    assert sink.store(AGAIN, items(2), no_reject).rows == 2
    sink.close()
    assert table.rows("id, slot") == [(0, AGAIN.partition), (1, AGAIN.partition), (99, None)]
    assert table.noted() == [("shop", "rows", DELIVERY.partition, 1, 2)]


@on_each
def test_doctor_finds_a_column_that_nobody_fills(table: Table) -> None:
    (found,) = wrong(table.settings(columns=["id"]))
    assert (found.check, found.verdict) == ("columns", "wrong")
    assert "name" in found.found
    assert not table.database.rows(_tables_like(table.database, table.ledger))


@on_each_server
def test_a_login_that_is_refused_is_said_without_the_password(
    database: Database, table: Table
) -> None:
    password = "a-wrong-password"
    assert isinstance(database, PostgresqlServer | MariadbServer)
    url = database.url_of("shop", password)
    error = failure(table.settings(url=url))
    assert isinstance(error, SinkRefused), error
    assert password not in str(error)
    absent = url.replace(password, database.password).replace("/shop", "/no_such_database")
    error = failure(table.settings(url=absent))
    assert isinstance(error, SinkRefused), error
    assert "no_such_database" in str(error)


@pytest.mark.parametrize(("scheme", "module"), [("postgresql", "psycopg"), ("mysql", "pymysql")])
def test_a_missing_driver_is_said_with_its_extra(
    scheme: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    settings = SqlSink.model_validate({"url": f"{scheme}://u:hunter2@h/d", "table": "t"})
    with pytest.raises(ConfigError) as caught:
        settings.sink().store(DELIVERY, unreadable(), no_reject)
    assert f"[{scheme}]" in caught.value.hint
    assert "hunter2" not in str(caught.value)


@on_each_server
def test_missing_rights_are_said_with_the_table(database: Database, table: Table) -> None:
    assert isinstance(database, PostgresqlServer | MariadbServer)
    url = new_user(database, f"GRANT SELECT ON {table.name} TO {{user}}")
    error = failure(table.settings(url=url, **_existing_ledger(table)))
    assert isinstance(error, SinkRefused)
    assert table.ledger in str(error)
    url = new_user(
        database,
        f"GRANT SELECT ON {table.name} TO {{user}}",
        f"GRANT SELECT, INSERT, UPDATE ON {table.ledger} TO {{user}}",
    )
    settings = table.settings(url=url)
    error = failure(settings)
    assert isinstance(error, SinkRefused)
    assert table.name in str(error)
    assert "grant" in error.hint
    assert [one.check for one in wrong(settings)] == ["rows"]
    database.execute(f"GRANT INSERT ON {table.name} TO {user_of(url, database)}")
    settings.sink().store(DELIVERY, items(), no_reject)
    assert wrong(settings) == []
    redo = table.settings(url=url, slot_column="slot")
    assert [one.check for one in wrong(redo)] == ["redo"]
    assert isinstance(failure(redo, AGAIN), SinkRefused)
    assert len(table.rows()) == 3


@on_each_server
def test_a_ledger_that_cannot_be_created_is_said(database: Database, table: Table) -> None:
    assert isinstance(database, PostgresqlServer | MariadbServer)
    url = new_user(database, f"GRANT SELECT, INSERT ON {table.name} TO {{user}}")
    settings = table.settings(url=url)
    error = failure(settings)
    assert isinstance(error, SinkRefused)
    assert f"the ledger table {table.ledger}" in str(error)
    assert [one.check for one in wrong(settings)] == ["ledger"]


def test_a_replica_is_told_from_a_missing_right(postgresql: PostgresqlServer) -> None:
    table = Table(postgresql, COLUMNS)
    url = new_user(postgresql, f"GRANT ALL ON {table.name} TO {{user}}")
    postgresql.execute(
        f"ALTER ROLE {user_of(url, postgresql)} SET default_transaction_read_only = on",
        f"GRANT CREATE ON SCHEMA public TO {user_of(url, postgresql)}",
    )
    error = failure(table.settings(url=url))
    assert isinstance(error, SinkRefused)
    assert "primary" in error.hint


def test_tables_without_transactions_are_refused(mariadb: MariadbServer) -> None:
    table = Table(mariadb, COLUMNS, after="ENGINE=MyISAM")
    error = failure(table.settings())
    assert isinstance(error, SinkRefused)
    assert "MyISAM" in str(error)


def test_a_ledger_without_transactions_is_refused(mariadb: MariadbServer) -> None:
    table = Table(mariadb, COLUMNS)
    mariadb.execute(
        f"CREATE TABLE {table.ledger} (pipeline VARCHAR(50), sink VARCHAR(50), "
        "partition_key VARCHAR(100), redo BIGINT, stored_rows BIGINT, stored_at VARCHAR(32), "
        "PRIMARY KEY (pipeline, sink, partition_key)) COLLATE utf8mb4_bin ENGINE = MyISAM"
    )
    error = failure(table.settings())
    assert isinstance(error, SinkRefused)
    assert table.ledger in str(error) and "MyISAM" in str(error)
    assert table.noted() == []  # what it noted could not be undone if storing failed then
    assert "MyISAM" in str(wrong(table.settings()))


def test_doctor_finds_another_unique_key_where_rows_are_replaced(mariadb: MariadbServer) -> None:
    table = Table(mariadb, "id INTEGER PRIMARY KEY, name VARCHAR(100) UNIQUE")
    (found,) = wrong(table.settings(key=["id"]))
    assert (found.check, found.verdict) == ("key", "warning")
    assert "(name)" in found.found


def test_doctor_finds_what_a_crash_would_lose(postgresql: PostgresqlServer) -> None:
    table = Table(postgresql, COLUMNS)
    postgresql.execute(f"ALTER TABLE {table.name} SET UNLOGGED")
    (found,) = wrong(table.settings())
    assert (found.check, found.verdict) == ("durability", "warning")


def test_tables_and_ledger_may_be_in_a_schema(postgresql: PostgresqlServer) -> None:
    schema = f"s_{secrets.token_hex(4)}"
    postgresql.execute(f"CREATE SCHEMA {schema}", f"CREATE TABLE {schema}.orders ({COLUMNS})")
    settings = SqlSink.model_validate(
        {"url": postgresql.url(), "table": "orders", "schema_name": schema}
    )
    sink = settings.sink()
    stored = sink.store(DELIVERY, items(), no_reject)
    sink.close()
    assert stored.address == f"postgresql://{LOOPBACK}:{postgresql.port}/shop/{schema}.orders"
    assert wrong(settings) == []
    assert len(postgresql.rows(f"SELECT * FROM {schema}.fuploader_ledger")) == 1  # noqa: S608


def test_a_file_that_is_missing_is_not_made(sqlite: SqliteFile) -> None:
    missing = sqlite.path.with_name("missing.db")
    error = failure(SqlSink.model_validate({"url": f"sqlite:///{missing}", "table": "t"}))
    assert isinstance(error, SinkRefused)
    assert not missing.exists()


def test_a_file_that_is_no_database_is_refused(sqlite: SqliteFile) -> None:
    sqlite.path.write_bytes(b"something else " * 1_000)
    error = failure(SqlSink.model_validate({"url": sqlite.url(), "table": "t"}))
    assert isinstance(error, SinkRefused)
    assert "file" in str(error)


def test_a_foreign_key_that_fails_at_the_commit_stores_nothing(sqlite: SqliteFile) -> None:
    parents = Table(sqlite, "id INTEGER PRIMARY KEY")
    table = Table(
        sqlite,
        f"id INTEGER PRIMARY KEY, name TEXT, parent INTEGER DEFAULT 7 REFERENCES {parents.name} "
        "DEFERRABLE INITIALLY DEFERRED",
    )
    error = failure(table.settings())
    assert isinstance(error, SinkRefused)
    assert "FOREIGN KEY" in str(error)
    assert table.rows() == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hunter2",
        "oracle://u:hunter2@h/d",
        "postgresql://u:hunter2@h",
        "sqlite://",
        "http://h/d",
    ],
)
def test_a_url_that_is_none_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match="url must look like") as caught:
        SqlSink.model_validate({"url": url, "table": "t"})
    assert "hunter2" not in str(caught.value)


def test_a_password_is_shown_nowhere() -> None:
    settings = SqlSink.model_validate({"url": "mysql://u:hunter2@h:1/d?charset=x", "table": "t"})
    shown = repr(settings) + settings.describe() + settings.database_address
    assert "hunter2" not in shown
    assert settings.describe() == "table t at mysql://h:1/d"


def _existing_ledger(table: Table) -> dict[str, Any]:
    sink = table.settings().sink()
    sink.store(Delivery("shop", "rows", "before"), [], no_reject)
    sink.close()
    return {}


def _tables_like(database: Database, name: str) -> str:
    if isinstance(database, SqliteFile):
        return f"SELECT 1 FROM sqlite_master WHERE name = '{name}'"  # noqa: S608
    return f"SELECT 1 FROM information_schema.tables WHERE table_name = '{name}'"  # noqa: S608


@on_each_server
def test_a_slot_column_that_is_too_short_is_no_fault_of_the_items(
    database: PostgresqlServer | MariadbServer,
) -> None:
    table = Table(database, "id INTEGER, name VARCHAR(100), slot VARCHAR(10)")
    settings = table.settings(slot_column="slot")
    assert "column slot" in str(failure(settings)) and "too short" in str(failure(settings))
    sink = settings.sink()
    with pytest.raises(SinkRefused):
        sink.store(DELIVERY, items(), no_reject)
    kind = "TYPE" if isinstance(database, PostgresqlServer) else ""
    verb = "ALTER" if kind else "MODIFY"
    database.execute(f"ALTER TABLE {table.name} {verb} COLUMN slot {kind} VARCHAR(100)")
    assert sink.store(DELIVERY, items(), no_reject).rows == 3  # the same sink sees it
    sink.close()


@on_each_server
@pytest.mark.parametrize("password", ["p@:/?#[]%' \"w\\", "äö€"])
def test_a_password_may_have_any_characters(
    database: PostgresqlServer | MariadbServer, table: Table, password: str
) -> None:
    name = f"user_{secrets.token_hex(4)}"
    if isinstance(database, MariadbServer):
        escaped = password.replace("\\", "\\\\").replace("'", "''")
        name_of = f"{name}@'%'"
        database.execute(f"CREATE USER {name_of} IDENTIFIED BY '{escaped}'")
    else:
        escaped, name_of = password.replace("'", "''"), name
        database.execute(
            f"CREATE ROLE {name} LOGIN PASSWORD '{escaped}'",
            f"GRANT CREATE ON SCHEMA public TO {name}",
        )
    database.execute(f"GRANT ALL ON {table.name} TO {name_of}")
    if isinstance(database, MariadbServer):
        database.execute(f"GRANT ALL ON {table.ledger} TO {name_of}")
    sink = table.settings(url=database.url_of(name, quote(password, safe=""))).sink()
    assert sink.store(DELIVERY, items(), no_reject).rows == 3
    sink.close()
