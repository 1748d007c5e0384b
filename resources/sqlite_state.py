"""State in one SQLite file: for a machine without Redis. Workers of one machine share it.

What must always hold:

- Each method is one transaction. Writers of several processes wait for each other, at most
  `busy_timeout_seconds`.
- The file is never the only place of anything, so commits are not synced one by one: a power cut
  may lose the last ones, a crash of the process loses none.
- The file may be removed at any time, also while it is open. Before each call its identity is
  compared with what was opened, and an empty store takes the place of a file that is gone.

Format: tables keyed by (pipeline, node), so that pipelines can share a file. Write-ahead log. A
file lock beside it makes sure that one process at a time creates the file: two of them doing so
at once would remove each other's log.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import Field

from fuploader_dagster.errors import SlotInUse, StateUnavailable
from fuploader_dagster.state import (
    HIGHEST_NUMBER,
    LONGEST_CLAIM_SECONDS,
    Commit,
    SlotCount,
    Snapshot,
    StateSettings,
    StateStore,
    warn_once,
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS slots (
    pipeline TEXT, node TEXT, slot INTEGER, number INTEGER, messages INTEGER, size_bytes INTEGER,
    PRIMARY KEY (pipeline, node, slot)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS highest_numbers (
    pipeline TEXT, node TEXT, slot INTEGER, number INTEGER,
    PRIMARY KEY (pipeline, node, slot)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (
    pipeline TEXT, node TEXT, slot INTEGER, root_id TEXT, lapses_at REAL,
    PRIMARY KEY (pipeline, node, slot)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sealed (
    pipeline TEXT, node TEXT, key TEXT,
    PRIMARY KEY (pipeline, node, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS totals (
    pipeline TEXT, node TEXT, stored_messages INTEGER DEFAULT 0, stored_bytes INTEGER DEFAULT 0,
    duplicates INTEGER DEFAULT 0, dead_letters INTEGER DEFAULT 0,
    PRIMARY KEY (pipeline, node)) WITHOUT ROWID;
"""


HURRIED_SECONDS = 1.0


class SqliteState(StateSettings):
    """State in a file on this machine's own disk (not on a network share)."""

    path: Path
    """The file; it and its folder are created when missing."""
    busy_timeout_seconds: float = Field(default=10, gt=0, le=60)
    """How long one worker waits while another one writes."""

    def store(self, *, pipeline: str, node: str) -> SqliteStateStore:
        return SqliteStateStore(self, pipeline, node)

    def in_a_hurry(self) -> SqliteState:
        seconds = min(self.busy_timeout_seconds, HURRIED_SECONDS)
        return self.model_copy(update={"busy_timeout_seconds": seconds})

    def describe(self) -> str:
        return f"state file {self.path}"


class SqliteStateStore(StateStore):
    """State of one pipeline on one node. Threads take turns on one connection."""

    def __init__(self, settings: SqliteState, pipeline: str, node: str) -> None:
        self._settings = settings
        self._key = (pipeline, node)
        self._turn = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None

    def open(self) -> None:
        with self._transaction() as db:
            db.execute("SELECT count(*) FROM sealed WHERE pipeline = ? AND node = ?", self._key)

    def close(self) -> None:
        with self._turn:
            self._disconnect()

    def claim(self, slots: Sequence[int], root_id: str, ttl_seconds: float) -> None:
        with self._claiming(slots, ttl_seconds) as db:
            self._take(db, slots, root_id, ttl_seconds)

    def release(self, slots: Sequence[int], root_id: str) -> None:
        with self._transaction() as db:
            db.executemany(
                "DELETE FROM claims WHERE pipeline = ? AND node = ? AND slot = ? AND root_id = ?",
                [(*self._key, slot, root_id) for slot in slots],
            )

    def record(self, commit: Commit, *, root_id: str, ttl_seconds: float) -> None:
        slots = [count.slot for count in commit.slots]
        with self._claiming(slots, ttl_seconds) as db:
            self._take(db, slots, root_id, ttl_seconds)
            db.executemany(
                "INSERT OR REPLACE INTO slots VALUES (?, ?, ?, ?, ?, ?)",
                [(*self._key, s.slot, s.number, s.messages, s.size_bytes) for s in commit.slots],
            )
            db.executemany(
                "INSERT INTO highest_numbers VALUES (?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET number = CASE WHEN typeof(number) = 'integer' AND "
                "number BETWEEN excluded.number AND ? THEN number ELSE excluded.number END",
                [(*self._key, s.slot, s.number, HIGHEST_NUMBER) for s in commit.slots],
            )
            self._add_sealed(db, commit.sealed)
            db.execute(
                "INSERT INTO totals VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "stored_messages = stored_messages + excluded.stored_messages, "
                "stored_bytes = stored_bytes + excluded.stored_bytes, "
                "duplicates = duplicates + excluded.duplicates, "
                "dead_letters = dead_letters + excluded.dead_letters",
                (
                    *self._key,
                    commit.stored_messages,
                    commit.stored_bytes,
                    commit.duplicates,
                    commit.dead_letters,
                ),
            )

    def highest_number(self, slot: int) -> int:
        with self._transaction() as db:
            row = db.execute(
                "SELECT number FROM highest_numbers WHERE pipeline = ? AND node = ? AND slot = ?",
                (*self._key, slot),
            ).fetchone()
        if row is None:
            return 0
        if isinstance(row[0], int) and 0 <= row[0] <= HIGHEST_NUMBER:
            return row[0]
        warn_once(
            f"{self._settings.describe()} says that the highest directory of slot {slot} has the "
            f"number {str(row[0])[:60]!r}; only numbers up to {HIGHEST_NUMBER:,} are believed"
        )
        return 0

    def add_sealed(self, keys: Sequence[str]) -> None:
        with self._transaction() as db:
            self._add_sealed(db, keys)

    def sealed(self, limit: int) -> list[str]:
        with self._transaction() as db:
            rows = db.execute(
                "SELECT key FROM sealed WHERE pipeline = ? AND node = ? ORDER BY key LIMIT ?",
                (*self._key, max(limit, 0)),
            ).fetchall()
        return [key for (key,) in rows]

    def forget_sealed(self, keys: Sequence[str]) -> None:
        with self._transaction() as db:
            db.executemany(
                "DELETE FROM sealed WHERE pipeline = ? AND node = ? AND key = ?",
                [(*self._key, key) for key in keys],
            )

    def snapshot(self) -> Snapshot:
        with self._transaction() as db:
            slots = db.execute(
                "SELECT slot, number, messages, size_bytes FROM slots "
                "WHERE pipeline = ? AND node = ? ORDER BY slot",
                self._key,
            ).fetchall()
            owners = db.execute(
                "SELECT slot, root_id FROM claims "
                "WHERE pipeline = ? AND node = ? AND lapses_at > ?",
                (*self._key, time.time()),
            ).fetchall()
            (waiting,) = db.execute(
                "SELECT count(*) FROM sealed WHERE pipeline = ? AND node = ?", self._key
            ).fetchone()
            totals = db.execute(
                "SELECT stored_messages, stored_bytes, duplicates, dead_letters FROM totals "
                "WHERE pipeline = ? AND node = ?",
                self._key,
            ).fetchone()
        return Snapshot(
            tuple(SlotCount(*row) for row in slots), dict(owners), waiting, *(totals or ())
        )

    @contextmanager
    def _claiming(self, slots: Sequence[int], ttl_seconds: float) -> Iterator[sqlite3.Connection]:
        """A transaction that may be refused. The claim that refuses it is cut if it is too long."""
        try:
            with self._transaction() as db:
                yield db
        except SlotInUse:
            now = time.time()
            with self._transaction() as db:
                db.executemany(
                    "UPDATE claims SET lapses_at = ? "
                    "WHERE pipeline = ? AND node = ? AND slot = ? AND lapses_at > ?",
                    [
                        (now + ttl_seconds, *self._key, slot, now + LONGEST_CLAIM_SECONDS)
                        for slot in slots
                    ],
                )
            raise

    def _take(
        self, db: sqlite3.Connection, slots: Iterable[int], root_id: str, ttl_seconds: float
    ) -> None:
        """Claim or renew; the caller's transaction undoes everything if one is taken."""
        now = time.time()
        for slot in slots:
            row = db.execute(
                "INSERT INTO claims VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "root_id = excluded.root_id, lapses_at = excluded.lapses_at "
                "WHERE root_id = excluded.root_id OR lapses_at <= ? RETURNING slot",
                (*self._key, slot, root_id, now + ttl_seconds, now),
            ).fetchone()
            if row is None:
                (holder,) = db.execute(
                    "SELECT root_id FROM claims WHERE pipeline = ? AND node = ? AND slot = ?",
                    (*self._key, slot),
                ).fetchone()
                pipeline, node = self._key
                raise SlotInUse(
                    f"slot {slot} of pipeline {pipeline} on node {node!r} is held by storage root "
                    f"{holder}, says {self._settings.describe()}",
                    hint="do two storage roots use the same node name?",
                )

    def _add_sealed(self, db: sqlite3.Connection, keys: Iterable[str]) -> None:
        db.executemany(
            "INSERT OR IGNORE INTO sealed VALUES (?, ?, ?)", [(*self._key, key) for key in keys]
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, on the file that is there now."""
        with self._turn:
            try:
                db = self._connected()
                db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                except BaseException:
                    db.execute("ROLLBACK")
                    raise
                db.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                self._disconnect()  # whatever state it is in, the next call starts afresh
                raise StateUnavailable(
                    f"could not use {self._settings.describe()}: {error}",
                    hint="check its folder, rights and disk; a damaged file may be removed, it is "
                    "rebuilt from the slot directories",
                ) from error

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None or self._identity != _identity(self._settings.path):
            self._disconnect()
            self._connect()
        assert self._connection is not None  # noqa: S101
        return self._connection

    def _connect(self) -> None:
        path = self._settings.path
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _identity(path) is None:  # a log without its file belongs to a file that is gone
                for suffix in ("-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
            db = sqlite3.connect(
                path,
                timeout=self._settings.busy_timeout_seconds,
                isolation_level=None,
                check_same_thread=False,
            )
            self._connection = db
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(_SCHEMA)
            self._identity = _identity(path)
        finally:
            os.close(lock)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file lies there now: device and inode, or None."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
