"""Tables of the tests. They are made and read back by a plain client."""

from __future__ import annotations

import secrets
from typing import Any

from fuploader_dagster.resources.sinks.clickhouse import ClickHouseSink
from tests.servers.clickhouse import ClickhouseServer

REMEMBERS = "SETTINGS non_replicated_deduplication_window = 1000"
"""Tokens of INSERTs."""
IN_ORDER = "toUInt64(splitByChar('_', _part)[2]), _part_offset"
"""In which rows were stored, where a table has no order of its own."""


class Table:
    """A new one, with a column for slots."""

    def __init__(
        self,
        server: ClickhouseServer,
        columns: str,
        *,
        engine: str = "MergeTree",
        after: str = f"ORDER BY tuple() {REMEMBERS}",
        slot: str = "_slot LowCardinality(String)",
    ) -> None:
        self.server = server
        self.name = f"orders_{secrets.token_hex(4)}"
        every = f"{columns}, {slot}" if slot else columns
        server.execute(f"CREATE TABLE {self.name} ({every}) ENGINE = {engine} {after}")

    def settings(self, **more: Any) -> ClickHouseSink:
        values = {"url": self.server.url(), "table": self.name, "timeout_seconds": 120}
        return ClickHouseSink.model_validate({**values, **more})

    def rows(self, columns: str = "*", *, order: str = IN_ORDER) -> list[tuple[Any, ...]]:
        query = f"SELECT {columns} FROM {self.name} ORDER BY {order}"  # noqa: S608 - our own names
        return self.server.rows(query)
