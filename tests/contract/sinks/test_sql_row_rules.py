"""What else decides about a row: triggers, policies, views, odd names, automatic numbers."""

from __future__ import annotations

from typing import Any

import pytest

from fuploader_dagster.contracts.sink import Delivery, ItemRows, RejectedItem
from fuploader_dagster.errors import SinkRefused
from fuploader_dagster.testing.sink_contract import SECRET, chain, no_reject
from tests.contract.sinks.attempts import new_user
from tests.contract.sinks.databases import DIALECTS, Database, SqliteFile, Table
from tests.servers.mariadb import MariadbServer
from tests.servers.postgresql import PostgresqlServer

DELIVERY = Delivery("shop", "rows", "20261120T234501123Z-node1-s0-000017")
ROWS = [{"id": 1, "name": "a"}, {"id": 11, "name": SECRET}, {"id": 2, "name": "b"}]
COLUMNS = "id INTEGER PRIMARY KEY, name VARCHAR(100)"


def stored(into: Table, rows: list[dict[str, Any]], **settings: Any) -> list[RejectedItem]:
    """Those that were rejected."""
    rejected: list[RejectedItem] = []
    sink = into.settings(**settings).sink()
    try:
        items = [ItemRows(number, [row]) for number, row in enumerate(rows)]
        sink.store(DELIVERY, items, rejected.extend)
    finally:
        sink.close()
    return rejected


def only_the_middle(table: Table, rejected: list[RejectedItem]) -> str:
    assert table.rows("id, name") == [(1, "a"), (2, "b")]
    (one,) = rejected
    assert one.position == 1
    assert SECRET not in one.reason
    return one.reason


@pytest.mark.parametrize("code", ["insufficient_privilege", "MY001", "serialization_failure"])
def test_what_a_trigger_of_postgresql_raises_with_any_code_is_about_a_row(
    postgresql: PostgresqlServer, code: str
) -> None:
    table = Table(postgresql, COLUMNS)
    postgresql.execute(
        f"CREATE FUNCTION f_{table.name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF NEW.id > 10 THEN RAISE EXCEPTION 'bad: %', NEW.name USING ERRCODE = '{code}'; END IF; "
        "RETURN NEW; END $$",
        f"CREATE TRIGGER t BEFORE INSERT ON {table.name} FOR EACH ROW "
        f"EXECUTE FUNCTION f_{table.name}()",
    )
    assert "trigger" in only_the_middle(table, stored(table, ROWS))


def test_what_a_function_of_postgresql_lacks_for_a_row_is_about_that_row(
    postgresql: PostgresqlServer,
) -> None:
    table = Table(postgresql, COLUMNS)
    postgresql.execute(
        f"CREATE FUNCTION f_{table.name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.id > 10 THEN EXECUTE format('TABLE %I', NEW.name); END IF; "
        "RETURN NEW; END $$",
        f"CREATE TRIGGER t BEFORE INSERT ON {table.name} FOR EACH ROW "
        f"EXECUTE FUNCTION f_{table.name}()",
    )
    assert "in a function" in only_the_middle(table, stored(table, ROWS))
    with pytest.raises(SinkRefused, match="undefined table") as caught:
        stored(table, ROWS[1:2], ledger_table=f"{table.name}_another")
    assert SECRET not in str(list(chain(caught.value)))


def test_a_row_that_a_policy_of_postgresql_forbids_is_rejected(
    postgresql: PostgresqlServer,
) -> None:
    table = Table(postgresql, COLUMNS)
    postgresql.execute(
        f"ALTER TABLE {table.name} ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY p ON {table.name} USING (true) WITH CHECK (id < 10)",
    )
    url = new_user(
        postgresql,
        f"GRANT ALL ON {table.name} TO {{user}}",
        "GRANT ALL ON SCHEMA public TO {user}",
    )
    assert "policy" in only_the_middle(table, stored(table, ROWS, url=url))


@pytest.mark.parametrize("set_code", ["", "MYSQL_ERRNO = 31001,"])
def test_what_a_trigger_of_mariadb_signals_with_any_code_is_about_a_row(
    mariadb: MariadbServer, set_code: str
) -> None:
    table = Table(mariadb, COLUMNS)
    mariadb.execute(
        f"CREATE TRIGGER t_{table.name} BEFORE INSERT ON {table.name} FOR EACH ROW "
        f"IF NEW.id > 10 THEN SIGNAL SQLSTATE '45000' SET {set_code} MESSAGE_TEXT = '{SECRET}'; "
        "END IF"
    )
    only_the_middle(table, stored(table, ROWS))


def test_a_row_that_a_view_of_mariadb_does_not_show_is_rejected(mariadb: MariadbServer) -> None:
    table = Table(mariadb, COLUMNS)
    where = "WHERE id < 10 WITH CHECK OPTION"
    mariadb.execute(
        f"CREATE VIEW v_{table.name} AS SELECT * FROM {table.name} {where}"  # noqa: S608
    )
    rejected = stored(table, ROWS, table=f"v_{table.name}")
    assert "view" in only_the_middle(table, rejected)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_an_error_that_nobody_knows_fails_the_step_if_no_item_is_stored(
    postgresql: PostgresqlServer, count: int
) -> None:
    table = Table(postgresql, "id INTEGER PRIMARY KEY, search TSVECTOR")
    sink = table.settings().sink()
    items = [ItemRows(n, [{"id": n, "search": f"'{SECRET}"}]) for n in range(count)]
    with pytest.raises(SinkRefused, match=r"syntax error.*42601") as caught:
        sink.store(DELIVERY, items, no_reject)
    sink.close()
    assert SECRET not in str(list(chain(caught.value)))
    assert table.rows() == []


@pytest.mark.parametrize("key", [[], ["id"]], ids=["insert", "replace"])
@pytest.mark.parametrize(
    "name",
    ["50%", "a%sb", "a%(b)s", "a%%b", ":a", "a b", 'a"b', "a'b", "a`b", "Order", "x VALUES (%s)"],
)
@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_a_column_may_have_any_name(database: Database, name: str, key: list[str]) -> None:
    quote = "`" if isinstance(database, MariadbServer) else '"'
    quoted = f"{quote}{name.replace(quote, quote * 2)}{quote}"
    table = Table(database, f"id INTEGER PRIMARY KEY, {quoted} VARCHAR(100)")
    assert stored(table, [{"id": 1, name: "%s"}, {"id": 2, name: "b"}], key=key) == []
    assert table.rows() == [(1, "%s"), (2, "b")]


def test_a_zero_is_stored_where_mariadb_numbers_rows_itself(mariadb: MariadbServer) -> None:
    table = Table(mariadb, "id INTEGER AUTO_INCREMENT PRIMARY KEY, name VARCHAR(100)")
    assert stored(table, [{"id": 0, "name": "a"}, {"name": "b"}]) == []
    assert table.rows() == [(0, "a"), (1, "b")]


def test_a_trigger_of_sqlite_that_rolls_everything_back_fails_the_step(sqlite: SqliteFile) -> None:
    table = Table(sqlite, COLUMNS)
    sqlite.execute(
        f"CREATE TRIGGER t BEFORE INSERT ON {table.name} WHEN NEW.id > 10 "
        f"BEGIN SELECT RAISE(ROLLBACK, '{SECRET}'); END"
    )
    with pytest.raises(SinkRefused, match="SQLite refused"):
        stored(table, ROWS)
    assert table.rows() == []
