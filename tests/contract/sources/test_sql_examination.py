"""What is wrong with a table, a right or a server is said in a sentence, without values."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.errors import FuploaderError, SourceRefused, SourceUnavailable
from fuploader_dagster.resources.sources.sql.source import SqlTable
from fuploader_dagster.testing.source_steps import collect
from tests.contract.sinks.databases import DIALECTS, SERVERS, Database
from tests.contract.sources.sql_tables import (
    NUMBERED,
    SourceTable,
    ids_of,
    opened,
    settle,
)
from tests.servers.mariadb import MariadbServer
from tests.servers.postgresql import PostgresqlServer

Server = PostgresqlServer | MariadbServer


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.node.callspec.params["database"]
    return found


@pytest.fixture
def table(database: Database, kind: str) -> SourceTable:
    made = SourceTable(
        database, f"id {NUMBERED[kind]}, at INTEGER, mid INTEGER NOT NULL, state VARCHAR(9)"
    )
    made.insert("1, 1, 'ready'", "2, 2, 'hunter2'", into="(at, mid, state)")
    return made


def findings(settings: SqlTable) -> dict[str, Diagnosis]:
    return {one.check: one for one in settings.examine()}


def refusal(settings: SqlTable) -> FuploaderError:
    """The same from a doctor and from a worker."""
    with pytest.raises(SourceRefused) as caught:
        list(settings.examine())
    source = settings.source(prefetch=10)
    with pytest.raises(SourceRefused) as again:
        source.open()
    assert str(again.value) == str(caught.value)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_a_doctor_finds_nothing_wrong_and_changes_nothing(table: SourceTable) -> None:
    results = SourceTable(table.database, "doc_id INTEGER PRIMARY KEY")
    ways: list[dict[str, Any]] = [
        {"cursor": "id", "lag_seconds": 1},
        {"skip_done": {"table": results.name, "match": {"doc_id": "id"}}},
        {"status": {"column": "state"}},
    ]
    table.database.execute(f"CREATE INDEX by_{table.name} ON {table.name} (state, id)")
    for number, way in enumerate(ways):
        settings = table.settings(**way, position_table=f"{table.name}_{number}")
        before = findings(settings)
        assert {one.verdict for one in before.values()} == {"good"}
        waiting, said = (1, "1 row waits") if "status" in way else (2, "2 rows wait")
        assert before["queue"].found.endswith(f": {said}")
        own = "claims" if "status" in way else "position"
        assert "will be created" in before[own].found
        source = opened(settings)
        collect(source, waiting)
        source.close()
        assert {one.verdict for one in findings(settings).values()} == {"good"}


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_a_doctor_warns_of_what_is_slow_or_loses_rows(table: SourceTable, kind: str) -> None:
    results = SourceTable(table.database, "doc_id INTEGER")
    found = findings(table.settings(cursor=["at", "id"]))
    assert "may be NULL" in found["key"].found
    assert "no index" in found["index"].found
    assert found["rows"].verdict == "good"
    assert ("lag" in found) is (kind == "mariadb")
    done = {"table": results.name, "match": {"doc_id": "mid"}}
    assert results.name in findings(table.settings(skip_done=done))["index"].found
    assert "ready rows" in findings(table.settings(status={"column": "state"}))["index"].found


PLANS = {
    "sqlite": ("EXPLAIN QUERY PLAN", "SEARCH", "TEMP B-TREE"),
    "postgresql": ("EXPLAIN", "Index", "Sort"),
    "mariadb": ("EXPLAIN", "range", "filesort"),
}
"""How to ask for a plan; what it must have, and what it must not."""


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
@pytest.mark.parametrize("key", [("id",), ("at", "id"), ("mid",)])
def test_a_page_is_read_in_the_order_of_an_index(
    table: SourceTable, kind: str, key: tuple[str, ...]
) -> None:
    table.insert(*(f"{n // 500}, {n + 10}, 'x'" for n in range(2_000)), into="(at, mid, state)")
    table.database.execute(
        f"CREATE INDEX at_{table.name} ON {table.name} (at, id)",
        f"CREATE UNIQUE INDEX mid_{table.name} ON {table.name} (mid)",
        *(["ANALYZE"] if kind != "mariadb" else []),
    )
    settings = table.settings(cursor=key)
    ask, wanted, unwanted = PLANS[kind]
    width = len(key)
    between = ((1, 700)[-width:], (3, 1_900)[-width:])
    with (
        closing(settings.database(reconnects=True)) as database,
        database.transaction(reading=True) as transaction,
    ):
        described = settings.described(transaction)
        keyset, shape = settings.keyset(described, key), settings.shape(described, key)
        page = settings.page(keyset, between, shape.selected(), 100)
        compiled = page.compile(dialect=transaction.compiler)
        values = tuple(compiled.params[name] for name in compiled.positiontup or ())
        plan = transaction.run(
            lambda connection: connection.exec_driver_sql(f"{ask} {compiled}", values).all(),
            "could not explain",
        )
    assert wanted in str(plan), plan
    assert unwanted not in str(plan), plan


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_doctor_warns_of_a_column_that_a_claim_changes(database: Database, kind: str) -> None:
    table = SourceTable(
        database,
        "id BIGINT PRIMARY KEY, state VARCHAR(9), "
        "at TIMESTAMP DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP",
    )
    found = findings(table.settings(status={"column": "state"}))
    assert "column at changes" in found["columns"].found
    assert "columns" not in findings(table.settings(status={"column": "state"}, columns=["id"]))


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_what_is_missing_is_named(table: SourceTable) -> None:
    assert "no table nowhere" in str(refusal(table.settings(table="nowhere", cursor="id")))
    assert "no column colour" in str(refusal(table.settings(cursor="id", columns=["colour"])))
    assert "not unique" in str(refusal(table.settings(cursor="at")))
    done = {"table": "nowhere", "match": {"doc_id": "mid"}}
    assert "no table nowhere" in str(refusal(table.settings(skip_done=done)))
    done = {"table": table.name, "match": {"colour": "mid"}}
    assert "no column colour" in str(refusal(table.settings(skip_done=done)))
    keyless = SourceTable(table.database, "id INTEGER")
    assert "no primary key" in str(refusal(keyless.settings(status={"column": "id"})))


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_a_condition_that_is_no_sql_is_refused_without_being_quoted(table: SourceTable) -> None:
    settings = table.settings(cursor="id", where="hunter2 = = 'hunter2'")
    found = findings(settings)
    assert (found["rows"].verdict, found["queue"].verdict) == ("wrong", "wrong")
    source = opened(settings)
    with pytest.raises(SourceRefused) as caught:
        source.receive(10, 1)
    assert "hunter2 =" not in f"{found} {caught.value}"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.fixture
def reader(table: SourceTable, kind: str) -> Iterator[str]:
    """The url of a user who may only read the table."""
    server = table.database
    assert isinstance(server, Server)
    user, password = f"reader_{secrets.token_hex(3)}", secrets.token_hex(8)
    if kind == "postgresql":
        server.execute(
            f"CREATE USER {user} PASSWORD '{password}'",
            f"GRANT SELECT ON {table.name} TO {user}",
        )
    else:
        server.execute(
            f"CREATE USER {user} IDENTIFIED BY '{password}'",
            f"GRANT SELECT ON shop.{table.name} TO {user}",
        )
    yield server.url_of(user, password)
    if kind == "postgresql":
        server.execute(f"DROP OWNED BY {user}")
    server.execute(f"DROP USER {user}")


@pytest.mark.parametrize("database", SERVERS, indirect=True)
def test_rights_that_are_missing_are_said_and_a_position_file_needs_none(
    table: SourceTable, reader: str, tmp_path: Any
) -> None:
    settings = table.settings(cursor="id", url=reader)
    assert findings(settings)["position"].verdict != "good"
    with pytest.raises(SourceRefused, match=f"{table.name}_positions"):
        opened(settings)
    found = findings(table.settings(url=reader, status={"column": "state"}))
    assert found["rows"].verdict == "wrong"
    settings = table.settings(cursor="id", url=reader, position_file=tmp_path / "position")
    assert {one.verdict for one in findings(settings).values()} <= {"good", "warning"}
    source = opened(settings)
    assert ids_of(collect(source, 2)) == [1, 2]
    source.close()


@pytest.mark.parametrize("database", SERVERS, indirect=True)
def test_the_documented_rights_are_enough(table: SourceTable, reader: str) -> None:
    user = reader.partition("//")[2].partition(":")[0]
    ways: list[tuple[dict[str, Any], str, str]] = [
        ({"cursor": "id"}, "positions", "SELECT, INSERT, UPDATE"),
        ({"status": {"column": "state"}}, "claims", "SELECT, INSERT, UPDATE, DELETE"),
    ]
    table.database.execute(f"GRANT UPDATE (state) ON {table.name} TO {user}")
    for way, own, rights in ways:
        opened(table.settings(**way)).close()  # whoever may create tables
        table.database.execute(f"GRANT {rights} ON {table.name}_{own} TO {user}")
        settings = table.settings(url=reader, **way)
        assert {one.verdict for one in findings(settings).values()} <= {"good", "warning"}
        source = opened(settings)
        messages = collect(source, 1)
        settle(source, messages)
        source.close()


@pytest.mark.parametrize("database", SERVERS, indirect=True)
@pytest.mark.parametrize("way", [{"cursor": "id"}, {"status": {"column": "state"}}])
def test_after_a_killed_server_is_back_everything_unsettled_comes_again(
    table: SourceTable, way: dict[str, Any]
) -> None:
    server = table.database
    assert isinstance(server, Server)
    table.update("state = 'ready'", "1 = 1")
    table.insert(*["3, 3, 'ready'"] * 28, into="(at, mid, state)")
    settings = table.settings(**way)
    source, publisher = opened(settings), settings.publisher()
    messages = collect(source, 30)
    settle(source, messages[:10])
    server.kill()
    try:
        for call in (
            lambda: settle(source, messages),
            lambda: source.receive(10, 1),
            source.open,
            publisher.backlog,
        ):
            with pytest.raises(SourceUnavailable) as caught:
                call()
            assert server.password not in str(caught.value)
    finally:
        server.start()
    source.open()
    again = collect(source, 20)
    assert [one.body for one in again] == [one.body for one in messages[10:]]
    assert all(one.redelivered for one in again)
    settle(source, again)
    assert publisher.backlog() == 0
    source.close()
    publisher.close()
