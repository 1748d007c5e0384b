"""Rows that a database does not take: the reason names their place, and no value."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from fuploader_dagster.contracts.sink import Delivery, ItemRows, RejectedItem
from fuploader_dagster.errors import SinkRefused
from fuploader_dagster.testing.sink_contract import SECRET, chain, no_reject
from tests.contract.sinks.databases import DIALECTS, Database, Table

DELIVERY = Delivery("shop", "rows", "20261120T234501123Z-node1-s0-000017")
COLUMNS = {
    "sqlite": """
        id INTEGER PRIMARY KEY, name TEXT NOT NULL DEFAULT '-', code VARCHAR(8) UNIQUE,
        amount INTEGER CONSTRAINT small_amount CHECK (typeof(amount) IN ('integer', 'null')
        AND amount < 1000), at DATETIME, doc JSON, data BLOB, price NUMERIC, share DOUBLE,
        parent INTEGER REFERENCES {parents} (id), flag BOOLEAN, needed TEXT,
        same INTEGER GENERATED ALWAYS AS (amount)""",
    "postgresql": """
        id BIGINT PRIMARY KEY, name TEXT NOT NULL DEFAULT '-', code VARCHAR(8) UNIQUE,
        amount INTEGER CONSTRAINT small_amount CHECK (amount < 1000), at TIMESTAMP,
        at_zone TIMESTAMPTZ, day DATE, doc JSONB, data BYTEA, price NUMERIC(8, 2),
        share DOUBLE PRECISION, parent INTEGER CONSTRAINT has_parent REFERENCES {parents} (id)
        DEFERRABLE INITIALLY DEFERRED, flag BOOLEAN, tags TEXT[], uid UUID,
        same INTEGER GENERATED ALWAYS AS (amount) STORED, search TSVECTOR""",
    "mariadb": """
        id BIGINT PRIMARY KEY, name VARCHAR(100) NOT NULL DEFAULT '-', code VARCHAR(8) UNIQUE,
        amount INTEGER, at DATETIME(6), day DATE, doc JSON, data LONGBLOB, price DECIMAL(8, 2),
        share DOUBLE, parent INTEGER, flag BOOLEAN, text_of_it LONGTEXT,
        kind ENUM('small', 'large'), latin VARCHAR(20) CHARACTER SET latin1,
        same INTEGER AS (amount) STORED,
        CONSTRAINT small_amount CHECK (amount < 1000),
        CONSTRAINT has_{parents} FOREIGN KEY (parent) REFERENCES {parents} (id)""",
}


@dataclass(frozen=True)
class Bad:
    """A row that is bad, and words that its reason must have."""

    row: dict[str, Any]
    words: tuple[str, ...]


BAD = {
    "sqlite": {
        "null": Bad({"name": None}, ("NOT NULL", ".name")),
        "twice": Bad({"id": 1}, ("UNIQUE", ".id")),
        "type": Bad({"amount": SECRET}, ("CHECK", "small_amount")),
        "check": Bad({"amount": 1_000}, ("CHECK", "small_amount")),
        "foreign key": Bad({"parent": 99}, ("FOREIGN KEY",)),
        "key of text": Bad({"id": SECRET}, ("datatype mismatch",)),
        "large integer": Bad({"price": 1 << 70}, ("price", "64 bits")),
        "no number": Bad({"share": float("nan")}, ("share", "NaN")),
        "no number in json": Bad({"doc": {"a": float("nan")}}, ("doc", "JSON")),
        "computed": Bad({"same": 10}, ("computes column same",)),
        "surrogate": Bad({"name": f"\ud800{SECRET}"}, ("name", "surrogate")),
        "unknown column": Bad({"colour": SECRET}, ("no column colour",)),
        "odd value": Bad({"name": object()}, ("name", "object")),
        "no columns": Bad({}, ("no columns",)),
    },
    "postgresql": {
        "null": Bad({"name": None}, ("not null violation", "column name", "23502")),
        "twice": Bad({"id": 1, "name": SECRET}, ("unique violation", "_pkey", "23505")),
        "twice another": Bad({"code": SECRET[:8]}, ("unique violation", "code_key")),
        "type": Bad({"amount": SECRET}, ("invalid text", "type integer", "column amount", "22P02")),
        "type of json": Bad({"amount": {"a": SECRET}}, ("type integer", "22P02")),
        "fraction": Bad({"amount": 1.5}, ("type integer", "22P02")),
        "range": Bad({"amount": 1 << 40}, ("numeric value", "22003")),
        "length": Bad({"code": SECRET}, ("truncation", "column code", "22001")),
        "check": Bad({"amount": 1_000}, ("check violation", "small_amount", "23514")),
        "foreign key": Bad({"parent": 99}, ("foreign key violation", "has_parent", "23503")),
        "time": Bad({"at": SECRET}, ("datetime", "22007")),
        "no time": Bad({"at": "2026-02-31T00:00:00Z"}, ("datetime", "22008")),
        "precision": Bad({"price": Decimal("1e9")}, ("numeric value", "22003")),
        "array": Bad({"tags": "{" + SECRET}, ("22P02",)),
        "no number in text": Bad({"name": {SECRET: float("inf")}}, ("name", "JSON")),
        "computed": Bad({"same": 10}, ("computes column same",)),
        "syntax of a type": Bad({"search": f"'{SECRET}"}, ("search", "42601")),
        "mixed array": Bad({"tags": [1, SECRET]}, ("driver",)),
        "uid": Bad({"uid": SECRET}, ("type uuid",)),
        "bytes": Bad({"amount": SECRET.encode()}, ("type integer", "column amount")),
        "NUL": Bad({"name": f"{SECRET}\0"}, ("name", "NUL")),
        "NUL in json": Bad({"doc": {"a": f"{SECRET}\0"}}, ("22P05",)),
        "surrogate": Bad({"name": f"\ud800{SECRET}"}, ("name", "surrogate")),
        "unknown column": Bad({"colour": SECRET}, ("no column colour",)),
        "odd value": Bad({"name": object()}, ("name", "object")),
        "no columns": Bad({}, ("no columns",)),
    },
    "mariadb": {
        "null": Bad({"name": None}, ("cannot be null", "name", "1048")),
        "twice": Bad({"id": 1, "name": SECRET}, ("duplicate key", "PRIMARY", "1062")),
        "twice another": Bad({"code": SECRET[:8]}, ("duplicate key", "code", "1062")),
        "type": Bad({"amount": SECRET}, ("incorrect value", "amount", "1366")),
        "range": Bad({"amount": 1 << 40}, ("out of range", "amount", "1264")),
        "length": Bad({"code": SECRET}, ("too long", "code", "1406")),
        "check": Bad({"amount": 1_000}, ("check constraint", "small_amount", "4025")),
        "foreign key": Bad({"parent": 99}, ("foreign key", "has_orders", "1452")),
        "time": Bad({"at": SECRET}, ("incorrect value", "at", "1292")),
        "json": Bad({"doc": "{" + SECRET}, ("check constraint", "doc", "4025")),
        "choice": Bad({"kind": SECRET}, ("truncated", "kind", "1265")),
        "characters": Bad({"latin": f"\u4e00{SECRET[:3]}"}, ("incorrect value", "latin", "1366")),
        "packet": Bad({"text_of_it": SECRET * 120_000}, ("max_allowed_packet",)),
        "packet of bytes": Bad({"data": b"\0" * 1_100_000}, ("max_allowed_packet",)),
        "no number": Bad({"share": float("nan")}, ("share", "not finite")),
        "no number in text": Bad({"text_of_it": [float("nan")]}, ("text_of_it", "JSON")),
        "fraction": Bad({"amount": 1.5}, ("amount", "fraction")),
        "fraction of a decimal": Bad({"amount": Decimal("1.5")}, ("amount", "fraction")),
        "fraction in text": Bad({"amount": "15e-1"}, ("amount", "fraction")),
        "large exponent": Bad({"amount": "1e999999999"}, ("out of range", "amount")),
        "computed": Bad({"same": 10}, ("computes column same",)),
        "no decimal": Bad({"price": Decimal("NaN")}, ("price", "not finite")),
        "surrogate": Bad({"name": f"\ud800{SECRET}"}, ("name", "surrogate")),
        "unknown column": Bad({"colour": SECRET}, ("no column colour",)),
        "odd value": Bad({"name": object()}, ("name", "object")),
        "no columns": Bad({}, ("no columns",)),
    },
}


def table_of(database: Database, dialect: str) -> Table:
    parents = Table(database, "id INTEGER PRIMARY KEY")
    table = Table(database, COLUMNS[dialect].format(parents=parents.name))
    first = f"(1, 'first', '{SECRET[:8]}')"
    database.execute(f"INSERT INTO {table.name} (id, name, code) VALUES {first}")  # noqa: S608
    return table


@pytest.fixture
def table(database: Database, request: pytest.FixtureRequest) -> Table:
    return table_of(database, request.node.callspec.params["database"])


@pytest.mark.parametrize(
    ("database", "kind"),
    [(dialect, kind) for dialect in DIALECTS for kind in BAD[dialect]],
    indirect=["database"],
)
def test_a_bad_row_is_rejected_with_its_reason_and_the_others_are_stored(
    table: Table, kind: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    bad = BAD[request.node.callspec.params["database"]][kind]
    bad_row = {"id": 5, **bad.row} if bad.row else {}
    good = [{"id": number, "name": "good", "amount": number} for number in (2, 3, 4)]
    rows = [good[0], bad_row, good[1], good[2]]
    rejected: list[RejectedItem] = []
    sink = table.settings().sink()
    items = [ItemRows(number, [row]) for number, row in enumerate(rows)]
    assert sink.store(DELIVERY, items, rejected.extend).rows == 3
    sink.close()
    (found,) = rejected
    assert found.position == 1
    assert all(word in found.reason for word in bad.words), found.reason
    assert "hunter" not in found.reason + caplog.text
    assert table.rows("id") == [(1,), (2,), (3,), (4,)]


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_a_table_that_takes_no_row_is_to_blame_and_no_item_is_rejected(table: Table) -> None:
    items = [ItemRows(number, [{"id": number + 2, "amount": 5_000}]) for number in range(12)]
    sink = table.settings().sink()
    with pytest.raises(SinkRefused, match=r"no row was accepted.*(?i:check)") as caught:
        sink.store(DELIVERY, items, no_reject)
    assert SECRET not in str(list(chain(caught.value)))
    assert table.rows("id") == [(1,)]
    few: list[RejectedItem] = []
    assert sink.store(DELIVERY, items[:9], few.extend).rows == 0
    assert len(few) == 9
    sink.close()


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_a_column_that_no_item_has_right_is_said_whatever_their_number(table: Table) -> None:
    sink = table.settings().sink()
    items = [ItemRows(0, [{"id": 2, "colour": SECRET}])]
    with pytest.raises(SinkRefused, match=r"no column colour") as caught:
        sink.store(DELIVERY, items, no_reject)
    assert caught.value.hint
    assert SECRET not in str(list(chain(caught.value)))
    table.database.execute(f"ALTER TABLE {table.name} ADD COLUMN colour VARCHAR(100)")
    assert sink.store(DELIVERY, items, no_reject).rows == 1  # the same sink sees the new column
    sink.close()


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_rows_of_one_delivery_may_have_different_columns(table: Table) -> None:
    rows: list[dict[str, Any]] = [
        {"id": 10, "name": "a"},
        {"id": 11},
        {"name": "c", "id": 12},
        {"id": 13, "amount": 3},
        {"id": 14},
    ]
    sink = table.settings().sink()
    items = [ItemRows(number, [row]) for number, row in enumerate(rows)]
    assert sink.store(DELIVERY, items, no_reject).rows == 5
    sink.close()
    assert table.rows("id, name, amount")[1:] == [
        (10, "a", None),
        (11, "-", None),
        (12, "c", None),
        (13, "-", 3),
        (14, "-", None),
    ]


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_with_a_key_the_last_row_of_a_key_wins_whatever_its_columns(table: Table) -> None:
    rows: list[dict[str, Any]] = [
        {"id": 1, "name": "x"},
        {"id": 2, "name": "a"},
        {"id": 2, "amount": 1},
        {"id": 2, "name": "b"},
        {"id": 3},
        {"id": 2, "amount": 2},
        {"id": 3},
    ]
    bad: list[dict[str, Any]] = [{"name": "no key"}, {"id": None, "name": "no key"}]
    items = [ItemRows(number, [row]) for number, row in enumerate([*rows, *bad])]
    rejected: list[RejectedItem] = []
    sink = table.settings(key=["id"]).sink()
    assert sink.store(DELIVERY, items, rejected.extend).rows == 7
    sink.close()
    assert [one.position for one in rejected] == [7, 8]
    assert all("column id of the key" in one.reason for one in rejected)
    assert table.rows("id, name, amount") == [(1, "x", None), (2, "b", 2), (3, "-", None)]


def utc(*parts: int) -> datetime:
    """Without a time zone, as columns without one give it back."""
    return datetime(*parts, tzinfo=timezone.utc).replace(tzinfo=None)  # type: ignore[misc,arg-type]


VALUES: dict[str, dict[str, tuple[Any, Any]]] = {
    "sqlite": {
        "id": ((1 << 63) - 1, (1 << 63) - 1),
        "name": ("gr\u00fc\u00df \U0001f600 'x'; -- \\ % %s :a",) * 2,
        "at": (utc(2026, 1, 2, 3, 4, 5, 6), "2026-01-02 03:04:05.000006"),
        "doc": ({"a": [1, "\u00fc"]}, '{"a": [1, "\u00fc"]}'),
        "data": (b"\0\xff", b"\0\xff"),
        "price": (Decimal("12.5"), 12.5),
        "share": (1e300, 1e300),
        "flag": (True, 1),
    },
    "postgresql": {
        "id": ((1 << 63) - 1, (1 << 63) - 1),
        "name": ("gr\u00fc\u00df \U0001f600 'x'; -- \\ % %s :a",) * 2,
        "at": ("2026-01-02T03:04:05.6+02:00", utc(2026, 1, 2, 1, 4, 5, 600_000)),
        "at_zone": (
            "2026-01-02T03:04:05",
            datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        ),
        "day": (date(2026, 1, 2), date(2026, 1, 2)),
        "doc": ("a string", "a string"),
        "data": (b"\0\xff", b"\0\xff"),
        "price": ("12.50", Decimal("12.50")),
        "share": (float("inf"), float("inf")),
        "flag": (True, True),
        "tags": (["a", "b,c"], ["a", "b,c"]),
        "uid": (UUID(int=5), UUID(int=5)),
    },
    "mariadb": {
        "id": ((1 << 63) - 1, (1 << 63) - 1),
        "name": ("gr\u00fc\u00df \U0001f600 'x'; -- \\ % %s :a",) * 2,
        "at": ("2026-01-02T03:04:05.6Z", utc(2026, 1, 2, 3, 4, 5, 600_000)),
        "day": ("2026-01-02", date(2026, 1, 2)),
        "doc": ({"a": [1, "\u00fc"]}, '{"a": [1, "\u00fc"]}'),
        "data": (b"\0\xff", b"\0\xff"),
        "price": (12.5, Decimal("12.50")),
        "share": (1e300, 1e300),
        "flag": (True, 1),
        "text_of_it": ([1, None], "[1, null]"),
        "kind": ("large", "large"),
    },
}


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_values_come_back_as_they_were(table: Table, request: pytest.FixtureRequest) -> None:
    values = VALUES[request.node.callspec.params["database"]]
    sink = table.settings().sink()
    row = {name: given for name, (given, _) in values.items()}
    sink.store(DELIVERY, [ItemRows(0, [row])], no_reject)
    sink.close()
    assert table.rows(", ".join(values))[1] == tuple(stored for _, stored in values.values())
