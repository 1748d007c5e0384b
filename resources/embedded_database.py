"""The file of an embedded queue: its tables, its transactions, and what its errors mean.

What must always hold: a transaction that was asked to be durable is on the disk when it ends. The
file that is written is the one that lies under its name: after somebody removed or replaced it,
SQLite would go on writing into a file that nobody can reach any more.

    messages    id (never used again), message_id, headers (JSON), deliveries, body
    held        consumer, first, last, messages: a range of ids that a consumer has taken
    waiting     one row: how many messages there are, so that the backlog needs no scan
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from fuploader_dagster.errors import SourceRefused, SourceUnavailable
from fuploader_dagster.fileio import make_dirs

if TYPE_CHECKING:
    from fuploader_dagster.resources.embedded import EmbeddedQueue

_FILE = "queue.sqlite"
_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, message_id TEXT, headers TEXT,
    deliveries INTEGER NOT NULL DEFAULT 0, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS held (
    consumer TEXT NOT NULL, first INTEGER PRIMARY KEY, last INTEGER NOT NULL,
    messages INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS waiting (only INTEGER PRIMARY KEY CHECK (only = 0), messages INTEGER);
INSERT OR IGNORE INTO waiting VALUES (0, 0);
COMMIT;
"""


class QueueDatabase:
    """The queue's file, opened at first use; errors become the contract's."""

    def __init__(self, settings: EmbeddedQueue) -> None:
        self._settings = settings
        self._path = settings.path / _FILE
        self._connection: sqlite3.Connection | None = None
        self._inode = 0

    def open(self) -> None:
        if self._connection is not None:
            return
        with self._explaining():
            make_dirs(self._settings.path)
            db = sqlite3.connect(
                self._path, timeout=self._settings.busy_timeout_seconds, isolation_level=None
            )
            self._connection = db
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.executescript(_SCHEMA)
            self._inode = self._path.stat().st_ino

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def version(self) -> int:
        """Changes when another connection has written."""
        with self._explaining():
            return int(self._opened().execute("PRAGMA data_version").fetchone()[0])

    def consumers(self) -> list[str]:
        """Those who hold messages."""
        with self._explaining():
            rows = self._opened().execute("SELECT DISTINCT consumer FROM held").fetchall()
        return [consumer for (consumer,) in rows]

    @contextmanager
    def transaction(self, *, durable: bool) -> Iterator[sqlite3.Connection]:
        """All or nothing; a durable one is on the disk when it ends."""
        with self._explaining():
            db = self._opened()
            db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def _opened(self) -> sqlite3.Connection:
        self.open()
        assert self._connection is not None  # noqa: S101
        if not self._path.exists() or self._path.stat().st_ino != self._inode:
            raise SourceUnavailable(
                f"{self._settings.describe()} was removed or replaced while it was in use"
            )
        return self._connection

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise explained(self._settings, error) from error
        except SourceUnavailable:
            self.close()
            raise


def explained(settings: EmbeddedQueue, error: Exception) -> SourceUnavailable | SourceRefused:
    what = f"could not use {settings.describe()}: {error}"
    if isinstance(error, (PermissionError, NotADirectoryError, FileExistsError)):
        return SourceRefused(what, hint="the folder must be one that this user may write")
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
        return SourceRefused(what, hint=f"{_FILE} is damaged: put it aside and look what it holds")
    return SourceUnavailable(what, hint="check the folder's disk, its space and its rights")
