"""Rows are stored exactly once, whatever breaks, and at whatever moment.

The table has no unique key, so a row that is stored twice is seen. Each fault hits one delivery,
which is then tried again until it is stored, as the engine does. FAULTS=500 plays more of them.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
import sqlalchemy as sa

from fuploader_dagster.contracts.sink import ItemRows, RejectedItem, StoredRows
from fuploader_dagster.resources.sinks import sql_insertion
from fuploader_dagster.resources.sinks.sql import SqlSink
from fuploader_dagster.testing.sink_contract import no_reject
from tests.contract.sinks.broken_attempts import (
    BAD,
    GOOD,
    ITEMS,
    attempted,
    delivery_of,
    is_killed,
    until_it_is_stored,
)
from tests.contract.sinks.cutting_proxy import CuttingProxy, Kind
from tests.contract.sinks.databases import DIALECTS, SERVERS, Database, SqliteFile, Table
from tests.servers.mariadb import MariadbServer
from tests.servers.postgresql import PostgresqlServer

FAULTS = int(os.environ.get("FAULTS", "25"))
COLUMNS = "number INTEGER NOT NULL, amount INTEGER CHECK (amount < 1000), slot VARCHAR(100)"
KINDS: Sequence[Kind] = ("request lost", "answer lost", "server killed")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """More moments at which something can break."""
    monkeypatch.setattr(sql_insertion, "CHUNK_ROWS", 4)


@pytest.fixture
def table(database: Database) -> Table:
    return Table(database, COLUMNS)


@pytest.fixture
def proxy(database: Database) -> Iterator[CuttingProxy]:
    assert isinstance(database, PostgresqlServer | MariadbServer)
    with CuttingProxy(database.port, database.kill) as running:
        yield running
        if not database.running:
            database.start()


@pytest.mark.parametrize("database", SERVERS, indirect=True)
@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_connection_may_break_at_every_moment(
    table: Table, proxy: CuttingProxy, kind: Kind
) -> None:
    settings = table.settings(url=table.database.url(proxy.port))
    pieces = pieces_of_a_store(settings, proxy)
    found: list[bool] = []
    for at in range(pieces):
        proxy.play(kind, at)
        found.append(broken_and_tried_again(settings, at + 1))
        assert proxy.hit
        assert_stored_once(table, at + 1)
    if kind == "answer lost":
        assert any(found), "the answer to a COMMIT was never lost"


@pytest.mark.parametrize("database", SERVERS, indirect=True)
def test_whatever_breaks_rows_are_stored_once(table: Table, proxy: CuttingProxy) -> None:
    server = table.database
    assert isinstance(server, PostgresqlServer | MariadbServer)
    settings = table.settings(url=server.url(proxy.port), slot_column="slot")
    direct = table.settings(slot_column="slot")
    chance = random.Random(7)
    pieces = pieces_of_a_store(settings, proxy)
    played: Counter[str] = Counter()

    def mend() -> None:
        proxy.wait_for_kill()
        if not server.running:
            server.start()

    for number in range(1, FAULTS + 1):
        kind = chance.choice((*KINDS, "client killed"))
        if kind == "client killed":
            kill_a_client(direct, number, chance.randrange(pieces))
            proxy.play(None)
        else:
            commit = pieces - 1  # the moment that matters most
            proxy.play(kind, chance.choice((commit, chance.randrange(pieces))))
        there = broken_and_tried_again(settings, number, mend=mend)
        assert kind == "client killed" or proxy.hit
        played[f"{kind}, {'found' if there else 'stored again'}"] += 1
        assert_stored_once(table, number)
        if chance.random() < 0.2:
            proxy.play("answer lost", chance.randrange(pieces))
            broken_and_tried_again(settings, number, redo=1)
            assert_stored_once(table, number)
    assert any("found" in one for one in played), "the answer to a COMMIT was never lost"
    print(f"{FAULTS} faults: {dict(sorted(played.items()))}")
    assert len(table.rows()) == (FAULTS + 1) * GOOD


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_a_process_may_be_killed_at_every_statement(table: Table) -> None:
    settings = table.settings()
    store(settings, 0, with_redo=0)
    number = 0
    for number in range(1, 200):
        survived = not kill_a_client(settings, number, number - 1)
        broken_and_tried_again(settings, number)
        assert_stored_once(table, number)
        if survived:  # it had no more statements
            break
    assert 15 < number < 199


def test_processes_killed_at_random_leave_a_file_with_each_row_once(sqlite: SqliteFile) -> None:
    table = Table(sqlite, COLUMNS)
    settings = table.settings(slot_column="slot")
    store(settings, 0, with_redo=0)
    chance = random.Random(7)
    for number in range(1, FAULTS + 1):
        kill_a_client(settings, number, chance.randrange(80))
        broken_and_tried_again(settings, number)
        assert_stored_once(table, number)
    assert len(table.rows()) == (FAULTS + 1) * GOOD


def pieces_of_a_store(settings: SqlSink, proxy: CuttingProxy) -> int:
    """The last one is the COMMIT."""
    settings.sink().store(delivery_of(-1), [], no_reject)  # the ledger is there then
    sink = settings.sink()
    proxy.play(None)
    rejected: list[RejectedItem] = []
    sink.store(delivery_of(0), items_of(0), rejected.extend)
    pieces = proxy.pieces
    sink.close()
    return pieces


def items_of(number: int) -> Iterator[ItemRows]:
    for position in range(ITEMS):
        amount = 5_000 if position in BAD else 1
        yield ItemRows(position, [{"number": number * 100 + position, "amount": amount}])


def store(settings: SqlSink, number: int, *, with_redo: int) -> tuple[StoredRows, list[int]]:
    return attempted(settings, delivery_of(number, with_redo), items_of(number))


def broken_and_tried_again(
    settings: SqlSink, number: int, *, redo: int = 0, mend: Callable[[], None] = lambda: None
) -> bool:
    return until_it_is_stored(lambda: store(settings, number, with_redo=redo), mend=mend)


def assert_stored_once(table: Table, number: int) -> None:
    first = number * 100
    names = [one for (one,) in table.rows("number") if first <= one < first + 100]
    assert names == [first + position for position in range(ITEMS) if position not in BAD]


def kill_a_client(settings: SqlSink, number: int, at: int) -> bool:
    """Store in a process that kills itself before or after its statement `at`; an odd number after
    the last one means that it dies with everything stored. Whether it died at a statement."""
    return is_killed(lambda: _die_at_statement(at), lambda: store(settings, number, with_redo=0))


def _die_at_statement(at: int) -> None:
    seen = [0]

    def count(*_: object) -> None:
        if seen[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen[0] += 1

    for moment in ("before_cursor_execute", "after_cursor_execute", "commit"):
        sa.event.listen(sa.Engine, moment, count)
