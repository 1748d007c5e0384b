"""Rows are stored exactly once in ClickHouse, whatever breaks, and at whatever moment.

Each fault hits one delivery, which is then tried again until it is stored, as the engine does. The
tests of random faults play 504 of them, FAULTS=5040 ten times as many. A table
at the end of the run says what was played, and what the next attempt found.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable

import pytest

from fuploader_dagster.resources.sinks import clickhouse_rows
from tests.clickhouse.attempts import (
    COLUMNS,
    FAULTS_PLAYED,
    assert_stored_once,
    kill_a_client,
    requests_of_a_store,
    some,
    store,
    until_it_is_stored,
)
from tests.clickhouse.tables import REMEMBERS, Table
from tests.contract.sinks.broken_attempts import GOOD
from tests.servers.clickhouse import ClickhouseServer

FAULTS = int(os.environ.get("FAULTS", "504"))
SEEDS = 3
TABLES = {
    "tokens": f"ORDER BY tuple() {REMEMBERS}",
    "no tokens": "ORDER BY tuple()",
    "tokens, partitions": f"PARTITION BY number % 3 ORDER BY number {REMEMBERS}",
    "no tokens, partitions": "PARTITION BY number % 3 ORDER BY number",
}
KILLS = ("killed before", "killed during", "killed after")
KINDS = (
    "request lost",
    "answer lost",
    "comes late",
    "unavailable",
    "code 241",
    *KILLS,
    "client killed",
    "client killed",
)
HARMLESS = ("request lost", "answer lost", "unavailable")


@pytest.fixture(params=[1_000_000, 4], ids=["one insert", "three inserts"])
def inserts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """In how many a slot is stored."""
    if request.param == 4:
        monkeypatch.setattr(clickhouse_rows, "CHUNK_ROWS", 4)
        monkeypatch.setattr(clickhouse_rows, "INSERT_ROWS", 4)
    return 1 if request.param > 4 else 3


@pytest.fixture
def table(request: pytest.FixtureRequest, clickhouse: ClickhouseServer) -> Table:
    return Table(clickhouse, COLUMNS, after=TABLES[request.param])


@pytest.mark.parametrize("table", TABLES, indirect=True)
@pytest.mark.parametrize("kind", HARMLESS)
def test_any_request_may_be_lost_with_or_without_its_answer(
    table: Table, kind: str, inserts: int
) -> None:
    settings = table.settings()
    requests = requests_of_a_store(table, settings, 0)
    found: list[bool] = []
    for at in range(requests):
        table.server.play(kind, at)
        found.append(until_it_is_stored(settings, at + 1))
        assert table.server.hit()
        assert_stored_once(table, at + 1)
    assert found[-2] == (kind == "answer lost")  # the last INSERT, before the count
    assert len(table.rows("number", order="1")) == (requests + 1) * GOOD


@pytest.mark.parametrize("table", ["tokens, partitions", "no tokens"], indirect=True)
def test_a_process_may_be_killed_at_every_call(table: Table, inserts: int) -> None:
    settings = table.settings()
    for at in range(100):
        survived = not kill_a_client(settings, at, at)
        until_it_is_stored(settings, at)
        assert_stored_once(table, at)
        if survived:
            break
    assert 8 < at < 99


@pytest.mark.parametrize("table", ["tokens", "no tokens, partitions"], indirect=True)
def test_a_redo_may_be_killed_at_every_call(table: Table, inserts: int) -> None:
    settings = table.settings()
    for at in range(100):
        store(settings, at)
        survived = not kill_a_client(settings, at, at, redo=1)
        until_it_is_stored(settings, at, redo=1)
        assert_stored_once(table, at)
        if survived:
            break
    assert 10 < at < 99


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("table", TABLES, indirect=True)
def test_whatever_breaks_rows_are_stored_once(
    table: Table, inserts: int, seed: int, record_property: Callable[[str, object], None]
) -> None:
    server, settings, chance = table.server, table.settings(), random.Random(seed)
    requests = requests_of_a_store(table, settings, 0)
    kinds = some(KINDS, -(-FAULTS // (len(TABLES) * 2 * SEEDS)))
    chance.shuffle(kinds)
    deliveries = 1
    played: Counter[tuple[str, str]] = Counter()

    def mend() -> None:
        if kind in KILLS and server.running and server.hit():
            server.wait_for_its_end()
        if not server.running:
            server.start()

    for number, kind in enumerate(kinds, 1):
        redo = 0
        if chance.random() < 0.25:
            store(settings, number)
            redo = 1
        at = chance.choice((requests - 2, chance.randrange(requests)))  # mostly at an INSERT
        if kind == "client killed":
            assert kill_a_client(settings, number, chance.randrange(10), redo)
        else:
            server.play(kind, at, chance.choice((0.0, 1.0, 5.0, 20.0)))
        there = until_it_is_stored(settings, number, redo=redo, mend=mend)
        assert kind in (*KILLS, "client killed") or server.hit()
        played[kind, "found" if there else "stored"] += 1
        assert_stored_once(table, number)
        deliveries += 1
    assert len(table.rows("number", order="1")) == deliveries * GOOD
    record_property(FAULTS_PLAYED, [[*one, times] for one, times in played.items()])
