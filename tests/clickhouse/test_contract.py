"""The ClickHouse sink does what every sink does, on a table that remembers tokens and on one that
does not."""

from __future__ import annotations

from typing import ClassVar

import pytest

from fuploader_dagster.contracts.sink import Row, SinkSettings
from fuploader_dagster.resources.sinks.clickhouse import ClickHouseSink
from fuploader_dagster.testing import SinkContract
from fuploader_dagster.testing.sink_contract import SECRET
from tests.clickhouse.tables import REMEMBERS, Table
from tests.servers.clickhouse import ClickhouseServer

COLUMNS = "number Int64, label String, amount Nullable(Int32)"


class TestOnATableThatRemembersTokens(SinkContract):
    cannot = ("note nothing", "tell attempts at once apart")
    after: ClassVar[str] = f"ORDER BY tuple() {REMEMBERS}"

    @pytest.fixture
    def settings(self, clickhouse: ClickhouseServer) -> ClickHouseSink:
        self.table = Table(clickhouse, COLUMNS, after=self.after)
        return self.table.settings()

    def row(self, number: int, text: str = "") -> Row:
        return {"number": number, "label": text or f"no. {number}", "amount": 1}

    def bad_row(self, number: int) -> Row:
        return {"number": number, "label": "bad", "amount": SECRET}

    def numbers(self, settings: SinkSettings) -> list[int]:
        return [number for (number,) in self.table.rows("number")]


class TestOnATableWithoutTokens(TestOnATableThatRemembersTokens):
    after = "ORDER BY tuple()"
    test_two_processes_that_store_the_same_store_it_once = None
    """The lock in `delivery/rows.py` is what keeps them apart."""

    def test_an_examination_finds_nothing_wrong_and_changes_nothing(
        self, settings: SinkSettings
    ) -> None:
        found = [one for one in settings.examine() if one.verdict != "good"]
        assert [(one.check, one.verdict) for one in found] == [("tokens", "warning")]
        assert f"ALTER TABLE default.{self.table.name}" in found[0].hint
        self.table.server.execute(found[0].hint)
        assert all(one.verdict == "good" for one in settings.examine())
        assert self.numbers(settings) == []
