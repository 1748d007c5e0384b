"""SQLite: one file on this machine.

Errors carry no code before Python 3.11, so they are told apart by their text, which has names in
it and no values. Transactions begin with BEGIN IMMEDIATE: one that reads first and writes later
fails at once if another process wrote in between, whatever the busy timeout is.
"""

from __future__ import annotations

import re
import sqlite3
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, time
from decimal import Decimal
from itertools import count, islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.pool import NullPool

from fuploader_dagster.resources.sql import errors as words
from fuploader_dagster.resources.sql.dialect import (
    AsItIs,
    Dialect,
    Statement,
    replaced_on_conflict,
    written,
)
from fuploader_dagster.resources.sql.errors import Meaning
from fuploader_dagster.resources.sql.values import (
    AS_JSON,
    Conversion,
    Sort,
    Unfit,
    json_text,
    text,
)

_ROW = re.compile(
    r"(NOT NULL|UNIQUE|PRIMARY KEY|CHECK|FOREIGN KEY) constraint failed(: .*)?|datatype mismatch"
    r"|cannot store \w+ value in \w+ column .*|string or blob too big"
)
_AWAY = {
    r"is locked|is busy": words.SLOW,
    r"disk is full|disk I/O error": "check the disk of the file and its free space",
}
_REFUSED = {
    r"no such table": words.NO_TABLE,
    r"no column named|no such column": words.NO_COLUMN,
    r"ON CONFLICT clause does not match": words.NO_UNIQUE,
    r"readonly|unable to open|authorization denied": "this user must be able to write to the file "
    "and its folder",
    r"not a database|malformed": "the file is damaged, or not a SQLite file",
}
_MOST_INTEGER = 1 << 63
_NOT_UTF8 = "Could not decode to UTF-8"
"""What the driver says of a text, which SQLite does not check."""


class Sqlite(Dialect):
    """A SQLite file."""

    name = "SQLite"
    schemes = ("sqlite", "sqlite+pysqlite")
    driver = "sqlite+pysqlite"
    is_a_file = True

    def engine_arguments(self, url: sa.URL) -> Mapping[str, Any]:
        return {"poolclass": NullPool, "connect_args": {"timeout": self.timeout_seconds}}

    def connected(self, connection: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = EXTRA")

    def begin(self, connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def begin_reading(self, connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    def pieces(
        self,
        connection: sa.Connection,
        query: sa.Select[Any],
        rows: int,
        as_it_is: AsItIs,
        *,
        reading: bool,
    ) -> Generator[Sequence[tuple[Any, ...]], None, None]:
        given = 0
        try:
            for piece in super().pieces(connection, query, rows, as_it_is, reading=reading):
                given += len(piece)
                yield piece
            return
        except sqlite3.OperationalError as error:
            if not str(error).startswith(_NOT_UTF8):
                raise
        # Again from there, in the same transaction. For every text this would be slow.
        driver: Any = connection.connection.driver_connection
        driver.text_factory = as_it_is.text
        cursor = driver.execute(*written(query, connection.dialect))
        try:
            deque(islice(cursor, given), maxlen=0)
            while piece := cursor.fetchmany(rows):
                yield piece
        finally:
            cursor.close()
            driver.text_factory = str

    def insert(
        self, connection: sa.Connection, statement: Statement, rows: Sequence[tuple[Any, ...]]
    ) -> None:
        sent = count()
        cursor: Any = connection.connection.cursor()
        try:
            cursor.executemany(statement.sql, (row for row, _ in zip(rows, sent, strict=False)))
        except sqlite3.Error as error:
            error.row = next(sent) - 1  # type: ignore[attr-defined]
            raise
        finally:
            cursor.close()

    def meaning(self, error: BaseException) -> Meaning:
        return replace(_meaning(error), row=getattr(error, "row", None))

    def conversion(self, sort: Sort) -> Conversion:
        return AS_JSON if sort == "json" else _OTHER

    def upsert(
        self, table: sa.TableClause, columns: Sequence[str], key: Sequence[str]
    ) -> sa.Insert:
        return replaced_on_conflict(sqlite.insert(table), columns, key)


def _meaning(error: BaseException) -> Meaning:
    said = words.shown(str(error))
    row = _ROW.search(said)
    if row is not None:
        twice = said.startswith("UNIQUE")
        return Meaning("row", row[0], twice=twice)
    if isinstance(error, sqlite3.IntegrityError | sqlite3.DataError):
        return Meaning("row", "refused by a trigger or a constraint")
    if isinstance(error, sqlite3.InterfaceError | sqlite3.ProgrammingError):
        return Meaning("row", words.NO_DRIVER_WORDS)
    for pattern, hint in _AWAY.items():
        if re.search(pattern, said):
            return Meaning("away", said, hint)
    for pattern, hint in _REFUSED.items():
        if re.search(pattern, said):
            return Meaning("refused", said, hint)
    return Meaning("unknown", "SQLite refused the statement", "look at the table's triggers")


def _integer(value: int) -> int:
    if not -_MOST_INTEGER <= value < _MOST_INTEGER:
        raise Unfit("an integer of more than 64 bits")
    return value


def _float(value: float) -> float:
    if value != value:  # noqa: PLR0124 - NaN, which SQLite would store as NULL
        raise Unfit("a number that is not a number (NaN)")
    return value


_OTHER = Conversion(
    {
        str: text,
        int: _integer,
        float: _float,
        bool: None,
        type(None): None,
        bytes: None,
        Decimal: str,
        dict: json_text,
        list: json_text,
        tuple: json_text,
        datetime: lambda value: value.isoformat(" "),
        date: date.isoformat,
        time: time.isoformat,
    }
)
