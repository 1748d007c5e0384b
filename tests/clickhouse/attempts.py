"""Deliveries of the fault tests, and attempts to store them until they are stored."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence

from fuploader_dagster.contracts.sink import ItemRows, StoredRows
from fuploader_dagster.resources.sinks.clickhouse import ClickHouseSink
from fuploader_dagster.resources.sinks.clickhouse_server import Server
from tests.clickhouse.tables import Table
from tests.contract.sinks import broken_attempts
from tests.contract.sinks.broken_attempts import (
    BAD,
    ITEMS,
    attempted,
    delivery_of,
    is_killed,
)

FAULTS_PLAYED = "faults played"
"""What a test reports: kinds, what the next attempt found, how often."""
COLUMNS = "number Int64, amount Nullable(Int32)"


def items_of(number: int) -> Iterator[ItemRows]:
    for position in range(ITEMS):
        amount = "no number" if position in BAD else 1
        yield ItemRows(position, [{"number": number * 100 + position, "amount": amount}])


def store(settings: ClickHouseSink, number: int, redo: int = 0) -> tuple[StoredRows, list[int]]:
    return attempted(settings, delivery_of(number, redo), items_of(number))


def until_it_is_stored(
    settings: ClickHouseSink,
    number: int,
    *,
    redo: int = 0,
    mend: Callable[[], None] = lambda: None,
) -> bool:
    return broken_attempts.until_it_is_stored(
        lambda: store(settings, number, redo), attempts=6, mend=mend
    )


def assert_stored_once(table: Table, number: int) -> None:
    first = number * 100
    query = f"SELECT number FROM {table.name} WHERE number >= {first} AND number < {first + 100}"  # noqa: S608
    found = [one for (one,) in table.server.rows(f"{query} ORDER BY number")]
    assert found == [first + position for position in range(ITEMS) if position not in BAD]


def kill_a_client(settings: ClickHouseSink, number: int, at: int, redo: int = 0) -> bool:
    """Store in a process that kills itself before (an even number) or after its call `at // 2` of
    the server. Whether it died of that."""
    return is_killed(lambda: _die_at(at), lambda: store(settings, number, redo))


def _die_at(at: int) -> None:
    moments = iter(range(1 << 30))
    original = Server._called

    def called(self: Server, *arguments: object) -> object:
        _die_if(next(moments) == at)
        found = original(self, *arguments)  # type: ignore[arg-type,var-annotated]
        _die_if(next(moments) == at)
        return found

    Server._called = called  # type: ignore[assignment]


def _die_if(due: bool) -> None:
    if due:
        os.kill(os.getpid(), signal.SIGKILL)


def requests_of_a_store(table: Table, settings: ClickHouseSink, number: int) -> int:
    """How many a new sink sends; the last one counts what is stored."""
    table.server.play(None)
    store(settings, number)
    return table.server.requests()


def some(kinds: Sequence[str], count: int) -> list[str]:
    """Each of them about as often."""
    return [kinds[number % len(kinds)] for number in range(count)]
