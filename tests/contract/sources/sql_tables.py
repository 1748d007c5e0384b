"""Tables that the tests of the SQL source read, and what they do with them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

from fuploader_dagster.contracts.source import CommittedBatch, Message, MessageSource
from fuploader_dagster.resources.sources.sql.source import SqlTable
from fuploader_dagster.testing.source_steps import collect
from tests.contract.sinks.databases import Database

NUMBERED = {
    "sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "postgresql": "BIGSERIAL PRIMARY KEY",
    "mariadb": "BIGINT AUTO_INCREMENT PRIMARY KEY",
}
"""A column that the database numbers."""


class SourceTable:
    """A new table; its positions and claims are in tables of its own."""

    def __init__(self, database: Database, columns: str) -> None:
        self.database = database
        self.name = f"source_{secrets.token_hex(4)}"
        database.execute(f"CREATE TABLE {self.name} ({columns})")

    def insert(self, *values: str, into: str = "") -> None:
        """Each of `values` is a row in SQL, without brackets."""
        rows = ", ".join(f"({one})" for one in values)
        self.database.execute(f"INSERT INTO {self.name} {into} VALUES {rows}")  # noqa: S608

    def update(self, changes: str, where: str) -> None:
        self.database.execute(f"UPDATE {self.name} SET {changes} WHERE {where}")  # noqa: S608

    def settings(self, **more: Any) -> SqlTable:
        given: dict[str, Any] = {
            "url": self.database.url(),
            "table": self.name,
            "position_table": f"{self.name}_positions",
            "claim_table": f"{self.name}_claims",
            "poll_seconds": 0.02,
        }
        if "status" not in more:
            given["lag_seconds"] = 0
        return SqlTable.model_validate({**given, **more})


def opened(settings: SqlTable, *, prefetch: int = 100) -> MessageSource:
    source = settings.source(prefetch=prefetch)
    source.open()
    return source


def none_comes(source: MessageSource, seconds: float = 0.3) -> bool:
    return not source.receive(100, seconds)


def settle(
    source: MessageSource, messages: Sequence[Message], dead: Sequence[Message] = ()
) -> None:
    source.settle(CommittedBatch(messages[-1], len(messages), dead))


def rows_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [json.loads(one.body) for one in messages]


def ids_of(messages: Sequence[Message]) -> list[int]:
    return [row["id"] for row in rows_of(messages)]


def read_at_once(settings: SqlTable, count: int) -> list[Message]:
    source = opened(settings)
    try:
        messages = collect(source, count)
        settle(source, messages)
    finally:
        source.close()
    return messages
