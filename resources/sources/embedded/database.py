"""The file of an embedded queue: its tables, its transactions, and what its errors mean.

What must always hold: a durable transaction is on the disk when it ends. The file that is written
is the one that has its name now (`disk.sqlite_files`). Whatever a damaged file raises becomes an
error of the contract, which says what to do.

    messages    id (never used again), deliveries, and the columns that `rows` describes
    held        consumer, first, last, messages: a range of ids that a consumer has taken
    waiting     one row: the number of messages, so that the backlog needs no scan

A file of an older version gets the column for the digest when it is opened.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fuploader_dagster.disk.sqlite_files import TROUBLE, Kind, SqliteFile, trouble
from fuploader_dagster.errors import SourceRefused, SourceUnavailable

if TYPE_CHECKING:
    from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue

FILE = "queue.sqlite"
_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT, message_id TEXT, headers TEXT,
        deliveries INTEGER NOT NULL DEFAULT 0, body BLOB NOT NULL, digest BLOB)""",
    """CREATE TABLE IF NOT EXISTS held (
        consumer TEXT NOT NULL, first INTEGER PRIMARY KEY, last INTEGER NOT NULL,
        messages INTEGER NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS waiting (
        only INTEGER PRIMARY KEY CHECK (only = 0), messages INTEGER)""",
    """INSERT OR REPLACE INTO waiting SELECT 0, (SELECT count(*) FROM messages)
        WHERE NOT EXISTS (SELECT 1 FROM waiting WHERE typeof(messages) = 'integer')""",
)
READ_ROWS = (
    "SELECT id, body, deliveries, message_id, headers, digest FROM messages "
    "WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?"
)
_TO_DO: dict[Kind, str] = {
    "busy": "another process keeps writing; it will be retried",
    "damaged": f"{FILE} is damaged: stop everything that uses it and save what can be read "
    '(docs/operations.md, "The file of an embedded queue is damaged")',
    "disk": "check the folder's disk and its free space",
    "rights": "this user must be able to write to the folder and everything in it",
}


class QueueDatabase:
    """The queue's file, opened at first use; errors become the contract's."""

    def __init__(self, settings: EmbeddedQueue) -> None:
        self._settings = settings
        self._path = settings.path / FILE
        self._file: SqliteFile | None = None

    def exists(self) -> bool:
        """Whether the file has been made."""
        return self._path.exists()

    def open(self) -> None:
        if self._file is None:
            with self.explaining():
                seconds = self._settings.busy_timeout_seconds
                self._file = SqliteFile(self._path, prepare, wait_seconds=seconds)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def version(self) -> int:
        """A number that changes when another connection has written."""
        with self.explaining():
            row = self._opened().connection.execute("PRAGMA data_version").fetchone()
        return int(row[0])

    def consumers(self) -> list[bytes]:
        """The consumers that hold messages."""
        with self.explaining():
            db = self._opened().connection
            rows = db.execute("SELECT DISTINCT CAST(consumer AS BLOB) FROM held").fetchall()
        return [consumer or b"" for (consumer,) in rows]

    @contextmanager
    def transaction(self, *, durable: bool) -> Iterator[sqlite3.Connection]:
        """All or nothing; a durable one is on the disk when it ends."""
        with self.explaining():
            file = self._opened()
            file.connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            with file.transaction() as db:
                yield db

    def _opened(self) -> SqliteFile:
        self.open()
        assert self._file is not None  # noqa: S101
        if not self._file.in_place:
            raise SourceUnavailable(
                f"{self._settings.describe()} was removed or replaced while it was in use"
            )
        return self._file

    @contextmanager
    def explaining(self) -> Iterator[None]:
        try:
            yield
        except TROUBLE as error:
            self.close()
            raise explained(self._settings, error) from error
        except (SourceUnavailable, SourceRefused):
            self.close()
            raise


def explained(settings: EmbeddedQueue, error: BaseException) -> SourceUnavailable | SourceRefused:
    what = trouble(error)
    kind = SourceUnavailable if what in ("busy", "disk") else SourceRefused
    return kind(f"could not use {settings.describe()}: {error}", hint=_TO_DO[what])


def prepare(db: sqlite3.Connection) -> None:
    """Create the tables that are missing."""
    db.text_factory = bytes  # so that damaged text raises nothing before we look at its row
    db.execute("PRAGMA synchronous = FULL")
    db.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA:
        db.execute(statement)
    columns = [name for _, name, *_ in db.execute("PRAGMA table_info(messages)")]
    if b"digest" not in columns:
        db.execute("ALTER TABLE messages ADD COLUMN digest BLOB")
    db.execute("COMMIT")
