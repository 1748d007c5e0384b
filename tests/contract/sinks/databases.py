"""The three databases, as the tests of the SQL sink use them.

Tables are made and read back by plain clients. Each test has a table and a ledger of its own.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest

from fuploader_dagster.resources.sinks.sql import SqlSink

DIALECTS = ("sqlite", "postgresql", "mariadb")
SERVERS = ("postgresql", "mariadb")

on_each = pytest.mark.parametrize("database", DIALECTS, indirect=True)
on_each_server = pytest.mark.parametrize("database", SERVERS, indirect=True)
Dialect = Literal["sqlite", "postgresql", "mariadb"]


class Database(Protocol):
    """One of them."""

    def url(self, port: int | None = None) -> str: ...

    def execute(self, *statements: str) -> None: ...

    def rows(self, query: str) -> list[tuple[Any, ...]]: ...


class SqliteFile:
    """A database in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        sqlite3.connect(path).close()
        path.touch()

    def url(self, port: int | None = None) -> str:
        return f"sqlite:///{self.path}"

    def execute(self, *statements: str) -> None:
        db = sqlite3.connect(self.path)
        for statement in statements:
            db.execute(statement)
        db.commit()
        db.close()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        db = sqlite3.connect(self.path)
        try:
            return db.execute(query).fetchall()
        finally:
            db.close()


class Table:
    """A new table, and a name for a ledger."""

    def __init__(self, database: Database, columns: str, *, after: str = "") -> None:
        self.database = database
        self.name = f"orders_{secrets.token_hex(4)}"
        self.ledger = f"{self.name}_ledger"
        database.execute(f"CREATE TABLE {self.name} ({columns}) {after}")

    def settings(self, **more: Any) -> SqlSink:
        values = {"url": self.database.url(), "table": self.name, "ledger_table": self.ledger}
        return SqlSink.model_validate({**values, **more})

    def rows(self, columns: str = "*", *, order: str = "1") -> list[tuple[Any, ...]]:
        query = f"SELECT {columns} FROM {self.name} ORDER BY {order}"  # noqa: S608 - our own names
        return self.database.rows(query)

    def noted(self) -> Sequence[tuple[Any, ...]]:
        names = "pipeline, sink, partition_key, redo, stored_rows"
        return self.database.rows(f"SELECT {names} FROM {self.ledger} ORDER BY 1, 2")  # noqa: S608
