"""Rows of transactions that commit late are not skipped: they wait for each other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from fuploader_dagster.resources.sources.sql import reading
from fuploader_dagster.resources.sources.sql.source import SqlTable
from fuploader_dagster.resources.sql.address import dialect_of
from fuploader_dagster.testing.source_steps import collect
from tests.contract.sinks.databases import SERVERS, Database
from tests.contract.sources.sql_tables import (
    NUMBERED,
    SourceTable,
    ids_of,
    none_comes,
    opened,
    settle,
)

LAG_SECONDS = 3_600.0


class Clock:
    """The monotone clock of the source, which can be put forward."""

    time = staticmethod(time.time)

    def __init__(self) -> None:
        self.passed = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.passed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(reading, "time", made)
    return made


@pytest.fixture
def table(database: Database, request: pytest.FixtureRequest) -> SourceTable:
    kind = request.node.callspec.params["database"]
    return SourceTable(database, f"id {NUMBERED[kind]}, note TEXT")


@contextmanager
def held_open(settings: SqlTable, *statements: str) -> Iterator[sa.Connection]:
    """A transaction that has done this, and is over when the block says so."""
    url = settings.parsed_url
    engine = sa.create_engine(url.set(drivername=dialect_of(url).driver))
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
        yield connection
    engine.dispose()


def insert(table: SourceTable, note: str) -> str:
    return f"INSERT INTO {table.name} (note) VALUES ('{note}')"  # noqa: S608 - our own names


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_on_postgresql_a_late_transaction_is_waited_for_however_long_it_takes(
    table: SourceTable,
) -> None:
    settings = table.settings(cursor="id", lag_seconds=0)
    source = opened(settings)
    with held_open(settings, insert(table, "late")) as late:
        table.insert("'early'", into="(note)")
        assert none_comes(source, 1.0)
        late.commit()
    messages = collect(source, 2)
    assert ids_of(messages) == [1, 2]
    settle(source, messages)
    with held_open(settings, insert(table, "never")) as late:
        table.insert("'early'", into="(note)")
        assert none_comes(source)
        late.rollback()
    assert ids_of(collect(source, 1)) == [4]
    source.close()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_on_postgresql_a_transaction_that_only_reads_holds_nothing_up(table: SourceTable) -> None:
    settings = table.settings(cursor="id", lag_seconds=0)
    source = opened(settings)
    look = f"SELECT * FROM {table.name}"  # noqa: S608 - our own names
    with held_open(settings, look):
        table.insert("'one'", into="(note)")
        assert ids_of(collect(source, 1)) == [1]
    source.close()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_the_lag_covers_a_number_that_was_drawn_before_anything_was_written(
    table: SourceTable, clock: Clock
) -> None:
    settings = table.settings(cursor="id", lag_seconds=LAG_SECONDS)
    source = opened(settings)
    draw = f"SELECT nextval('{table.name}_id_seq')"
    with held_open(settings, draw) as late:  # to PostgreSQL, a transaction that only reads
        table.insert("'early'", into="(note)")
        assert none_comes(source)
        late.exec_driver_sql(f"INSERT INTO {table.name} VALUES (1, 'late')")  # noqa: S608
        clock.passed += LAG_SECONDS
        assert none_comes(source)  # the lag is over, but it writes now
        late.commit()
    assert ids_of(collect(source, 2)) == [1, 2]
    source.close()


@pytest.mark.parametrize("database", SERVERS, indirect=True)
def test_a_transaction_that_commits_within_the_lag_is_not_skipped(
    table: SourceTable, clock: Clock
) -> None:
    settings = table.settings(cursor="id", lag_seconds=LAG_SECONDS)
    source = opened(settings)
    with held_open(settings, insert(table, "late")) as late:
        table.insert("'early'", into="(note)")
        assert none_comes(source)
        late.commit()
    assert none_comes(source)  # it is not sure yet
    clock.passed += LAG_SECONDS
    assert ids_of(collect(source, 2)) == [1, 2]
    source.close()


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_without_a_lag_it_would_be_skipped(table: SourceTable) -> None:
    """So the tests above test something."""
    settings = table.settings(cursor="id", lag_seconds=0)
    source = opened(settings)
    with held_open(settings, insert(table, "late")) as late:
        table.insert("'early'", into="(note)")
        messages = collect(source, 1)
        settle(source, messages)
        late.commit()
    assert ids_of(messages) == [2]
    assert none_comes(source)
    source.close()


@pytest.mark.parametrize("database", SERVERS, indirect=True)
def test_by_a_status_column_nothing_has_to_wait(database: Database) -> None:
    columns = {"postgresql": "id BIGSERIAL", "mariadb": "id BIGINT AUTO_INCREMENT"}
    kind = "postgresql" if "postgresql" in database.url() else "mariadb"
    table = SourceTable(
        database, f"{columns[kind]} PRIMARY KEY, note TEXT, state VARCHAR(9) DEFAULT 'ready'"
    )
    settings = table.settings(status={"column": "state"})
    source = opened(settings)
    with held_open(settings, insert(table, "late")) as late:
        table.insert("'early'", into="(note)")
        messages = collect(source, 1)
        assert ids_of(messages) == [2]
        settle(source, messages)
        late.commit()
    assert ids_of(collect(source, 1)) == [1]
    source.close()


def test_the_defaults_suit_the_database(database_urls: dict[str, str]) -> None:
    lags = {
        kind: SqlTable.model_validate({"url": url, "table": "t", "cursor": "id"}).lag
        for kind, url in database_urls.items()
    }
    assert lags == {"sqlite": 0, "postgresql": 1, "mysql": 10, "mariadb": 10}


@pytest.fixture
def database_urls() -> dict[str, str]:
    servers = {kind: f"{kind}://u@h/d" for kind in ("postgresql", "mysql", "mariadb")}
    return {"sqlite": "sqlite:////tmp/x", **servers}
