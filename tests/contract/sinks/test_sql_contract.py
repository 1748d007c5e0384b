"""The SQL sink does what every sink does: inserting, with a key, and with a slot column."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from fuploader_dagster.contracts.sink import Row, SinkSettings
from fuploader_dagster.resources.sinks.sql import SqlSink
from fuploader_dagster.testing import SinkContract
from fuploader_dagster.testing.sink_contract import SECRET
from tests.contract.sinks.databases import DIALECTS, Database, Table

COLUMNS = {
    "sqlite": "seq INTEGER PRIMARY KEY, number INTEGER NOT NULL UNIQUE, label TEXT, "
    "amount INTEGER CHECK (typeof(amount) <> 'text'), slot TEXT",
    "postgresql": "seq BIGSERIAL PRIMARY KEY, number INTEGER NOT NULL UNIQUE, label TEXT, "
    "amount INTEGER, slot TEXT",
    "mariadb": "seq BIGINT AUTO_INCREMENT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, "
    "label LONGTEXT, amount INTEGER, slot VARCHAR(100)",
}


class _OnATable(SinkContract):
    more: ClassVar[dict[str, Any]]

    @pytest.fixture(params=DIALECTS)
    def settings(self, request: pytest.FixtureRequest) -> SqlSink:
        database: Database = request.getfixturevalue(request.param)
        self.table = Table(database, COLUMNS[request.param])
        return self.table.settings(**self.more)

    def row(self, number: int, text: str = "") -> Row:
        return {"number": number, "label": text or f"no. {number}", "amount": 1}

    def bad_row(self, number: int) -> Row:
        return {"number": number, "label": "bad", "amount": SECRET}

    def numbers(self, settings: SinkSettings) -> list[int]:
        return [number for (number,) in self.table.rows("number", order="seq")]


class TestInserting(_OnATable):
    more: ClassVar[dict[str, Any]] = {}
    cannot = ("redo",)


class TestReplacingByKey(_OnATable):
    more: ClassVar[dict[str, Any]] = {"key": ["number"]}


class TestWithASlotColumn(_OnATable):
    more: ClassVar[dict[str, Any]] = {"slot_column": "slot"}
