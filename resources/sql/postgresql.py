"""PostgreSQL, with psycopg 3.

All values but bytes and arrays are sent as text without a type, so the server reads each as it
reads the column's type: 1.5 for an integer is an error, and not rounded. Without a key, rows are
loaded with COPY, which reads values in the same way.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from fuploader_dagster.resources.sql import errors as words
from fuploader_dagster.resources.sql.dialect import (
    CONNECT_SECONDS,
    IDLE_SECONDS,
    VANISHED_SECONDS,
    AsItIs,
    Dialect,
    Finding,
    Statement,
    replaced_on_conflict,
    written,
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

_ROW = ("21", "22", "23", "27", "44")
"""SQLSTATE classes: cardinality, data, constraint, trigger, check option of a view."""
_ROW_CODES = {
    "428C9": "",  # a value for a column that is always generated
    "42804": "",  # datatype mismatch
    "54000": "",  # an index entry is too large
    "54001": "",  # nested too deeply
    "P0001": "",  # raised by a trigger
    "P0004": "",  # asserted by one
}
_AWAY = {
    "08": words.ASK_LATER,
    "25P03": "the session was idle for too long: is something slow in between?",
    "25P04": words.SLOW,
    "40": "another transaction was in the way; it will be tried again",
    "53": "the server is short of disk, memory or connections",
    "55P03": words.SLOW,
    "57": "the server is starting, stopping, or ended our session",
    "57014": words.SLOW,
    "58": words.SERVER_LOG,
    "XX000": words.SERVER_LOG,
}
_REFUSED = {
    "25006": words.PRIMARY,
    "28": words.LOGIN,
    "3D000": words.LOGIN,
    "3F000": words.NO_TABLE,
    "42501": words.ALLOW,
    "42703": words.NO_COLUMN,
    "42P01": words.NO_TABLE,
    "42P10": words.NO_UNIQUE,
    "57P04": words.LOGIN,  # the database was dropped
}
_AT_LOGIN = {
    r"authentication failed|no password supplied|pg_hba\.conf|not permitted to log in": words.LOGIN,
    r"(database|role) \".*\" does not exist|permission denied for database": words.LOGIN,
    r"invalid (connection option|port|sslmode|URI)|missing \"=\"": "correct the url",
    r"does not support SSL|certificate|SSL error": "check sslmode and sslrootcert in the url",
}
"""What the driver says without a code, while it connects. Anything else may pass."""
_ABOUT_A_ROW = {
    "exec_stmt_raise": "refused by a trigger",
    "ExecWithCheckOptions": "refused by a row security policy or the check option of a view",
}
"""Places in the server that refuse rows, with any code: a trigger chooses code and words itself,
and may quote a value."""
_FUNCTION = re.compile(r"^(PL/\w+|SQL) function ", re.MULTILINE)
"""In the context of an error in a trigger's function. What that lacks may depend on the row, as the
name of a table does that it makes of a value."""
_TYPE = re.compile(
    r"for type (smallint|integer|bigint|numeric|real|double precision|boolean|date|json|jsonb|uuid"
    r"|time(?:stamp)? with(?:out)? time zone|interval|bytea|inet|character(?: varying)?\(\d+\))"
)
_COPY_LINE = re.compile(r"COPY .*?, line (\d+)")
_COPY_COLUMN = re.compile(r"^COPY .*, line \d+, column ([^:,]+)[:,]", re.MULTILINE)
_VIOLATION = "23"
_MOST_PARAMETERS = 65_535
"""Of one statement, in PostgreSQL's protocol."""


class Postgresql(Dialect):
    """PostgreSQL and what speaks its protocol and its SQL."""

    name = "PostgreSQL"
    schemes = ("postgresql", "postgres", "postgresql+psycopg")
    driver = "postgresql+psycopg"
    library = "psycopg"
    extra = "postgresql"
    has_snapshots = True
    default_lag_seconds = 1.0
    may_hang = True

    def engine_arguments(self, url: sa.URL) -> Mapping[str, Any]:
        connect = {
            "connect_timeout": CONNECT_SECONDS,
            "application_name": "fuploader",
            "client_encoding": "utf8",
        }
        return {
            "paramstyle": "format",
            "isolation_level": "READ COMMITTED",
            "use_native_hstore": False,
            "connect_args": {
                name: value for name, value in connect.items() if name not in url.query
            },
        }

    def cut(self, connection: Any) -> None:
        # libpq has no time limit for an answer. The server's own limit does not help if it hangs.
        import psycopg  # noqa: PLC0415 - an extra

        with (
            suppress(OSError, psycopg.Error),
            socket.socket(fileno=os.dup(connection.fileno())) as same,
        ):
            same.shutdown(socket.SHUT_RDWR)

    def begin(self, connection: sa.Connection) -> None:
        # A deferred constraint would fail at COMMIT, when nobody can say which row it was.
        self._begin(connection, "; SET CONSTRAINTS ALL IMMEDIATE")

    def begin_reading(self, connection: sa.Connection) -> None:
        self._begin(connection, "")

    def _begin(self, connection: sa.Connection, more: str) -> None:
        milliseconds = round(self.timeout_seconds * 1000)
        # For this transaction only, so that a pooler's next client does not inherit it.
        connection.exec_driver_sql(
            f"SELECT set_config('statement_timeout', '{milliseconds}', true), "
            f"set_config('idle_in_transaction_session_timeout', '{IDLE_SECONDS * 1000}', true), "
            "set_config('timezone', 'UTC', true), "
            "set_config('synchronous_commit', CASE current_setting('synchronous_commit') "
            f"WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true){more}",
            execution_options={"no_parameters": True},
        )

    def pieces(
        self,
        connection: sa.Connection,
        query: sa.Select[Any],
        rows: int,
        as_it_is: AsItIs,
        *,
        reading: bool,
    ) -> Generator[Sequence[tuple[Any, ...]], None, None]:
        import psycopg  # noqa: PLC0415 - an extra
        from psycopg.types.json import set_json_loads  # noqa: PLC0415

        # Not before: SQLAlchemy asks for columns with JSON of its own when it connects.
        driver: Any = connection.connection.driver_connection
        set_json_loads(as_it_is.json, driver)
        if not reading:
            yield from super().pieces(connection, query, rows, as_it_is, reading=reading)
            return
        # The server sends all of it without being asked again, which takes half of the time. If
        # the driver cannot read a value, it breaks that off.
        size = rows if psycopg.capabilities.has_stream_chunked() else 1
        with driver.cursor() as cursor:
            stream = cursor.stream(*written(query, connection.dialect), size=size)
            while piece := list(islice(stream, rows)):
                try:
                    yield piece
                except GeneratorExit:
                    deque(stream, maxlen=0)  # if it were broken off, the transaction would be over
                    raise
                del piece  # not to be kept while the next is read

    def streaming_cursor(self, connection: Any) -> Any:
        return connection.cursor("fuploader_rows")

    def key_trouble(self, column_type: Any, *, ordered: bool) -> str:
        if isinstance(column_type, sa.REAL):
            return "a 32-bit floating-point number, which is not equal to what it is written as"
        if isinstance(column_type, postgresql.INTERVAL):
            return "an interval, whose months have no fixed number of days"
        return ""

    def try_lock(self, connection: sa.Connection, name: str) -> bool:
        tries = 4
        connection.execute(
            sa.text(
                "SELECT set_config('tcp_keepalives_idle', :half, false), "
                "set_config('tcp_keepalives_interval', :part, false), "
                "set_config('tcp_keepalives_count', :tries, false)"
            ),
            {
                "half": str(VANISHED_SECONDS // 2),
                "part": str(VANISHED_SECONDS // 2 // tries),
                "tries": str(tries),
            },
        )
        got = connection.execute(
            sa.text("SELECT pg_try_advisory_lock(:number)"), {"number": _number_of(name)}
        )
        return bool(got.scalar())

    def unlock(self, connection: sa.Connection, name: str) -> None:
        connection.execute(
            sa.text("SELECT pg_advisory_unlock(:number)"), {"number": _number_of(name)}
        )

    def snapshot(self, connection: sa.Connection) -> tuple[int, int] | None:
        oldest, following = connection.execute(
            sa.text(
                "SELECT txid_snapshot_xmin(s), txid_snapshot_xmax(s) "
                "FROM txid_current_snapshot() AS s"
            )
        ).one()
        return oldest, following

    def meaning(self, error: BaseException) -> Meaning:
        state = getattr(error, "sqlstate", None)
        if not isinstance(state, str):
            return _without_code(error)
        said = f"{words.spoken(type(error).__name__)} (SQLSTATE {state})"
        diag = getattr(error, "diag", None)
        raised_in = getattr(diag, "source_function", None)
        if raised_in in _ABOUT_A_ROW:
            return Meaning("row", f"{_ABOUT_A_ROW[raised_in]} (SQLSTATE {state})")
        in_a_function = _FUNCTION.search(getattr(diag, "context", None) or "") is not None
        for codes, kind in ((_REFUSED, "refused"), (_AWAY, "away")):
            hint = codes.get(state) or codes.get(state[:2])
            if hint is not None and not (state == "57P04" and kind == "away"):
                if in_a_function and kind == "refused":
                    return Meaning("unknown", f"{said}, in a function of the database")
                primary = None if in_a_function else getattr(diag, "message_primary", None)
                told = f"{words.shown(primary)} (SQLSTATE {state})" if primary else said
                return Meaning("refused" if kind == "refused" else "away", told, hint)
        if state in _ROW_CODES or state[:2] in _ROW:
            twice, row = state == "23505", _line_of_copy(diag)
            return Meaning("row", _row_words(error, state), twice=twice, row=row)
        return Meaning("unknown", said)

    def conversion(self, sort: Sort) -> Conversion:
        return _CONVERSIONS[sort]

    def insert(
        self, connection: sa.Connection, statement: Statement, rows: Sequence[tuple[Any, ...]]
    ) -> None:
        width = len(statement.columns)
        place = f"({', '.join(['%s'] * width)})"
        begin, _, end = statement.sql.partition(f" VALUES {place}")
        if statement.in_bulk and "%" not in begin:  # which is written twice in a statement
            _copy(connection, begin.replace("INSERT INTO", "COPY", 1), rows)
            return
        # One statement must not have two rows of one key; the last one wins.
        if statement.key:
            rows = list({tuple(row[n] for n in statement.key): row for row in rows}.values())
        most = max(1, _MOST_PARAMETERS // width)
        for start in range(0, len(rows), most):
            part = rows[start : start + most]
            sql = f"{begin} VALUES {', '.join([place] * len(part))}{end}"
            connection.exec_driver_sql(sql, tuple(value for row in part for value in row))

    def takes_bulk(self, connection: sa.Connection, table: sa.TableClause) -> bool:
        return bool(
            connection.execute(
                sa.text(
                    "SELECT relkind IN ('r', 'p') AND NOT relhasrules "
                    "AND NOT row_security_active(oid) FROM pg_class WHERE oid = to_regclass(:name)"
                ),
                {"name": connection.dialect.identifier_preparer.format_table(table)},
            ).scalar()
        )

    def named(self, meaning: Meaning, error: BaseException, names: frozenset[str]) -> Meaning:
        context = getattr(getattr(error, "diag", None), "context", None)
        place = _COPY_COLUMN.search(context or "")
        if place is None or place[1] not in names or ", column " in meaning.words:
            return meaning
        return replace(meaning, words=meaning.words.replace(" (", f", column {place[1]} (", 1))

    def upsert(
        self, table: sa.TableClause, columns: Sequence[str], key: Sequence[str]
    ) -> sa.Insert:
        return replaced_on_conflict(postgresql.insert(table), columns, key)

    def findings(self, connection: sa.Connection, table: sa.TableClause) -> Sequence[Finding]:
        found = []
        name = connection.dialect.identifier_preparer.format_table(table)
        persistence = connection.execute(
            sa.text("SELECT relpersistence::text FROM pg_class WHERE oid = to_regclass(:name)"),
            {"name": name},
        ).scalar()
        if persistence == "u":
            said = "the table is UNLOGGED: a crash of the server empties it, but not the ledger"
            found.append(Finding("durability", said, "ALTER TABLE ... SET LOGGED"))
        if connection.execute(sa.text("SELECT current_setting('fsync')")).scalar() == "off":
            said = "fsync is off: a power cut may lose stored rows"
            found.append(Finding("durability", said, "set fsync = on at the server"))
        return found


def _line_of_copy(diag: Any) -> int | None:
    line = _COPY_LINE.match(getattr(diag, "context", None) or "")
    return int(line[1]) - 1 if line is not None else None


def _number_of(lock: str) -> int:
    return int.from_bytes(hashlib.sha256(lock.encode()).digest()[:8], "big", signed=True)


def _copy(connection: sa.Connection, begin: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Load rows in bulk: a third of the time that inserts take."""
    cursor: Any = connection.connection.cursor()
    with cursor, cursor.copy(f"{begin} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def _without_code(error: BaseException) -> Meaning:
    """Errors that the driver found: while it connected, when the connection was lost, or before
    anything was sent."""
    import psycopg  # noqa: PLC0415 - an extra

    if isinstance(error, psycopg.DataError | psycopg.NotSupportedError):
        return Meaning("row", words.NO_DRIVER_WORDS, of_driver=True)
    said = str(error)
    for pattern, hint in _AT_LOGIN.items():
        if re.search(pattern, said):
            return Meaning("refused", words.shown(said), hint)
    if isinstance(error, psycopg.ProgrammingError):
        if "adapt" in said:  # no way to send a value of this Python type
            return Meaning("row", words.NO_DRIVER_WORDS)
        return Meaning("refused", words.spoken(type(error).__name__))
    return Meaning("away", words.shown(said) or words.LOST, words.ASK_LATER)


def _row_words(error: BaseException, state: str) -> str:
    diag: Any = getattr(error, "diag", None)
    parts = [words.spoken(type(error).__name__)]
    if diag is not None:
        if state.startswith(_VIOLATION) and diag.constraint_name:
            parts.append(f"constraint {words.shown(diag.constraint_name)}")
        if diag.column_name:
            parts.append(f"column {words.shown(diag.column_name)}")
        kind = _TYPE.search(diag.message_primary or "")
        if kind is not None:
            parts.append(f"type {kind[1]}")
    return f"{', '.join(parts)} (SQLSTATE {state})"


def _text(value: str) -> str:
    if "\0" in value:
        raise Unfit("text with a NUL character")
    return text(value)


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _number(value: Any) -> str:
    try:
        return str(value)
    except ValueError:  # more digits than Python writes
        raise Unfit("a number with too many digits") from None


def _json(value: Any) -> str:
    return _text(json_text(value))


def _written(value: date | time) -> str:
    return value.isoformat()


_BY_TYPE: Mapping[type, Convert | None] = {
    str: _text,
    int: _number,
    float: _number,
    bool: _bool,
    type(None): None,
    bytes: None,
    timedelta: None,
    Decimal: _number,
    dict: _json,
    list: _json,
    tuple: _json,
    datetime: _written,
    date: _written,
    time: _written,
}
_CONVERSIONS: Mapping[Sort, Conversion] = {
    "json": AS_JSON,
    "integer": Conversion(_BY_TYPE),
    "array": Conversion({**_BY_TYPE, list: None, tuple: list}),
    "moment": Conversion(
        {
            **_BY_TYPE,
            str: lambda value: _text(in_utc(value)),
            datetime: lambda value: moment_in_utc(value).isoformat(),
        }
    ),
    "other": Conversion(_BY_TYPE),
}
