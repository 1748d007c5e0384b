"""What ClickHouse's columns take, what they do not, and how that is said."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from fuploader_dagster.contracts.sink import Delivery, ItemRows, RejectedItem
from fuploader_dagster.errors import SinkRefused
from fuploader_dagster.resources.sinks import clickhouse_rows
from fuploader_dagster.testing.sink_contract import SECRET, chain, no_reject
from tests.clickhouse.tables import Table
from tests.servers.clickhouse import ClickhouseServer

DELIVERY = Delivery("shop", "rows", "20261120T234501123Z-node1-s0-000017")
COLUMNS = (
    "id Int64, name String DEFAULT concat('no. ', toString(id)), tiny UInt8, big UInt256, "
    "maybe Nullable(Int32), share Float32, ratio Float64, flag Bool, day Date, far Date32, "
    "at DateTime('Asia/Tokyo'), fine DateTime64(3), price Decimal(9, 2), huge Decimal(38, 10), "
    "uid UUID, code FixedString(4), kind Enum8('small' = 1, 'large' = 2), ip IPv4, ip6 IPv6, "
    "word LowCardinality(Nullable(String)), tags Array(LowCardinality(String)), "
    "points Array(Array(Int32)), pairs Map(String, Int64), both Tuple(a Int8, b Nullable(String)), "
    "doc JSON, twice Int64 MATERIALIZED id * 2, thrice Int64 ALIAS id * 3"
)


@pytest.fixture(scope="module")
def table(clickhouse: ClickhouseServer) -> Table:
    return Table(clickhouse, COLUMNS)


@pytest.fixture(autouse=True)
def _empty(table: Table) -> None:
    table.server.execute(f"TRUNCATE TABLE {table.name}")


def stored(table: Table, *rows: dict[str, Any]) -> list[RejectedItem]:
    rejected: list[RejectedItem] = []
    sink = table.settings().sink()
    items = [ItemRows(number, [row]) for number, row in enumerate(rows)]
    sink.store(DELIVERY, items, rejected.extend)
    sink.close()
    return rejected


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=timezone.utc)  # type: ignore[misc,arg-type]


VALUES: dict[str, list[tuple[Any, str]]] = {
    "id": [((1 << 63) - 1, "9223372036854775807"), ("-12", "-12"), (3.0, "3"), (True, "1")],
    "name": [
        ("grüß 😀 'x'; \\ % {a:String}\0", "grüß 😀 'x'; \\ % {a:String}\0"),
        (12, "12"),
        (True, "true"),
        ({"a": [1, "ü"]}, '{"a": [1, "ü"]}'),
        (b"bytes", "bytes"),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    ],
    "tiny": [(255, "255")],
    "big": [((1 << 256) - 1, str((1 << 256) - 1))],
    "maybe": [(None, "NULL"), (-(1 << 31), "-2147483648"), (0, "0")],
    "share": [(0.5, "0.5"), (7, "7"), (float("inf"), "inf")],
    "ratio": [(1e300, "1e300"), ("1.25", "1.25"), (Decimal("0.5"), "0.5")],
    "flag": [(True, "true"), (0, "false"), ("False", "false")],
    "day": [(date(2149, 6, 6), "2149-06-06"), ("1970-01-01", "1970-01-01")],
    "far": [(date(1900, 1, 1), "1900-01-01"), (datetime(2299, 12, 31), "2299-12-31")],  # noqa: DTZ001
    "at": [
        (utc(2026, 1, 2, 3, 4, 5), "2026-01-02 12:04:05"),
        ("2026-01-02T03:04:05", "2026-01-02 12:04:05"),
        ("2026-01-02 03:04:05.9+02:00", "2026-01-02 10:04:05"),
        ("2026-01-02", "2026-01-02 09:00:00"),
        (0, "1970-01-01 09:00:00"),
    ],
    "fine": [
        (utc(2026, 1, 2, 3, 4, 5) + timedelta(microseconds=678_901), "2026-01-02 03:04:05.678"),
        ("1900-01-01T00:00:00.001Z", "1900-01-01 00:00:00.001"),
        (-1.5, "1969-12-31 23:59:58.500"),
    ],
    "price": [("12.50", "12.5"), (12.5, "12.5"), (-3, "-3"), (Decimal("9999999.99"), "9999999.99")],
    "huge": [
        ("1234567890123456789012345678.0123456789", "1234567890123456789012345678.0123456789")
    ],
    "uid": [(UUID(int=5), str(UUID(int=5))), (str(UUID(int=6)), str(UUID(int=6)))],
    "code": [("ab", "ab"), (b"\x01\x02\x03\x04", "\x01\x02\x03\x04"), ("ü", "ü")],
    "kind": [("large", "large"), (1, "small")],
    "ip": [("10.0.0.1", "10.0.0.1")],
    "ip6": [("2001:db8::1", "2001:db8::1"), ("10.0.0.1", "::ffff:10.0.0.1")],
    "word": [(None, "NULL"), ("w", "w")],
    "tags": [(["a", "b,c"], "['a','b,c']"), ([], "[]")],
    "points": [([[1, 2], [], [3]], "[[1,2],[],[3]]")],
    "pairs": [({"a": 1, "b": "2"}, "{'a':1,'b':2}")],
    "both": [({"b": None, "a": 1}, "(1,NULL)"), ([2, "x"], "(2,'x')")],
    "doc": [({"a": {"b": 1}, "c": ["x"]}, '{"a":{"b":1},"c":["x"]}')],
}


@pytest.mark.parametrize("column", VALUES)
def test_values_come_back_as_they_were(table: Table, column: str) -> None:
    rows = [{"id": number, column: value} for number, (value, _) in enumerate(VALUES[column])]
    assert stored(table, *rows) == []
    found = [one for (one,) in table.rows(f"ifNull(toString({column}), 'NULL')")]
    assert found == [text for _, text in VALUES[column]]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "null": ({"name": None}, "column name: NULL"),
    "type": ({"id": SECRET}, "column id: not a whole number"),
    "fraction": ({"id": 1.5}, "column id: not a whole number"),
    "endless": ({"id": float("inf")}, "column id: not a whole number"),
    "range": ({"tiny": 256}, "column tiny: a number out of range"),
    "below": ({"tiny": -1}, "column tiny: a number out of range"),
    "nullable range": ({"maybe": 1 << 31}, "column maybe: a number out of range"),
    "large range": ({"big": 1 << 256}, "column big: a number out of range"),
    "float": ({"ratio": SECRET}, "column ratio: not a number"),
    "float32": ({"share": 1e300}, "column share: a number out of range"),
    "bool": ({"flag": SECRET}, "column flag: neither true nor false"),
    "day": ({"day": SECRET}, "column day: not a day"),
    "odd day": ({"day": "2026-02-31"}, "column day: not a day"),
    "day range": ({"day": "1969-12-31"}, "column day: a day out of range"),
    "time of day": ({"day": utc(2026, 1, 1, 5)}, "column day: not a day"),
    "time": ({"at": SECRET}, "column at: not a time"),
    "time range": ({"at": "2200-01-01"}, "column at: a time out of range"),
    "fine range": ({"fine": utc(2300, 1, 1)}, "column fine: a time out of range"),
    "decimal": ({"price": SECRET}, "column price: not a number"),
    "digits": ({"price": "1.005"}, "column price: more than 2 digits after the point"),
    "decimal range": ({"price": 10**7}, "column price: a number out of range"),
    "no decimal": ({"price": float("nan")}, "column price: not a finite number"),
    "uuid": ({"uid": SECRET}, "column uid: not a UUID"),
    "length": ({"code": SECRET}, "column code: more than 4 bytes"),
    "enum": ({"kind": SECRET}, "column kind: not a member"),
    "ip": ({"ip": SECRET}, "column ip: not an IPv4 address"),
    "ip6": ({"ip6": SECRET}, "column ip6: not an IP address"),
    "surrogate": ({"name": f"\ud800{SECRET}"}, "column name: text with half of a surrogate pair"),
    "text for a list": ({"tags": SECRET}, "column tags: not a list"),
    "in a list": ({"points": [[1, SECRET]]}, "column points: not a whole number"),
    "null in a list": ({"tags": [None]}, "column tags: NULL"),
    "map": ({"pairs": [SECRET]}, "column pairs: not an object"),
    "in a map": ({"pairs": {"a": SECRET}}, "column pairs: not a whole number"),
    "tuple": ({"both": {"a": 1, SECRET: 2}}, "column both: an object with other names"),
    "long tuple": ({"both": [1, "a", SECRET]}, "column both: not a list of 2"),
    "json": ({"doc": [SECRET]}, "column doc: not an object"),
    "json paths": (
        {"doc": {"a": {"b": 1}, "a.b": SECRET}},
        "column doc: an object with two values",
    ),
    "odd value": ({"name": object()}, "column name: what cannot be written as JSON"),
    "unknown column": ({"colour": SECRET}, "has no column colour"),
    "materialized": ({"twice": 2}, "computes column twice"),
    "alias": ({"thrice": 2}, "computes column thrice"),
    "slot": ({"_slot": SECRET}, "column _slot is for the key of the partition"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_rejected_with_its_reason_and_the_others_are_stored(
    table: Table, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    row, words = BAD[kind]
    (found,) = stored(table, {"id": 1}, {"id": 5, **row}, {"id": 2}, {"id": 3})
    assert found.position == 1
    assert words in found.reason
    assert "hunter" not in found.reason + caplog.text
    assert table.rows("id") == [(1,), (2,), (3,)]


def test_a_row_without_columns_is_rejected(table: Table) -> None:
    (found,) = stored(table, {"id": 1}, {})
    assert found.reason == "the row has no columns"


def test_rows_of_one_delivery_may_have_different_columns_and_defaults_are_the_servers(
    table: Table,
) -> None:
    rows = [{"id": 1, "name": "a"}, {"id": 2}, {"tiny": 3, "id": 3}, {"id": 4, "name": "d"}]
    assert stored(table, *rows) == []
    assert table.rows("id, name, tiny, twice", order="id") == [
        (1, "a", 0, 2),
        (2, "no. 2", 0, 4),
        (3, "no. 3", 3, 6),
        (4, "d", 0, 8),
    ]
    parts = f"SELECT count() FROM system.parts WHERE active AND table = '{table.name}'"  # noqa: S608
    assert table.server.rows(parts) == [(1,)]


def test_a_table_that_takes_no_row_is_to_blame_and_no_item_is_rejected(table: Table) -> None:
    items = [ItemRows(number, [{"id": SECRET}]) for number in range(12)]
    sink = table.settings().sink()
    with pytest.raises(SinkRefused, match=r"no row was accepted.*column id: not a whole") as caught:
        sink.store(DELIVERY, items, no_reject)
    assert SECRET not in str(list(chain(caught.value)))
    few: list[RejectedItem] = []
    assert sink.store(DELIVERY, items[:9], few.extend).rows == 0
    assert len(few) == 9
    sink.close()


def test_a_column_that_came_later_is_seen(clickhouse: ClickhouseServer) -> None:
    table = Table(clickhouse, "id Int64")
    sink = table.settings().sink()
    items = [ItemRows(0, [{"id": 2, "colour": "red"}])]
    with pytest.raises(SinkRefused, match="has no column colour"):
        sink.store(DELIVERY, items, no_reject)
    sink.store(Delivery("shop", "rows", "another"), [ItemRows(0, [{"id": 1}])], no_reject)
    clickhouse.execute(f"ALTER TABLE {table.name} ADD COLUMN colour String")
    assert sink.store(DELIVERY, items, no_reject).rows == 1  # the same sink sees it
    sink.close()
    assert table.rows("id, colour", order="id") == [(1, ""), (2, "red")]


def test_a_large_slot_is_several_inserts_that_are_counted_together(
    clickhouse: ClickhouseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clickhouse_rows, "CHUNK_ROWS", 500)
    monkeypatch.setattr(clickhouse_rows, "INSERT_ROWS", 1_000)
    table = Table(clickhouse, "id Int64, name String")
    sink = table.settings().sink()
    items = [ItemRows(number, [{"id": number, "name": "x"}]) for number in range(3_300)]
    assert sink.store(DELIVERY, items, no_reject).rows == 3_300
    sink.close()
    assert [one for (one,) in table.rows("id")] == list(range(3_300))
    parts = f"SELECT count(DISTINCT _part) FROM {table.name}"  # noqa: S608
    assert table.server.rows(parts)[0][0] in range(1, 5)
    assert table.rows("DISTINCT _slot", order="1") == [(f"{DELIVERY.partition} shop/rows 3300",)]
