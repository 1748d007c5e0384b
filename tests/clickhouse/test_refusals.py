"""What a person must put right, and what may pass, is told apart and said without any value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.sink import Delivery, ItemRows
from fuploader_dagster.errors import ConfigError, FuploaderError, SinkRefused, SinkUnavailable
from fuploader_dagster.resources.sinks.clickhouse import MOST_ATTEMPTS, ClickHouseSink
from fuploader_dagster.testing.sink_contract import no_reject
from tests.clickhouse.attempts import COLUMNS
from tests.clickhouse.tables import Table
from tests.contract.sinks.broken_attempts import failure_of
from tests.servers.clickhouse import ClickhouseServer
from tests.servers.odd_server import make_certificate
from tests.servers.ports import free_port

DELIVERY = Delivery("shop", "rows", "20261120T234501123Z-node1-s0-000017")
REDO = Delivery("shop", "rows", "20261120T234501123Z-node1-s0-000017", redo=1)

_PROBE = 2
"""A request whose failure means something to the driver, which goes on."""


def items(count: int = 3) -> Iterator[ItemRows]:
    for number in range(count):
        yield ItemRows(number, [{"number": number, "amount": 1}])


def failure(settings: ClickHouseSink, delivery: Delivery = DELIVERY) -> FuploaderError:
    """What storing three good rows fails with."""
    error = failure_of(settings, delivery, items())
    assert "hunter2" not in str(error)
    return error


def wrong(settings: ClickHouseSink) -> list[Diagnosis]:
    return [one for one in settings.examine() if one.verdict != "good"]


@pytest.fixture
def table(clickhouse: ClickhouseServer) -> Table:
    return Table(clickhouse, COLUMNS)


def test_a_missing_table_or_database_is_said(table: Table) -> None:
    error = failure(table.settings(table="nowhere"))
    assert isinstance(error, SinkRefused)
    assert "there is no table nowhere" in error.message
    assert isinstance(failure(table.settings(table="no_base.nowhere")), SinkRefused)
    error = failure(table.settings(url=table.server.url("no_base")))
    assert isinstance(error, SinkRefused)
    assert "there is no such database" in error.message


def test_a_missing_column_is_said(table: Table) -> None:
    error = failure(table.settings(columns=["number", "colour", "size"]))
    assert isinstance(error, SinkRefused)
    assert "has no column colour, size" in error.message


def test_a_missing_slot_column_is_said_with_the_statement_that_adds_it(
    clickhouse: ClickhouseServer,
) -> None:
    table = Table(clickhouse, COLUMNS, slot="")
    error = failure(table.settings())
    assert isinstance(error, SinkRefused)
    assert "has no column _slot" in error.message
    clickhouse.execute(error.hint)
    sink = table.settings().sink()
    assert sink.store(DELIVERY, items(), no_reject).rows == 3
    sink.close()


def test_a_slot_column_of_another_type_is_refused(clickhouse: ClickhouseServer) -> None:
    table = Table(clickhouse, COLUMNS, slot="_slot Nullable(String)")
    assert "has the type Nullable(String)" in failure(table.settings()).message


def test_a_plain_string_is_a_good_slot_column(clickhouse: ClickhouseServer) -> None:
    table = Table(clickhouse, COLUMNS, slot="origin String")
    sink = table.settings(slot_column="origin").sink()
    assert sink.store(DELIVERY, items(), no_reject).rows == 3
    assert sink.store(REDO, items(2), no_reject).rows == 2
    sink.close()
    assert table.rows("DISTINCT origin", order="1") == [(f"{DELIVERY.partition}#1 shop/rows 2",)]


@pytest.mark.parametrize(
    ("engine", "after"),
    [("ReplacingMergeTree", "ORDER BY number"), ("Memory", ""), ("Null", "")],
)
def test_a_table_that_merges_or_drops_rows_is_refused(
    clickhouse: ClickhouseServer, engine: str, after: str
) -> None:
    error = failure(Table(clickhouse, COLUMNS, engine=engine, after=after).settings())
    assert isinstance(error, SinkRefused)
    assert f"has the engine {engine}" in error.message


def test_a_wrong_password_is_refused_and_not_shown(table: Table) -> None:
    url = table.server.url().replace(table.server.password, "wrong-and-secret")
    error = failure(table.settings(url=url))
    assert isinstance(error, SinkRefused)
    assert "login" in error.message
    assert "wrong-and-secret" not in str(error)
    assert [one.verdict for one in _examined(table.settings(url=url))] == ["wrong"]


def _examined(settings: ClickHouseSink) -> list[Diagnosis]:
    try:
        return list(settings.examine())
    except SinkRefused as error:
        return [Diagnosis("sink", "wrong", error.message, error.hint)]


@pytest.mark.parametrize(
    ("code", "passes"),
    [
        (497, False),
        (164, False),
        (469, False),
        (241, True),
        (252, True),
        (242, True),
        (99_999, True),
    ],
)
def test_errors_of_the_server_are_told_by_number_without_their_text(
    table: Table, code: int, passes: bool
) -> None:
    requests = _requests(table)
    for at in sorted({*range(requests)} - {_PROBE}):
        table.server.play(f"code {code}", at)
        error = failure(table.settings(), Delivery("shop", "rows", f"p{code}-{at}"))
        assert isinstance(error, SinkUnavailable if passes else SinkRefused)
        assert f"ClickHouse error {code}" in error.message


def _requests(table: Table) -> int:
    table.server.play(None)
    sink = table.settings().sink()
    sink.store(Delivery("shop", "rows", "first"), items(), no_reject)
    sink.close()
    return table.server.requests()


def test_a_row_that_breaks_a_constraint_refuses_the_slot_without_its_value(
    clickhouse: ClickhouseServer,
) -> None:
    table = Table(clickhouse, f"{COLUMNS}, CONSTRAINT small CHECK number < 2")
    error = failure(table.settings())
    assert isinstance(error, SinkRefused)
    assert "CHECK constraint" in error.message
    assert table.rows("number") == []


def test_a_server_that_is_away_slow_or_no_clickhouse_may_pass(
    table: Table, clickhouse: ClickhouseServer
) -> None:
    away = table.settings(url=f"http://a:b@127.0.0.1:{free_port()}/default")
    assert isinstance(failure(away), SinkUnavailable)
    clickhouse.pause()
    try:
        assert isinstance(failure(table.settings(timeout_seconds=0.5)), SinkUnavailable)
    finally:
        clickhouse.resume()
    assert isinstance(
        failure(table.settings(url=clickhouse.url().replace("http:", "https:"))), SinkUnavailable
    )


def test_examining_changes_nothing_and_says_what_lacks(clickhouse: ClickhouseServer) -> None:
    table = Table(clickhouse, COLUMNS, after="ORDER BY number")
    settings = table.settings(columns=["number"])
    checks = {one.check: one for one in settings.examine()}
    assert set(checks) == {"server", "table", "rows", "redo", "tokens"}
    assert checks["tokens"].verdict == "warning"
    clickhouse.execute(checks["tokens"].hint)
    assert wrong(settings) == []
    for check, code, request in (("rows", 497, 7), ("redo", 497, 8)):
        found = _examined_with(table, code, request)
        assert {one.check: one.verdict for one in found}[check] == "wrong"
    assert table.rows("number") == []
    with pytest.raises(SinkRefused, match="has no column colour"):
        list(table.settings(columns=["colour"]).examine())


def _examined_with(table: Table, code: int, request: int) -> list[Diagnosis]:
    table.server.play(f"code {code}", request)
    found = list(table.settings(columns=["number"]).examine())
    assert table.server.hit()
    return found


def test_the_doctor_likes_the_table_of_the_page_on_sinks(clickhouse: ClickhouseServer) -> None:
    page = (Path(__file__).parents[2] / "docs" / "sinks.md").read_text("utf-8")
    (statement,) = re.findall(r"```sql\n(.*?)```", page, re.S)
    clickhouse.execute("DROP TABLE IF EXISTS my_table", statement)
    settings = ClickHouseSink.model_validate({"url": clickhouse.url(), "table": "default.my_table"})
    assert wrong(settings) == []
    sink = settings.sink()
    rows = [ItemRows(0, [{"id": 1, "name": None}])]
    assert sink.store(DELIVERY, rows, no_reject).address.endswith("/default.my_table")
    sink.close()


def test_hashes_outlive_rows_and_a_redo_is_stored_nevertheless(table: Table) -> None:
    sink = table.settings().sink()
    sink.store(DELIVERY, items(), no_reject)
    by_hand = f"DELETE FROM {table.name} WHERE 1"  # noqa: S608
    table.server.execute(by_hand)
    assert sink.store(DELIVERY, items(), no_reject).rows == 3
    assert sink.store(REDO, items(), no_reject).rows == 3
    sink.close()
    assert len(table.rows("number")) == 3


def test_rows_that_do_not_stay_are_no_endless_loop(table: Table) -> None:
    """Here a person deletes them as often as there are tokens."""
    sink = table.settings().sink()
    for _ in range(MOST_ATTEMPTS):
        sink.store(DELIVERY, items(), no_reject)
        by_hand = f"DELETE FROM {table.name} WHERE 1"  # noqa: S608
        table.server.execute(by_hand)
    with pytest.raises(SinkUnavailable, match=r"stored 3 rows of .*, and counted 0") as caught:
        sink.store(DELIVERY, items(), no_reject)
    assert "redo" in caught.value.hint
    assert sink.store(REDO, items(), no_reject).rows == 3
    sink.close()


def test_a_certificate_is_checked(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    server = ClickhouseServer(tmp_path, certificate)
    server.start()
    try:
        table = Table(server, COLUMNS)
        error = failure(table.settings())
        assert isinstance(error, SinkRefused)
        assert "ca_file" in error.hint
        error = failure(table.settings(ca_file=tmp_path / "none.pem"))
        assert isinstance(error, ConfigError)
        sink = table.settings(ca_file=certificate).sink()
        assert sink.store(DELIVERY, items(), no_reject).rows == 3
        sink.close()
    finally:
        server.kill()
