"""What an error of a database means: the row is bad, the database is away, or a person must act.

What must always hold: no value of a row gets into a text. The databases' own messages quote values
(`Duplicate entry 'x' for key`), so reasons are made of error codes and of names of columns and
constraints, and a message is shown only where it cannot quote one. Errors of ours do not refer to
the database's error either: whoever raises one does it outside of `except`.

Each dialect reads its own codes (`Dialect.meaning`); this module has what they share.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sqlalchemy.exc import DBAPIError

from fuploader_dagster.errors import (
    FuploaderError,
    SinkRefused,
    SinkUnavailable,
    SourceRefused,
    SourceUnavailable,
)
from fuploader_dagster.settings.secret import without_logins

Kind = Literal["row", "away", "refused", "unknown"]
"""`unknown`: nobody knows whether a row is to blame or the table."""
_MOST_CHARACTERS = 300
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")

NO_DRIVER_WORDS = "the driver cannot send one of the values"
LOST = "the connection was lost"
ASK_LATER = "is the database running, and can this machine reach it?"
SLOW = "raise timeout_seconds, or find out what keeps the database busy"
ALLOW = "grant the user of the url the right that is missing"
LOGIN = "check user, password and database name in the url, and what the server lets in from here"
PRIMARY = "this server accepts no changes: name the primary in the url"
NO_TABLE = "create it, or correct table and schema"
NO_COLUMN = "add the column to the table, or leave it out (columns, or rows)"
NO_UNIQUE = "create a primary key or a unique constraint on exactly the columns of key"
SERVER_LOG = "check the database server's log"


@dataclass(frozen=True)
class Meaning:
    """What one error means."""

    kind: Kind
    words: str
    """Without values."""
    hint: str = ""
    twice: bool = False
    """The row breaks a unique key."""
    of_driver: bool = False
    """The driver could not read or send a value; the server has refused nothing."""
    row: int | None = None
    """Which of the rows that were sent together is probably to blame, from 0; None if nobody
    says."""


class BadRows(Exception):
    """The database does not take the rows of one statement. Never leaves `resources`."""

    def __init__(self, meaning: Meaning) -> None:
        super().__init__(meaning.words)
        self.meaning = meaning


def original(error: BaseException) -> BaseException:
    """The driver's error, without SQLAlchemy's around it."""
    inner = error.orig if isinstance(error, DBAPIError) else None
    return error if inner is None else inner


@dataclass(frozen=True)
class Errors:
    """The kinds of error that a sink raises, or a source."""

    away: type[FuploaderError]
    refused: type[FuploaderError]


OF_A_SINK = Errors(SinkUnavailable, SinkRefused)
OF_A_SOURCE = Errors(SourceUnavailable, SourceRefused)


def explained(meaning: Meaning, trying: str, errors: Errors) -> FuploaderError:
    """Our error. `trying` starts its message."""
    kind = errors.away if meaning.kind == "away" else errors.refused
    return kind(f"{trying}: {meaning.words}", hint=meaning.hint or SERVER_LOG)


def spoken(name: str) -> str:
    """An error class as words: NotNullViolation becomes "not null violation"."""
    return _CAPITAL.sub(" ", name).lower()


def shown(text: str, most: int = _MOST_CHARACTERS) -> str:
    """Text of a server or a name for a log line: one printable line, cut, without logins."""
    line = " ".join(without_logins(text).split())
    printable = line if line.isprintable() else repr(line)
    return printable if len(printable) <= most else f"{printable[:most]}..."
