"""Fixtures for tests that need a SQL database: one PostgreSQL and one MariaDB a session.

A test that kills or pauses one brings it back before it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.sinks.databases import Database, SqliteFile
from tests.servers.mariadb import MariadbServer
from tests.servers.postgresql import PostgresqlServer


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresqlServer]:
    """A running PostgreSQL of this test session."""
    server = PostgresqlServer(tmp_path_factory.mktemp("postgresql") / "console.log")
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariadbServer]:
    """A running MariaDB of this test session."""
    server = MariadbServer(tmp_path_factory.mktemp("mariadb"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def sqlite(tmp_path: Path) -> SqliteFile:
    return SqliteFile(tmp_path / "shop.db")


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Database:
    """The one that a test is run for: `@pytest.mark.parametrize("database", DIALECTS,
    indirect=True)`."""
    found: Database = request.getfixturevalue(request.param)
    return found
