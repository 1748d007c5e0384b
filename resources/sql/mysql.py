"""MySQL and MariaDB, with PyMySQL.

Outside of its strict mode the server cuts and replaces values without an error, so our sessions are
always strict. It rounds 1.5 for an integer in that mode too, so we refuse that ourselves. Only
engines with transactions are taken (InnoDB): with MyISAM nothing can be undone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal, DecimalException
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from fuploader_dagster.resources.sql import errors as words
from fuploader_dagster.resources.sql.dialect import (
    CONNECT_SECONDS,
    GRACE_SECONDS,
    IDLE_SECONDS,
    VANISHED_SECONDS,
    Dialect,
    Finding,
    Statement,
)
from fuploader_dagster.resources.sql.errors import Meaning
from fuploader_dagster.resources.sql.values import (
    AS_JSON,
    Conversion,
    Convert,
    Sort,
    Unfit,
    in_utc,
    json_text,
    moment_in_utc,
    text,
)

_ROW = {
    1048: "column cannot be null",
    1062: "duplicate key",
    1118: "row is too large",
    1264: "value is out of range",
    1265: "value would be truncated",
    1292: "incorrect value",
    1364: "column has no default value",
    1366: "incorrect value",
    1367: "illegal value",
    1406: "data is too long",
    1369: "check option of a view fails",
    1411: "incorrect value",
    1416: "not a geometry",
    1452: "foreign key constraint fails",
    1216: "foreign key constraint fails",
    1451: "foreign key constraint fails",
    1217: "foreign key constraint fails",
    1526: "the table has no partition for the value",
    1644: "refused by a trigger",
    1690: "value is out of range",
    1748: "the table has no partition for the value",
    1906: "value for a generated column",
    3105: "value for a generated column",
    3140: "invalid JSON text",
    3156: "invalid JSON value",
    3157: "JSON is nested too deeply",
    3819: "check constraint is violated",
    4025: "check constraint is violated",
    4079: "incorrect value",
}
_BUSY = "the server is short of disk, memory or connections"
_GONE = "the server is starting, stopping, or ended our session"
_AGAIN = "another transaction was in the way; it will be tried again"
_AWAY = {
    **dict.fromkeys((1021, 1030, 1037, 1038, 1041, 1114, 1135), _BUSY),
    **dict.fromkeys((1040, 1203, 1226), _BUSY),
    **dict.fromkeys((1053, 1077, 1079, 1080, 1152, 1184, 1317, 1927), _GONE),
    **dict.fromkeys((1205, 1969, 3024), words.SLOW),
    **dict.fromkeys((1020, 1213, 1412, 1637), _AGAIN),
    **dict.fromkeys(
        (0, 1042, 1043, 1156, 1158, 1159, 1160, 1161, 2002, 2003, 2006, 2013, 2014, 2055),
        words.ASK_LATER,
    ),
}
_REFUSED = {
    **dict.fromkeys((1044, 1045, 1049, 1129, 1130, 1251, 1698, 1820, 1862, 2059), words.LOGIN),
    **dict.fromkeys((1142, 1143, 1227, 1370), words.ALLOW),
    **dict.fromkeys((1146, 1109), words.NO_TABLE),
    1054: words.NO_COLUMN,
    **dict.fromkeys((1290, 1792, 1836), words.PRIMARY),
    1665: "set binlog_format to ROW or MIXED at the server",
    2026: "check the ssl_... options in the url",
}
_CANNOT_QUOTE = {1044, 1045, 1049, 1129, 1130, 1142, 1143, 1146, 1053, 1040, 2003}
"""Codes whose messages have names in them, and never a value."""
_PLACE = re.compile(
    r"Column '([^']*)' cannot be null$"
    r"|Field '([^']*)' doesn't have a default value$"
    r"|for column .*?([^'`.]*)[`']? at row \d+$"
    r"|for key '([^']*)'$"
    r"|CONSTRAINT `([^`]*)` (?:FOREIGN KEY .*|failed for .*)$"
    r"|Check constraint '([^']*)' is violated",
    re.DOTALL,
)
_MOST_ESCAPED = 2
"""An escaped byte takes at most so many."""


class Mysql(Dialect):
    """MySQL and MariaDB."""

    name = "MySQL"
    schemes = ("mysql", "mysql+pymysql", "mariadb", "mariadb+pymysql")
    driver = "mysql+pymysql"
    library = "PyMySQL"
    extra = "mysql"
    has_row_values = False
    default_lag_seconds = 10.0
    undoes_ddl = False
    replaces_by_any_key = True

    def __init__(self, timeout_seconds: float) -> None:
        super().__init__(timeout_seconds)
        self._most_bytes = 1 << 24

    def engine_arguments(self, url: sa.URL) -> Mapping[str, Any]:
        seconds = round(self.timeout_seconds) + GRACE_SECONDS
        # The driver would send a text as Latin-1.
        login = {} if url.password is None else {"password": url.password.encode()}
        return {
            "paramstyle": "format",
            "isolation_level": "READ COMMITTED",
            "connect_args": {
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": seconds,
                "write_timeout": seconds,
                "charset": "utf8mb4",
                **login,
            },
        }

    def connected(self, connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SET SESSION sql_mode = CONCAT_WS(',', NULLIF(@@SESSION.sql_mode, ''), "
                "'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,NO_AUTO_VALUE_ON_ZERO'), "
                "time_zone = '+00:00', "
                f"innodb_lock_wait_timeout = {max(1, round(self.timeout_seconds))}, "
                f"wait_timeout = {IDLE_SECONDS}"
            )
            cursor.execute("SELECT @@max_allowed_packet")
            (self._most_bytes,) = cursor.fetchone()

    def begin(self, connection: sa.Connection) -> None:
        pass

    def streaming_cursor(self, connection: Any) -> Any:
        from pymysql.cursors import SSCursor  # noqa: PLC0415 - an extra

        return connection.cursor(SSCursor)  # when it is closed, it drops what was not asked for

    def key_trouble(self, column_type: Any, *, ordered: bool) -> str:
        if isinstance(column_type, mysql.FLOAT):
            return "a 32-bit floating-point number, which is written with six digits"
        if isinstance(column_type, mysql.BIT):
            return "bits, which are compared as a number"
        if ordered and isinstance(column_type, mysql.ENUM | mysql.SET):
            return "ordered by the number of its value, but compared as text"
        return ""

    def try_lock(self, connection: sa.Connection, name: str) -> bool:
        connection.exec_driver_sql(f"SET SESSION wait_timeout = {VANISHED_SECONDS}")
        got = connection.execute(sa.text("SELECT GET_LOCK(:name, 0)"), {"name": _short(name)})
        return got.scalar() == 1

    def unlock(self, connection: sa.Connection, name: str) -> None:
        connection.execute(sa.text("SELECT RELEASE_LOCK(:name)"), {"name": _short(name)})

    def meaning(self, error: BaseException) -> Meaning:
        code = error.args[0] if error.args and isinstance(error.args[0], int) else None
        if code is None:
            import pymysql  # noqa: PLC0415 - an extra

            if isinstance(error, pymysql.err.ProgrammingError):
                return Meaning("row", words.NO_DRIVER_WORDS)
            return Meaning("away", words.LOST, words.ASK_LATER)
        said = str(error.args[1]) if len(error.args) > 1 else ""
        told = words.shown(said) if code in _CANNOT_QUOTE and said else ""
        if code in _ROW:
            return Meaning("row", f"{_ROW[code]} (error {code})", twice=code == 1062)
        if code in _AWAY:
            told = told or (words.LOST if code in (0, 2006, 2013, 2014, 2055) else _AWAY[code])
            return Meaning("away", f"{told} (error {code})", _AWAY[code])
        if code in _REFUSED:
            hint = _REFUSED[code]
            return Meaning("refused", f"{told or hint} (error {code})", hint)
        return Meaning("unknown", f"the server refused (error {code})")

    def named(self, meaning: Meaning, error: BaseException, names: frozenset[str]) -> Meaning:
        said = str(error.args[1]) if len(error.args) > 1 else ""
        match = _PLACE.search(said)
        found = next((group for group in match.groups() if group), "") if match else ""
        name = found if found in names else found.rpartition(".")[2]
        # A message may be cut within a value, so what looks like a name is one only if we know it.
        if name not in names:
            return meaning
        return replace(meaning, words=meaning.words.replace(" (", f": {name} (", 1))

    def conversion(self, sort: Sort) -> Conversion:
        return _CONVERSIONS[sort]

    def check_row(self, values: Sequence[Any]) -> None:
        # The server drops the connection of who sends it a larger statement, so this would never
        # end: every attempt would look like a lost connection.
        most = self._most_bytes - (1 << 16)
        size = sum(len(value) for value in values if isinstance(value, str | bytes))
        if size * 4 * _MOST_ESCAPED <= most:
            return
        if sum(_escaped_bytes(value) for value in values) > most:
            raise Unfit(f"more than the server's max_allowed_packet of {self._most_bytes:,} bytes")

    def upsert(
        self, table: sa.TableClause, columns: Sequence[str], key: Sequence[str]
    ) -> sa.Insert:
        insert = mysql.insert(table)
        others = [name for name in columns if name not in key] or list(key)
        # Not `insert.inserted`: SQLAlchemy doubles a % there once more than elsewhere.
        return insert.on_duplicate_key_update(
            {name: sa.func.VALUES(sa.column(name)) for name in others}
        )

    def insert(
        self, connection: sa.Connection, statement: Statement, rows: Sequence[tuple[Any, ...]]
    ) -> None:
        if statement.key and "%%" in statement.sql:
            # A name has a %, and the driver's bulk insert leaves it doubled after the values.
            for row in rows:
                connection.exec_driver_sql(statement.sql, row)
        else:
            super().insert(connection, statement, rows)

    def plain_name(self, reflected: str) -> str:
        return reflected.replace("``", "`")  # SQLAlchemy reads it as the server quotes it

    def table_trouble(self, connection: sa.Connection, table: sa.TableClause) -> str:
        engine = connection.execute(
            sa.text(
                "SELECT t.engine FROM information_schema.tables t "
                "JOIN information_schema.engines e ON e.engine = t.engine "
                "WHERE t.table_schema = COALESCE(:schema, DATABASE()) AND t.table_name = :name "
                "AND e.transactions <> 'YES'"
            ),
            {"schema": table.schema, "name": table.name},
        ).scalar()
        return f"its engine {engine} has no transactions" if engine else ""

    def findings(self, connection: sa.Connection, table: sa.TableClause) -> Sequence[Finding]:
        flushed = connection.execute(sa.text("SELECT @@innodb_flush_log_at_trx_commit")).scalar()
        if flushed == 1:
            return ()
        found = f"innodb_flush_log_at_trx_commit is {flushed}: a power cut may lose stored rows"
        return [Finding("durability", found, "set innodb_flush_log_at_trx_commit = 1")]

    def may_create_tables(self, connection: sa.Connection, schema: str | None) -> bool:
        rights = connection.execute(
            sa.text(
                "SELECT 1 FROM information_schema.user_privileges WHERE privilege_type = 'CREATE' "
                "UNION ALL SELECT 1 FROM information_schema.schema_privileges "
                "WHERE privilege_type = 'CREATE' "
                "AND COALESCE(:schema, DATABASE()) LIKE table_schema"
            ),
            {"schema": schema},
        )
        return rights.first() is not None


def _short(name: str) -> str:
    """A lock's name has at most 64 characters, and counts for the whole server."""
    return f"fuploader-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def _escaped_bytes(value: Any) -> int:
    from pymysql.converters import escape_string  # noqa: PLC0415 - an extra

    if isinstance(value, bytes):
        return len(escape_string(value.decode("ascii", "surrogateescape")))
    return len(escape_string(value).encode()) if isinstance(value, str) else 32


def _finite(value: float | Decimal) -> float | Decimal:
    # The driver would write `nan` into the statement, or refuse it.
    if value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124 - NaN
        raise Unfit("a number that is not finite")
    return value


def _whole(value: float | Decimal) -> float | Decimal:
    # `int(value)` would take hours for Decimal("1e999999999").
    number = _finite(value)
    if number != (number.to_integral_value() if isinstance(number, Decimal) else int(number)):
        raise Unfit("a number with a fraction, for a column of whole numbers")
    return value


def _whole_text(value: str) -> str:
    with suppress(DecimalException):  # it is no number: the server says so
        _whole(Decimal(text(value)))
    return value


_BY_TYPE: Mapping[type, Convert | None] = {
    str: text,
    int: None,
    float: _finite,
    bool: None,
    type(None): None,
    bytes: None,
    timedelta: None,
    Decimal: _finite,
    dict: json_text,
    list: json_text,
    tuple: json_text,
    datetime: moment_in_utc,
    date: None,
    time: None,
}
_OTHER = Conversion(_BY_TYPE)
_CONVERSIONS: Mapping[Sort, Conversion] = {
    "json": AS_JSON,
    "array": _OTHER,
    "integer": Conversion({**_BY_TYPE, str: _whole_text, float: _whole, Decimal: _whole}),
    "moment": Conversion({**_BY_TYPE, str: lambda value: in_utc(text(value))}),
    "other": _OTHER,
}
