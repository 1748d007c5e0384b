"""What a SQL table is as a source: bodies, conditions, positions, results, claims."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.disk.header_text import folded
from fuploader_dagster.errors import ConfigError, SourceRefused, SourceUnavailable
from fuploader_dagster.resources.sources.sql import paging
from fuploader_dagster.resources.sources.sql.source import SqlTable
from fuploader_dagster.settings.loading import load_backend
from fuploader_dagster.testing.source_steps import collect
from tests.contract.sinks.databases import DIALECTS, Database, SqliteFile
from tests.contract.sources.sql_tables import (
    NUMBERED,
    SourceTable,
    ids_of,
    none_comes,
    opened,
    read_at_once,
    rows_of,
    settle,
)
from tests.servers.mariadb import MariadbServer

TYPES = {
    "sqlite": (
        "id INTEGER PRIMARY KEY, whole INTEGER, part REAL, name TEXT, data BLOB, doc JSON, no TEXT",
        "1, -9223372036854775808, 1.5, 'ä''%:x', x'00ff', '{\"n\": 1.10, \"a\": [null]}', NULL",
        (
            '{"id":1,"whole":-9223372036854775808,"part":1.5,"name":"ä\'%:x","data":"AP8=",'
            '"doc":{"n": 1.10, "a": [null]},"no":null}'
        ),
    ),
    "postgresql": (
        (
            "id BIGINT PRIMARY KEY, price NUMERIC(9,2), at TIMESTAMP, zoned TIMESTAMPTZ, day DATE, "
            "clock TIME, span INTERVAL, data BYTEA, doc JSONB, tags TEXT[], uid UUID, ok BOOLEAN, "
            "address INET, part DOUBLE PRECISION, none TEXT"
        ),
        (
            "1, 12.50, '2026-11-20 23:45:01.5', '2026-11-20 23:45:01+02', '2026-11-20', "
            "'23:45:01', '1 day 2 hours', '\\x00ff', '{\"n\": 12345678901234567890.10}', "
            "'{a,NULL}', '00000000-0000-0000-0000-000000000001', true, '10.0.0.1', 'NaN', NULL"
        ),
        (
            '{"id":1,"price":"12.50","at":"2026-11-20T23:45:01.500000","zoned":"2026-11-20T21:45:01Z",'
            '"day":"2026-11-20","clock":"23:45:01","span":"P1DT7200S","data":"AP8=",'
            '"doc":{"n": 12345678901234567890.10},"tags":["a",null],'
            '"uid":"00000000-0000-0000-0000-000000000001","ok":true,"address":"10.0.0.1",'
            '"part":null,"none":null}'
        ),
    ),
    "mariadb": (
        (
            "id BIGINT UNSIGNED PRIMARY KEY, price DECIMAL(9,2), at DATETIME(3), stamp TIMESTAMP, "
            "day DATE, clock TIME(1), data BLOB, doc JSON, kind ENUM('a','b'), part DOUBLE, "
            "zero DATE, none TEXT"
        ),
        (
            "18446744073709551615, 12.50, '2026-11-20 23:45:01.5', '2026-11-20 23:45:01', "
            "'2026-11-20', '-25:00:01.5', x'00ff', '{\"n\": 1}', 'b', 0.1, '0000-00-00', NULL"
        ),
        (
            '{"id":18446744073709551615,"price":"12.50","at":"2026-11-20T23:45:01.500000",'
            '"stamp":"2026-11-20T23:45:01","day":"2026-11-20","clock":"-25:00:01.500000",'
            '"data":"AP8=","doc":"{\\"n\\": 1}","kind":"b","part":0.1,"zero":"0000-00-00",'
            '"none":null}'
        ),
    ),
}
"""Columns, a row and its body."""
STATUS = {"column": "state"}


def numbered(database: Database, kind: str, more: str = "note TEXT") -> SourceTable:
    return SourceTable(database, f"id {NUMBERED[kind]}, {more}")


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.node.callspec.params["database"]
    return found


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_a_row_is_json_that_is_always_the_same(database: Database, kind: str) -> None:
    columns, row, body = TYPES[kind]
    table = SourceTable(database, columns)
    table.insert(row)
    (first,) = read_at_once(table.settings(cursor="id"), 1)
    (again,) = read_at_once(table.settings(cursor="id", reader="another"), 1)
    assert first.body.decode() == body
    assert again.body == first.body
    assert first.message_id == str(json.loads(body)["id"])


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_columns_choose_and_rename_and_a_condition_chooses_rows(
    database: Database, kind: str
) -> None:
    table = numbered(database, kind, "note TEXT, kind INTEGER")
    table.insert("'5%'", "'b'", into="(note)")
    table.insert("'c', 1", "'d', 2", into="(note, kind)")
    settings = table.settings(
        cursor="id", columns={"text": "note", "nr": "id"}, where="note LIKE '5%' OR kind = 1"
    )
    source = opened(settings)
    messages = collect(source, 2)
    assert rows_of(messages) == [{"text": "5%", "nr": 1}, {"text": "c", "nr": 3}]
    wanted = {folded(name): name for name in ("Text", "nr", "missing")}
    assert source.headers_of(messages[0], wanted) == {"Text": "5%", "nr": 1}
    assert source.describe(messages[0]) == {"table": table.name, "key": ["1"]}
    settle(source, messages)
    source.close()
    publisher = settings.publisher()
    assert publisher.backlog() == 0
    with pytest.raises(SourceRefused, match="only read"):
        publisher.publish([(b"x", {})])
    publisher.close()


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_a_cursor_of_two_columns_reads_rows_that_change_again(
    database: Database, kind: str
) -> None:
    table = numbered(database, kind, "at INTEGER NOT NULL, note TEXT")
    table.insert(*(f"{n // 4}, 'x'" for n in range(30)), into="(at, note)")
    settings = table.settings(cursor=["at", "id"])
    source = opened(settings, prefetch=7)  # pages end within equal values
    ids: list[int] = []
    while len(ids) < 30:
        messages = source.receive(7, 5)
        settle(source, messages)
        ids += ids_of(messages)
    assert ids == list(range(1, 31))
    table.update("at = 100, note = 'y'", "id IN (3, 20)")
    messages = collect(source, 2)
    assert rows_of(messages) == [{"id": n, "at": 100, "note": "y"} for n in (3, 20)]
    source.close()


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_pages_of_any_size_lose_no_row(
    database: Database, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "PAGE_BYTES", 5_000)
    table = numbered(database, kind)
    sizes = [1, 1, 4_000, 1, 9_000, 9_000, *[10] * 300, 20_000, 1]
    table.insert(*(f"'{'x' * size}'" for size in sizes), into="(note)")
    found: list[dict[str, Any]] = []
    while len(found) < len(sizes):
        found += rows_of(
            read_at_once(table.settings(cursor="id"), min(100, len(sizes) - len(found)))
        )
    assert [row["id"] for row in found] == list(range(1, len(sizes) + 1))
    assert [len(row["note"]) for row in found] == sizes


@pytest.mark.parametrize("way", [{"cursor": "id"}, {"status": STATUS}])
@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_rows_that_become_large_do_not_come_in_one_large_page(
    database: Database, kind: str, way: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "PAGE_BYTES", 50_000)
    monkeypatch.setattr(paging, "PIECE_ROWS", 5)
    made, pages = paging.PagedSource._page, []

    def noted(self: paging.PagedSource, *args: Any, **more: Any) -> paging.Page:
        page = made(self, *args, **more)
        pages.append(sum(len(one.body) for one in page.rows))
        return page

    monkeypatch.setattr(paging.PagedSource, "_page", noted)
    table = numbered(database, kind, "note TEXT, state VARCHAR(20) DEFAULT 'ready'")
    sizes = [*[1] * 120, *[10_000] * 60, *[1] * 50]
    table.insert(*(f"'{'x' * size}'" for size in sizes), into="(note)")
    source = opened(table.settings(**way), prefetch=len(sizes))
    found = collect(source, len(sizes))
    source.close()
    assert ids_of(found) == list(range(1, len(sizes) + 1))
    assert [len(row["note"]) for row in rows_of(found)] == sizes
    assert 50_000 < max(pages) < 50_000 + 5 * 10_200


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_the_position_outlives_the_reader_and_another_reader_gets_everything(
    database: Database, kind: str
) -> None:
    table = numbered(database, kind)
    table.insert(*["'x'"] * 10, into="(note)")
    settings = table.settings(cursor="id")
    source = opened(settings)
    messages = collect(source, 10)
    settle(source, messages[:6])
    source.close()
    source = opened(settings)
    again = collect(source, 4)
    assert ids_of(again) == [7, 8, 9, 10]
    assert all(one.redelivered for one in again)
    settle(source, again)
    source.close()
    table.insert("'new'", into="(note)")
    (new,) = read_at_once(settings, 1)
    assert (ids_of([new]), new.redelivered) == ([11], False)  # it left nothing in hand
    assert len(read_at_once(table.settings(cursor="id", reader="another"), 11)) == 11
    with pytest.raises(SourceRefused, match="reader") as caught:
        opened(table.settings(cursor=["note", "id"])).receive(1, 0)
    assert "note, id" in str(caught.value)


KEYS = [
    ("sqlite", "TEXT", "'a'", "'ä'", "'一'"),
    ("sqlite", "REAL", "0.1", "0.2", "0.30000000000000004"),
    ("sqlite", "BLOB", "x'00'", "x'00ff'", "x'ff'"),
    ("postgresql", "TIMESTAMP", *(f"'2026-01-01 00:00:00.00000{n}'" for n in (1, 2, 3))),
    ("postgresql", "TIMESTAMPTZ", *(f"'2026-01-01 0{n}:00+05'" for n in (1, 2, 3))),
    ("postgresql", "NUMERIC", "1", "1.0000000000000000000001", "1e30"),
    ("postgresql", "UUID", *(f"'00000000-0000-0000-0000-00000000000{n}'" for n in (1, 2, 3))),
    ("postgresql", "BOOLEAN", "false", "false", "true"),
    ("postgresql", 'TEXT COLLATE "C"', "'B'", "'a'", "'ä'"),
    ("postgresql", "DATE", "'2026-01-01'", "'2026-01-02'", "'2026-01-03'"),
    ("mariadb", "DATETIME(6)", *(f"'2026-01-01 00:00:00.00000{n}'" for n in (1, 2, 3))),
    ("mariadb", "TIME(6)", "'-30:00:00.5'", "'01:00:00'", "'30:00:00'"),
    ("mariadb", "DECIMAL(30,10)", "1", "1.0000000001", "2"),
    ("mariadb", "BINARY(2)", "x'0000'", "x'00ff'", "x'ff00'"),
    ("mariadb", "VARCHAR(9)", "'a'", "'b'", "'一'"),
]
"""A type, and values in their order."""


@pytest.mark.parametrize(
    ("database", "column", "values"),
    [(database, column, values) for database, column, *values in KEYS],
    indirect=["database"],
    ids=[f"{database}-{column}" for database, column, *_ in KEYS],
)
@pytest.mark.parametrize("way", ["cursor", "status"])
def test_a_key_of_any_type_is_found_again(
    database: Database, column: str, values: list[str], way: str
) -> None:
    table = SourceTable(
        database, f"k {column} NOT NULL, id INTEGER, state VARCHAR(9), PRIMARY KEY (k, id)"
    )
    table.insert(*(f"{value}, {n}, 'ready'" for n, value in enumerate(values)))
    table.insert(f"{values[-1]}, 3, 'ready'")
    settings = table.settings(
        columns=["id"], **({"cursor": ["k", "id"]} if way == "cursor" else {"status": STATUS})
    )
    ids: list[int] = []
    for _ in range(4):
        source = opened(settings)
        messages = collect(source, 4 - len(ids))  # and again what was given back
        settle(source, messages[:1])
        ids += ids_of(messages[:1])
        source.close()
    assert ids == [0, 1, 2, 3]
    publisher = settings.publisher()
    assert publisher.backlog() == 0
    publisher.close()


INEXACT = [
    ("postgresql", "REAL", "32-bit"),
    ("postgresql", "INTERVAL", "months"),
    ("mariadb", "FLOAT", "six digits"),
    ("mariadb", "BIT(9)", "as a number"),
    ("mariadb", "ENUM('z', 'a')", "compared as text"),
    ("mariadb", "SET('z', 'a')", "compared as text"),
]
"""Types whose values the driver gives in another form than the database compares them in."""


@pytest.mark.parametrize(
    ("database", "column", "said"),
    INEXACT,
    indirect=["database"],
    ids=[f"{database}-{column}" for database, column, _ in INEXACT],
)
def test_a_key_by_which_rows_would_be_lost_is_refused(
    database: Database, column: str, said: str
) -> None:
    table = SourceTable(
        database, f"k {column} NOT NULL, id INTEGER, state VARCHAR(9), PRIMARY KEY (k, id)"
    )
    with pytest.raises(SourceRefused, match=said):
        opened(table.settings(cursor=["k", "id"]))
    claiming = table.settings(status=STATUS)  # which only has to find the same rows again
    if column.startswith(("ENUM", "SET")):
        opened(claiming).close()
    else:
        with pytest.raises(SourceRefused, match=said):
            opened(claiming)


@pytest.mark.parametrize("way", [{"cursor": "k"}, {"status": {"column": "state"}}])
def test_a_key_of_sqlite_that_is_no_text_is_refused(
    sqlite: SqliteFile, way: dict[str, Any]
) -> None:
    table = SourceTable(sqlite, "k TEXT PRIMARY KEY, state TEXT DEFAULT 'ready'")
    table.insert("CAST(x'41ff' AS TEXT)", "'é'", into="(k)")
    with pytest.raises(SourceRefused, match="NotText"):
        opened(table.settings(**way)).receive(10, 1)


@pytest.mark.parametrize("database", DIALECTS[1:], indirect=True)
def test_decimals_have_all_digits(database: Database, kind: str) -> None:
    table = numbered(database, kind, "price NUMERIC(30,10)")
    table.insert("0", "0.0000001", "12345678901234567890.5", into="(price)")
    prices = [row["price"] for row in rows_of(read_at_once(table.settings(cursor="id"), 3))]
    assert prices == ["0.0000000000", "0.0000001000", "12345678901234567890.5000000000"]


def test_decimals_in_an_array_have_all_digits(postgresql: Database) -> None:
    table = numbered(postgresql, "postgresql", "prices NUMERIC(9,8)[]")
    table.insert("'{{0,NULL},{0.1,1}}'", into="(prices)")
    (row,) = rows_of(read_at_once(table.settings(cursor="id"), 1))
    assert row["prices"] == [["0.00000000", None], ["0.10000000", "1.00000000"]]


def test_a_row_that_changes_in_the_second_of_the_position_is_read(sqlite: SqliteFile) -> None:
    table = numbered(sqlite, "sqlite", "at TEXT NOT NULL")
    table.insert("'2026-01-01 12:00:00'", "'2026-01-01 12:00:01'", into="(at)")
    source = opened(table.settings(cursor=["at", "id"], lag_seconds=None))
    assert none_comes(source)
    table.update("at = '2026-01-01 12:00:01'", "id = 1")
    messages = collect(source, 2)
    assert ids_of(messages) == [1, 2]
    settle(source, messages)
    source.close()


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_a_condition_may_end_with_a_comment(database: Database, kind: str) -> None:
    table = numbered(database, kind)
    table.insert("'a'", "'b'", into="(note)")
    settings = table.settings(cursor="id", where="note = 'b' -- nothing else")
    assert ids_of(read_at_once(settings, 1)) == [2]


@pytest.mark.parametrize("way", [{"cursor": "id"}, {"status": {"column": "state"}}])
def test_a_condition_that_fails_at_a_row_is_refused_with_the_reason(
    postgresql: Database, way: dict[str, Any]
) -> None:
    table = numbered(postgresql, "postgresql", "note TEXT, state TEXT DEFAULT 'ready'")
    table.insert("'1'", "'secret'", into="(note)")
    source = opened(table.settings(where="CAST(note AS INTEGER) > 0", **way))
    with pytest.raises(SourceRefused, match="invalid text representation") as caught:
        source.receive(10, 1)
    assert "where" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("position", ["[]", '[["int","1"],["int","2"]]'])
def test_a_position_of_another_length_cannot_be_read(
    sqlite: SqliteFile, tmp_path: Path, position: str
) -> None:
    table = numbered(sqlite, "sqlite")
    file = tmp_path / "position.json"
    state = f'{{"columns":["id"],"position":{position},"in_hand":0}}'
    file.write_text(f'{{"reader":"{table.name}","state":{state}}}')
    source = opened(table.settings(cursor="id", position_file=file))
    with pytest.raises(SourceRefused, match="cannot be read"):
        source.receive(1, 0)


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_who_leaves_in_good_order_leaves_no_row_claimed(database: Database, kind: str) -> None:
    table = numbered(database, kind, "state VARCHAR(9)")
    table.insert(*["'ready'"] * 30, into="(state)")
    source = opened(table.settings(status=STATUS), prefetch=20)
    messages = source.receive(5, 5)
    source.limit_in_hand(0)
    while more := source.receive(5, 0):
        messages += more
    settle(source, messages)
    source.close()
    states = f"SELECT state, count(*) FROM {table.name} GROUP BY state ORDER BY state"  # noqa: S608
    assert database.rows(states) == [("done", 20), ("ready", 10)]


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_one_reads_and_another_takes_over_when_it_ends(database: Database, kind: str) -> None:
    table = numbered(database, kind)
    table.insert(*["'x'"] * 10, into="(note)")
    settings = table.settings(cursor="id")
    one, two = opened(settings), opened(settings)
    messages = collect(one, 4)
    assert none_comes(two)
    settle(one, messages[:2])
    one.close()
    assert ids_of(collect(two, 8)) == list(range(3, 11))
    two.close()


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_who_was_taken_for_dead_can_settle_nothing(database: Database, kind: str) -> None:
    table = numbered(database, kind)
    table.insert(*["'x'"] * 4, into="(note)")
    settings = table.settings(cursor="id")
    source = opened(settings)
    messages = collect(source, 4)
    database.execute(f"UPDATE {table.name}_positions SET epoch = epoch + 1")  # noqa: S608
    with pytest.raises(SourceUnavailable, match="another process"):
        settle(source, messages)
    source.open()
    assert ids_of(collect(source, 4)) == [1, 2, 3, 4]
    source.close()


def test_a_database_that_may_only_be_read_has_its_position_in_a_file(
    sqlite: SqliteFile, tmp_path: Path
) -> None:
    table = numbered(sqlite, "sqlite")
    table.insert(*["'x'"] * 5, into="(note)")
    position = tmp_path / "state" / "position.json"
    settings = table.settings(cursor="id", position_file=position)
    tables = sqlite.rows("SELECT name FROM sqlite_master")
    if os.geteuid() != 0:
        sqlite.path.chmod(stat.S_IRUSR)
    source = opened(settings)
    messages = collect(source, 5)
    settle(source, messages[:3])
    other = opened(settings)
    assert none_comes(other)
    source.close()
    assert [one.redelivered for one in collect(other, 2)] == [True, True]
    other.close()
    assert sqlite.rows("SELECT name FROM sqlite_master") == tables
    assert json.loads(position.read_text())["state"]["position"] == [["int", "3"]]
    with pytest.raises(SourceRefused, match="another reader"):
        opened(table.settings(cursor="id", position_file=position, reader="x")).receive(1, 0)
    position.write_text("{")
    with pytest.raises(SourceRefused, match="cannot be read"):
        opened(settings).receive(1, 0)


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_rows_that_have_a_result_are_skipped_and_nulls_do_no_harm(
    database: Database, kind: str
) -> None:
    table = numbered(database, kind, "mid INTEGER")
    table.insert("10", "20", "NULL", "30", into="(mid)")
    results = SourceTable(database, "doc_id INTEGER, note VARCHAR(20)")
    results.insert("20, 'done'", "NULL, 'bad'")
    settings = table.settings(skip_done={"table": results.name, "match": {"doc_id": "mid"}})
    source = opened(settings)
    messages = collect(source, 3)
    assert [row["mid"] for row in rows_of(messages)] == [10, None, 30]
    settle(source, messages)
    assert none_comes(source)
    table.insert("40", into="(mid)")
    assert [row["mid"] for row in rows_of(collect(source, 1))] == [40]
    source.close()


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_a_later_pass_gives_rows_again_that_still_have_no_result(
    database: Database, kind: str
) -> None:
    table = numbered(database, kind, "mid INTEGER")
    table.insert("10", "20", "30", into="(mid)")
    results = SourceTable(database, "doc_id INTEGER")
    again = {"table": results.name, "match": {"doc_id": "mid"}, "again_seconds": 0.2}
    source = opened(table.settings(skip_done=again))
    messages = collect(source, 3)
    assert not any(one.redelivered for one in messages)
    assert none_comes(source)  # while they are in hand, no pass begins
    settle(source, messages)
    results.insert("10", "30")
    database.execute(f"INSERT INTO {table.name} VALUES (-5, 5)")  # noqa: S608 - it came late
    messages = collect(source, 2)
    assert [row["mid"] for row in rows_of(messages)] == [5, 20]
    assert all(one.redelivered for one in messages)
    settle(source, messages)
    results.insert("20", "5")
    table.insert("40", into="(mid)")
    (new,) = collect(source, 1)
    assert (rows_of([new])[0]["mid"], new.redelivered) == (40, False)
    source.close()


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_a_status_says_how_far_a_row_is(database: Database, kind: str) -> None:
    table = numbered(database, kind, "note TEXT, state INTEGER")
    table.insert(*["'x', NULL"] * 5, "'other', 7", into="(note, state)")
    status = {"column": "state", "ready": None, "claimed": 1, "done": 2, "failed": 3}
    settings = table.settings(status=status)
    source = opened(settings)
    messages = collect(source, 5)
    assert "state" not in rows_of(messages)[0]
    states = f"SELECT state FROM {table.name} ORDER BY id"  # noqa: S608 - our own names
    assert database.rows(states) == [(1,)] * 5 + [(7,)]
    settle(source, messages[:3], dead=[messages[1]])
    assert database.rows(states) == [(2,), (3,), (2,), (1,), (1,), (7,)]
    table.update("state = 9", "id = 4")  # a person takes it back
    source.close()
    source = opened(settings)
    again = collect(source, 1)
    assert (ids_of(again), again[0].redelivered, again[0].body) == ([5], True, messages[4].body)
    assert none_comes(source)
    settle(source, again)
    source.close()
    assert database.rows(states) == [(2,), (3,), (2,), (9,), (2,), (7,)]
    assert database.rows(f"SELECT * FROM {table.name}_claims") == []  # noqa: S608


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_workers_claim_rows_that_no_other_has(database: Database, kind: str) -> None:
    table = numbered(database, kind, "other INTEGER, state VARCHAR(9) DEFAULT 'ready'")
    table.insert(*map(str, range(60)), into="(other)")
    settings = table.settings(status={"column": "state"}, key=["id", "other"], where="other >= 0")
    workers = [opened(settings, prefetch=10) for _ in range(3)]
    ids: list[int] = []
    for _ in range(2):
        batches = [collect(worker, 10) for worker in workers]
        for worker, batch in zip(workers, batches, strict=True):
            ids += ids_of(batch)
            settle(worker, batch)
    assert sorted(ids) == list(range(1, 61))
    for worker in workers:
        worker.close()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("way", [{"cursor": "id"}, {"status": {"column": "state"}}])
def test_a_row_that_the_driver_cannot_read_comes_alone_with_its_damage(
    database: Database, kind: str, way: dict[str, Any]
) -> None:
    table = numbered(database, kind, "at TIMESTAMP, state TEXT DEFAULT 'ready'")
    values = ["'2026-01-01'"] * 160
    values[72] = "'infinity'"
    table.insert(*values, into="(at)")
    source = opened(table.settings(**way), prefetch=200)
    messages = collect(source, 160)
    assert [at for at, one in enumerate(messages) if one.damage] == [72]
    assert ids_of(messages) == list(range(1, 161))
    assert rows_of(messages)[72] == {"id": 73}
    settle(source, messages)
    source.close()


def test_columns_of_mariadb_may_have_backticks_in_their_names(mariadb: MariadbServer) -> None:
    table = SourceTable(mariadb, "`i``d` BIGINT PRIMARY KEY, `a``%b` TEXT")
    table.insert("1, 'x'", "2, 'y'")
    found = read_at_once(table.settings(cursor="i`d"), 2)
    assert rows_of(found) == [{"i`d": 1, "a`%b": "x"}, {"i`d": 2, "a`%b": "y"}]


@pytest.mark.parametrize("way", [{"cursor": "id"}, {"status": STATUS}])
def test_text_of_sqlite_that_is_no_text_is_base64(sqlite: SqliteFile, way: dict[str, Any]) -> None:
    table = numbered(sqlite, "sqlite", "note TEXT, state TEXT DEFAULT 'ready'")
    values = [f"'ä{n}'" for n in range(90)]
    values[70] = values[73] = "CAST(x'ff' AS TEXT)"
    table.insert(*values, into="(note)")
    found = rows_of(read_at_once(table.settings(**way), 90))
    assert [row["id"] for row in found] == list(range(1, 91))
    assert [row["note"] for row in found] == [
        "/w==" if n in (70, 73) else f"ä{n}" for n in range(90)
    ]


@pytest.mark.parametrize("database", DIALECTS, indirect=True)
def test_a_view_can_be_read(database: Database, kind: str) -> None:
    table = numbered(database, kind)
    table.insert("'a'", "'b'", into="(note)")
    database.execute(f"CREATE VIEW {table.name}_view AS SELECT * FROM {table.name}")  # noqa: S608
    settings = table.settings(table=f"{table.name}_view", cursor="id")
    assert ids_of(read_at_once(settings, 2)) == [1, 2]
    findings = {one.check: one for one in settings.examine()}
    assert "nothing proves" in findings["key"].found


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "exactly one of cursor, skip_done and status"),
        ({"cursor": "id", "status": {"column": "s"}}, "exactly one"),
        ({"cursor": ["id", "id"]}, "twice"),
        ({"cursor": "id", "key": "id"}, "key is for skip_done and status"),
        ({"status": {"column": "s"}, "columns": ["id", "s"]}, "must not name the column of status"),
        ({"status": {"column": "s"}, "lag_seconds": 1}, "neither position_file nor lag_seconds"),
        ({"status": {"column": "s", "done": "ready"}}, "ready and done must differ"),
        ({"status": {"column": "s", "ready": 1, "claimed": "1"}}, "ready and claimed must differ"),
        ({"status": {"column": "s", "failed": "ready"}}, "failed must differ"),
        ({"cursor": "id", "position_table": "t"}, "other tables than table"),
        ({"skip_done": {"table": "r", "match": {}}}, "match"),
        ({"cursor": "id", "url": "redis://x"}, "url must look like"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], said: str) -> None:
    values = {"kind": "sql", "url": "sqlite:////tmp/x", "table": "t", **settings}
    with pytest.raises(ConfigError, match=said):
        load_backend("source", values, "source")


def test_the_settings_can_be_written_in_yaml_as_the_page_shows_them() -> None:
    found = load_backend(
        "source",
        {
            "kind": "sql",
            "url": "mysql://user:hunter2@db.example.com/shop",
            "table": "source_data",
            "key": "id",
            "skip_done": {"table": "doc_ent_map", "match": {"doc_id": "mid"}},
        },
        "source",
    )
    assert isinstance(found, SqlTable)
    assert found.describe() == "table source_data at mysql://db.example.com/shop"
    assert found.key == ("id",)
