"""What an error means and how a value is sent, for errors and values that are hard to provoke."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import psycopg
import pymysql
import pytest

from fuploader_dagster.resources.sql import mysql, postgresql
from fuploader_dagster.resources.sql.mysql import Mysql
from fuploader_dagster.resources.sql.postgresql import Postgresql
from fuploader_dagster.resources.sql.sqlite import Sqlite
from fuploader_dagster.resources.sql.values import Sort, Unfit, in_utc
from fuploader_dagster.testing.sink_contract import SECRET

NAMES = frozenset({"PRIMARY", "amount", "code_key"})


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("08006", "away"),  # connection failure
        ("40001", "away"),  # serialization failure
        ("40P01", "away"),  # deadlock
        ("53100", "away"),  # disk full
        ("53300", "away"),  # too many connections
        ("57P01", "away"),  # the server is shutting down
        ("57P03", "away"),  # it is starting
        ("58030", "away"),  # I/O error
        ("57P04", "refused"),  # the database was dropped
        ("28P01", "refused"),  # password
        ("42501", "refused"),  # rights
        ("42P01", "refused"),  # no such table
        ("25006", "refused"),  # a replica
        ("0A000", "unknown"),  # not supported
        ("428C9", "row"),  # a value for a column that is always generated
        ("54001", "row"),  # nested too deeply
        ("22P02", "row"),
        ("23514", "row"),
        ("P0001", "row"),  # a trigger's own words
        ("54000", "row"),  # an index entry is too large
    ],
)
def test_codes_of_postgresql(code: str, kind: str) -> None:
    error = psycopg.errors.lookup(code)()
    assert Postgresql(60).meaning(error).kind == kind


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1021, "away"),  # disk full
        (1040, "away"),  # too many connections
        (1053, "away"),  # shutdown
        (1114, "away"),  # the table is full
        (1205, "away"),  # lock wait timeout
        (1213, "away"),  # deadlock
        (1927, "away"),  # connection was killed
        (2006, "away"),
        (2013, "away"),
        (1045, "refused"),  # password
        (1142, "refused"),  # rights
        (1146, "refused"),  # no such table
        (1290, "refused"),  # a replica
        (1064, "unknown"),  # syntax: the message quotes the statement
        (9999, "unknown"),
        (1369, "row"),  # the check option of a view
        (1366, "row"),
        (3819, "row"),
    ],
)
def test_codes_of_mysql(code: int, kind: str) -> None:
    meaning = Mysql(60).meaning(pymysql.err.OperationalError(code, f"near '{SECRET}'"))
    assert meaning.kind == kind
    quoting = {1040, 1045, 1053, 1142, 1146}  # their messages have names only
    assert code in quoting or SECRET not in meaning.words


def test_each_code_of_mysql_has_one_meaning() -> None:
    tables = (mysql._ROW, mysql._AWAY, mysql._REFUSED)
    codes = [code for table in tables for code in table]
    assert len(codes) == len(set(codes))
    assert set(mysql._CANNOT_QUOTE) <= {*mysql._AWAY, *mysql._REFUSED}


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (f"Duplicate entry '{SECRET}' for key 'PRIMARY'", "PRIMARY"),
        (f"Duplicate entry '{SECRET}' for key 'orders.code_key'", "code_key"),
        (f"Duplicate entry 'for key '{SECRET}'' for key 'PRIMARY'", "PRIMARY"),
        (f"Duplicate entry 'for key '{SECRET}'", ""),  # cut by the server
        (f"Incorrect integer value: '{SECRET}' for column `s`.`t`.`amount` at row 1", "amount"),
        (f"Incorrect integer value: '{SECRET}' for column 'amount' at row 3", "amount"),
        ("Data too long for column 'unknown' at row 1", ""),
        ("Column 'amount' cannot be null", "amount"),
    ],
)
def test_a_name_in_a_message_of_mysql_is_shown_only_if_it_is_one(message: str, name: str) -> None:
    dialect = Mysql(60)
    error = pymysql.err.IntegrityError(1062, message)
    words = dialect.named(dialect.meaning(error), error, NAMES).words
    assert words == f"duplicate key{f': {name}' if name else ''} (error 1062)"


@pytest.mark.parametrize(
    ("context", "name"),
    [
        (f'COPY t, line 1, column amount: "{SECRET}"', "amount"),
        (f'COPY t, line 1, column other: "{SECRET}"', ""),
        (f'COPY t, line 1: "{SECRET}"', ""),
        ("COPY t, line 7, column amount, null input", "amount"),
        (None, ""),
    ],
)
def test_the_column_that_copy_names_is_shown(context: str | None, name: str) -> None:
    error: Any = psycopg.errors.lookup("22P02")()
    dialect = Postgresql(60)
    stand_in: Any = SimpleNamespace(diag=SimpleNamespace(context=context))
    words = dialect.named(dialect.meaning(error), stand_in, NAMES).words
    place = f", column {name}" if name else ""
    assert words == f"invalid text representation{place} (SQLSTATE 22P02)"


@pytest.mark.parametrize(
    ("given", "utc"),
    [
        ("2026-01-02T03:04:05Z", "2026-01-02 03:04:05"),
        ("2026-01-02 03:04:05+02:00", "2026-01-02 01:04:05"),
        ("2026-01-02T03:04-0330", "2026-01-02 06:34:00"),
        ("2026-01-02T03:04:05.123456789+00", "2026-01-02 03:04:05.123456"),
        ("2026-01-02T03:04:05,5Z", "2026-01-02 03:04:05.500000"),
        ("2026-01-02T03:04:05", "2026-01-02T03:04:05"),
        ("2026-02-31T03:04:05Z", "2026-02-31T03:04:05Z"),
        ("0001-01-01T00:00:00+05:00", None),
        ("2026-01-02", "2026-01-02"),
        ("soon", "soon"),
        ("", ""),
    ],
)
def test_times_with_an_offset_become_utc(given: str, utc: str | None) -> None:
    if utc is None:
        with pytest.raises(Unfit):
            in_utc(given)
    else:
        assert in_utc(given) == utc


@pytest.mark.parametrize(
    "dialect", [Postgresql(60), Mysql(60), Sqlite(60)], ids=lambda one: one.name
)
@pytest.mark.parametrize("sort", ["json", "array", "integer", "moment", "other"])
@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        5,
        1 << 70,
        10**5000,
        1.5,
        float("nan"),
        "text",
        "\ud800",
        "\0",
        b"\xff",
        {"a": [1]},
        {"a": object()},
        [],
        (1, 2),
        datetime(2026, 1, 2, tzinfo=timezone.utc),
        timedelta(1),
        object(),
        type("Text", (str,), {})("x"),
        type("Number", (int,), {})(5),
        bytearray(b"x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_value_is_converted_or_unfit(dialect: Any, sort: Sort, value: Any) -> None:
    convert = dialect.conversion(sort)
    try:
        converted = convert(value)
    except Unfit as unfit:
        assert SECRET not in str(unfit)
    else:
        known = (type(None), bool, int, float, str, bytes, list, datetime, timedelta)
        assert type(converted) in known


def test_codes_that_stand_alone_come_before_their_class() -> None:
    assert "57P04" in postgresql._REFUSED
    assert "57" in postgresql._AWAY
