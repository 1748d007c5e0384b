"""A SQL table as the contract tests want a source: a queue that takes bodies and headers.

A message that is published is a row with the body as bytes and the headers as text. What comes out
of the source is a row as JSON, which is taken apart again. All between is the code under test.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from fuploader_dagster.contracts.source import (
    CommittedBatch,
    Message,
    MessagePublisher,
    MessageSource,
)
from fuploader_dagster.resources.sources.sql.source import SqlTable
from fuploader_dagster.resources.sql.address import dialect_of
from tests.contract.sinks.databases import Database

COLUMNS = {
    "sqlite": "id INTEGER PRIMARY KEY, body BLOB, headers TEXT, message_id TEXT, state TEXT",
    "postgresql": "id BIGSERIAL PRIMARY KEY, body BYTEA, headers TEXT, message_id TEXT, state TEXT",
    "mariadb": "id BIGINT AUTO_INCREMENT PRIMARY KEY, body LONGBLOB, headers LONGTEXT, "
    "message_id TEXT, state VARCHAR(20), INDEX (state, id)",
}
QUICKLY = 0.02


class TableAsQueue(SqlTable):
    def source(self, *, prefetch: int) -> MessageSource:
        return Unwrapped(super().source(prefetch=prefetch))

    def publisher(self) -> MessagePublisher:  # type: ignore[override]
        return Inserting(self)


class Unwrapped(MessageSource):
    def __init__(self, source: MessageSource) -> None:
        self._source = source

    def open(self) -> None:
        self._source.open()

    def receive(self, limit: int, timeout_seconds: float) -> list[Message]:
        return [_unwrapped(one) for one in self._source.receive(limit, timeout_seconds)]

    def limit_in_hand(self, messages: int) -> None:
        self._source.limit_in_hand(messages)

    def settle(self, batch: CommittedBatch) -> None:
        self._source.settle(batch)

    def close(self) -> None:
        self._source.close()

    def describe(self, message: Message) -> dict[str, Any]:
        described = {"headers": message.attributes, "message_id": message.message_id}
        return {name: value for name, value in described.items() if value}


class Inserting(MessagePublisher):
    def __init__(self, settings: SqlTable) -> None:
        self._settings = settings
        self._counting = SqlTable.publisher(settings)
        url = settings.parsed_url
        self._engine = sa.create_engine(url.set(drivername=dialect_of(url).driver))

    def publish(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        names = ("body", "headers", "message_id", "state")
        table = sa.table(self._settings.table, *map(sa.column, names))
        rows = []
        for body, headers in messages:
            others = {name: value for name, value in headers.items() if name != "message_id"}
            written = json.dumps(others) if others else None
            row = (bytes(body), written, headers.get("message_id"), "ready")
            rows.append(dict(zip(names, row, strict=True)))
        if rows:
            with self._engine.begin() as connection:
                connection.execute(table.insert(), rows)
        return len(rows)

    def backlog(self) -> int:
        return self._counting.backlog()

    def close(self) -> None:
        self._counting.close()
        self._engine.dispose()


def new_queue(database: Database, dialect: str, name: str, **more: Any) -> TableAsQueue:
    """An empty one; `more`: settings that say how it is read."""
    database.execute(f"CREATE TABLE {name} ({COLUMNS[dialect]})")
    given = {"url": database.url(), "table": name, "poll_seconds": QUICKLY, **more}
    return TableAsQueue.model_validate(given)


def _unwrapped(message: Message) -> Message:
    row = json.loads(message.body)
    headers = json.loads(row["headers"]) if row["headers"] else {}
    return message._replace(
        body=base64.b64decode(row["body"]), message_id=row["message_id"], attributes=headers
    )
