"""State in one SQLite file: for a machine without Redis. Workers of one machine share it.

What must always hold:

- Each method is one transaction. Writers in several processes wait for each other, at most
  `busy_timeout_seconds`.
- The file is never the only copy of anything, so commits are not synced one by one: a power cut may
  lose the last ones, a crash of the process loses none.
- The file may be removed at any time, even while it is open (`disk.sqlite_files`): a new, empty
  store replaces it.
- Values that no method here stores are ignored, and replaced when we write. SQLite accepts text in
  a column of numbers, and bytes that are not text, and damage leaves such values too.

Format: tables keyed by (pipeline, node), so that pipelines can share a file; notes by pipeline.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from fuploader_dagster.contracts import state
from fuploader_dagster.disk.sqlite_files import TROUBLE, Kind, SqliteFile, trouble
from fuploader_dagster.errors import OutdatedCopy, SlotInUse, StateRefused, StateUnavailable

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
CREATE TABLE IF NOT EXISTS epochs (
    pipeline TEXT, node TEXT, slot INTEGER, root_id TEXT, place TEXT, epoch INTEGER, nonce TEXT,
    PRIMARY KEY (pipeline, node, slot)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sealed (
    pipeline TEXT, node TEXT, key TEXT,
    PRIMARY KEY (pipeline, node, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS totals (
    pipeline TEXT, node TEXT, stored_messages INTEGER DEFAULT 0, stored_bytes INTEGER DEFAULT 0,
    duplicates INTEGER DEFAULT 0, dead_letters INTEGER DEFAULT 0,
    PRIMARY KEY (pipeline, node)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (
    pipeline TEXT, name TEXT, at INTEGER, text TEXT,
    PRIMARY KEY (pipeline, name)) WITHOUT ROWID;
"""
_IS_A_CLAIM = """
    typeof(root_id) = 'text' AND typeof(lapses_at) IN ('real', 'integer')
"""
_MOST = 10**18
"""No count gets that high."""
_ADD_TOTALS = ", ".join(
    f"{name} = CASE WHEN typeof({name}) = 'integer' AND {name} BETWEEN 0 AND {_MOST} "
    f"THEN {name} ELSE 0 END + excluded.{name}"
    for name in state.TOTALS
)
_TO_DO: dict[Kind, str] = {
    "busy": "another process keeps writing; it will be retried",
    "damaged": "the file is damaged, or not a state file of ours; you may remove it with its -wal "
    "and -shm: it is rebuilt from the slot directories",
    "disk": "check the disk of its folder and its free space",
    "rights": "this user must be able to write to the file and its folder",
}


class SqliteState(state.StateSettings):
    """State in a file on this machine's own disk (not on a network share)."""

    path: Path
    """Path of the file. It and its folder are created if they are missing."""
    busy_timeout_seconds: float = Field(default=10, gt=0, le=60)
    """Longest time that one worker waits while another writes."""

    def store(self, *, pipeline: str, node: str) -> SqliteStateStore:
        return SqliteStateStore(self, pipeline, node)

    def exists(self) -> bool:
        return self.path.exists()

    def in_a_hurry(self) -> SqliteState:
        seconds = min(self.busy_timeout_seconds, state.HURRIED_SECONDS)
        return self.model_copy(update={"busy_timeout_seconds": seconds})

    def describe(self) -> str:
        return f"state file {self.path}"


class SqliteStateStore(state.StateStore):
    """State of one pipeline on one node. Threads take turns on one connection."""

    def __init__(self, settings: SqliteState, pipeline: str, node: str) -> None:
        self._settings = settings
        self._key = (pipeline, node)
        self._turn = threading.Lock()
        self._file: SqliteFile | None = None

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

    def take(self, claims: Sequence[state.Claim], ttl_seconds: float) -> list[state.Claim]:
        with self._claiming([one.slot for one in claims], ttl_seconds) as db:
            return [self._take_over(db, one, ttl_seconds) for one in claims]

    def give_back(self, claims: Sequence[state.Claim]) -> None:
        with self._transaction() as db:
            for one in claims:
                if _is_last(one, self._last(db, one.slot)):
                    db.execute(
                        "DELETE FROM claims "
                        "WHERE pipeline = ? AND node = ? AND slot = ? AND root_id = ?",
                        (*self._key, one.slot, one.root_id),
                    )

    def record(self, commit: state.Commit, *, root_id: str, ttl_seconds: float) -> None:
        slots = [count.slot for count in commit.slots]
        with self._claiming(slots, ttl_seconds) as db:
            for one in commit.claims:
                last = self._last(db, one.slot)
                if last is None:
                    self._note(db, one)
                elif not _is_last(one, last):
                    raise self._refusal(db, one.slot, last.root_id, one)
            self._take(db, slots, root_id, ttl_seconds, commit.claims)
            db.executemany(
                "INSERT OR REPLACE INTO slots VALUES (?, ?, ?, ?, ?, ?)",
                [(*self._key, s.slot, s.number, s.messages, s.size_bytes) for s in commit.slots],
            )
            db.executemany(
                "INSERT INTO highest_numbers VALUES (?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET number = CASE WHEN typeof(number) = 'integer' AND "
                "number BETWEEN excluded.number AND ? THEN number ELSE excluded.number END",
                [(*self._key, s.slot, s.number, state.HIGHEST_NUMBER) for s in commit.slots],
            )
            self._add_sealed(db, commit.sealed)
            db.execute(
                "INSERT INTO totals VALUES (?, ?, ?, ?, ?, ?) "  # noqa: S608 - our own names
                f"ON CONFLICT DO UPDATE SET {_ADD_TOTALS}",
                (*self._key, *(getattr(commit, name) for name in state.TOTALS)),
            )

    def highest_number(self, slot: int) -> int:
        with self._transaction() as db:
            row = db.execute(
                "SELECT number FROM highest_numbers WHERE pipeline = ? AND node = ? AND slot = ?",
                (*self._key, slot),
            ).fetchone()
        if row is None:
            return 0
        if isinstance(row[0], int) and 0 <= row[0] <= state.HIGHEST_NUMBER:
            return row[0]
        state.warn_once(
            f"{self._settings.describe()} says that the highest directory of slot {slot} has the "
            f"number {str(row[0])[:60]!r}, which is not one up to {state.HIGHEST_NUMBER:,}; it is "
            f"ignored"
        )
        return 0

    def add_sealed(self, keys: Sequence[str]) -> None:
        with self._transaction() as db:
            self._add_sealed(db, keys)

    def sealed(self, limit: int) -> list[str]:
        with self._transaction() as db:
            rows = db.execute(
                "SELECT CAST(key AS BLOB) FROM sealed WHERE pipeline = ? AND node = ? "
                "AND typeof(key) = 'text' ORDER BY key LIMIT ?",
                (*self._key, max(limit, 0)),
            ).fetchall()
        return [key.decode("utf-8", "surrogateescape") for (key,) in rows]

    def forget_sealed(self, keys: Sequence[str]) -> None:
        with self._transaction() as db:
            db.executemany(
                "DELETE FROM sealed WHERE pipeline = ? AND node = ? AND key = CAST(? AS TEXT)",
                [(*self._key, key.encode("utf-8", "surrogateescape")) for key in keys],
            )

    def snapshot(self) -> state.Snapshot:
        with self._transaction() as db:
            slots = db.execute(
                "SELECT slot, number, messages, size_bytes FROM slots "
                "WHERE pipeline = ? AND node = ? ORDER BY slot",
                self._key,
            ).fetchall()
            owners = db.execute(
                "SELECT slot, root_id FROM claims WHERE pipeline = ? AND node = ? "  # noqa: S608 - our own names
                f"AND {_IS_A_CLAIM} AND lapses_at > ?",
                (*self._key, time.time()),
            ).fetchall()
            (waiting,) = db.execute(
                "SELECT count(*) FROM sealed "
                "WHERE pipeline = ? AND node = ? AND typeof(key) = 'text'",
                self._key,
            ).fetchone()
            totals = db.execute(
                f"SELECT {', '.join(state.TOTALS)} FROM totals WHERE pipeline = ? AND node = ?",  # noqa: S608 - our own names
                self._key,
            ).fetchone()
        return state.Snapshot(
            tuple(state.SlotCount(*row) for row in slots if self._are_counts("slots", row)),
            {slot: root for slot, root in owners if self._are_counts("claims", [slot])},
            waiting,
            *(count if self._are_counts("totals", [count]) else 0 for count in totals or ()),
        )

    def notes(self) -> dict[str, state.Note]:
        with self._transaction() as db:
            rows = db.execute(
                "SELECT name, at, text FROM notes WHERE pipeline = ?", self._key[:1]
            ).fetchall()
        found = {}
        for name, at, text in rows:
            if type(at) is int and 0 < at <= state.HIGHEST_NOTE_TIME and isinstance(text, str):
                found[str(name)] = state.Note(at, text)
            else:
                state.warn_once(
                    f"{self._settings.describe()} holds {str(at)[:60]!r} in its table notes, "
                    f"which should be a time; it is ignored"
                )
        return found

    def put_note(self, name: str, note: state.Note) -> None:
        with self._transaction() as db:
            db.execute(
                "INSERT INTO notes VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "at = excluded.at, text = excluded.text "
                "WHERE typeof(at) <> 'integer' OR at < excluded.at OR at > ?",
                (self._key[0], name, note.at, note.text, state.HIGHEST_NOTE_TIME),
            )

    def _are_counts(self, table: str, values: Sequence[Any]) -> bool:
        nonsense = [one for one in values if type(one) is not int or not 0 <= one <= _MOST]
        if nonsense:
            state.warn_once(
                f"{self._settings.describe()} holds {str(nonsense[0])[:60]!r} in its table "
                f"{table}, which should be a count; it is ignored"
            )
        return not nonsense

    @contextmanager
    def _claiming(self, slots: Sequence[int], ttl_seconds: float) -> Iterator[sqlite3.Connection]:
        """A transaction that a claim may refuse. A claim that lasts too long is cut then."""
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
                        (now + ttl_seconds, *self._key, slot, now + state.LONGEST_CLAIM_SECONDS)
                        for slot in slots
                    ],
                )
            raise

    def _take_over(
        self, db: sqlite3.Connection, claim: state.Claim, ttl_seconds: float
    ) -> state.Claim:
        """Take one slot over, or raise; then the transaction undoes everything."""
        last = self._last(db, claim.slot)
        if last is not None and last.root_id == claim.root_id:
            missed = last.epoch >= claim.epoch and not _is_last(claim, last)
            if last.place != claim.place:
                if missed and self._live_holder(db, claim.slot) in (None, claim.root_id):
                    raise self._refusal(db, claim.slot, last.root_id, claim, outdated=True)
                if self._live_holder(db, claim.slot) == claim.root_id:
                    raise self._refusal(db, claim.slot, last.root_id, claim)
            if missed:
                claim = replace(claim, epoch=last.epoch + 1)
        self._take(db, [claim.slot], claim.root_id, ttl_seconds, [claim])
        self._note(db, claim)
        return claim

    def _last(self, db: sqlite3.Connection, slot: int) -> state.Claim | None:
        """The last take-over of a slot; None if there was none, or it is nonsense."""
        row = db.execute(
            "SELECT slot, root_id, place, epoch, nonce FROM epochs "
            "WHERE pipeline = ? AND node = ? AND slot = ? AND typeof(root_id) = 'text' "
            "AND typeof(place) = 'text' AND typeof(nonce) = 'text' "
            "AND typeof(epoch) = 'integer' AND epoch BETWEEN 1 AND ?",
            (*self._key, slot, state.HIGHEST_EPOCH),
        ).fetchone()
        return None if row is None else state.Claim(*row)

    def _note(self, db: sqlite3.Connection, claim: state.Claim) -> None:
        db.execute(
            "INSERT OR REPLACE INTO epochs (pipeline, node, slot, root_id, place, epoch, nonce) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*self._key, claim.slot, claim.root_id, claim.place, claim.epoch, claim.nonce),
        )

    def _live_holder(self, db: sqlite3.Connection, slot: int) -> str | None:
        row = db.execute(
            "SELECT root_id FROM claims WHERE pipeline = ? AND node = ? AND slot = ? "  # noqa: S608 - our own names
            f"AND {_IS_A_CLAIM} AND lapses_at > ?",
            (*self._key, slot, time.time()),
        ).fetchone()
        return None if row is None else str(row[0])

    def _refusal(
        self,
        db: sqlite3.Connection,
        slot: int,
        holder: str,
        claim: state.Claim | None,
        *,
        outdated: bool = False,
    ) -> SlotInUse | OutdatedCopy:
        last = self._last(db, slot)
        pipeline, node = self._key
        return state.refusal(
            slot,
            holder,
            last.place if last is not None and last.root_id == holder else "",
            claim,
            outdated=outdated,
            about=f"pipeline {pipeline} on node {node!r} in {self._settings.describe()}",
        )

    def _take(
        self,
        db: sqlite3.Connection,
        slots: Iterable[int],
        root_id: str,
        ttl_seconds: float,
        claims: Sequence[state.Claim] = (),
    ) -> None:
        """Claim or renew; if a slot is held by others, the transaction undoes everything."""
        now = time.time()
        for slot in slots:
            row = db.execute(
                "INSERT INTO claims VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "  # noqa: S608 - our own names
                "root_id = excluded.root_id, lapses_at = excluded.lapses_at "
                f"WHERE root_id = excluded.root_id OR NOT ({_IS_A_CLAIM}) OR lapses_at <= ? "
                "RETURNING slot",
                (*self._key, slot, root_id, now + ttl_seconds, now),
            ).fetchone()
            if row is None:
                (holder,) = db.execute(
                    "SELECT root_id FROM claims WHERE pipeline = ? AND node = ? AND slot = ?",
                    (*self._key, slot),
                ).fetchone()
                claim = next((one for one in claims if one.slot == slot), None)
                raise self._refusal(db, slot, holder, claim)

    def _add_sealed(self, db: sqlite3.Connection, keys: Iterable[str]) -> None:
        db.executemany(
            "INSERT OR IGNORE INTO sealed VALUES (?, ?, ?)", [(*self._key, key) for key in keys]
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, in the file that has the name now."""
        with self._turn:
            try:
                with self._opened().transaction() as db:
                    yield db
            except TROUBLE as error:
                self._disconnect()  # whatever its state, the next call starts with a new connection
                raise self._explained(error) from error

    def _opened(self) -> SqliteFile:
        if self._file is not None and not self._file.in_place:
            self._disconnect()
        if self._file is None:
            seconds = self._settings.busy_timeout_seconds
            self._file = SqliteFile(self._settings.path, _prepare, wait_seconds=seconds)
        return self._file

    def _disconnect(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _explained(self, error: BaseException) -> StateUnavailable | StateRefused:
        what = trouble(error)
        kind = StateUnavailable if what in ("busy", "disk") else StateRefused
        return kind(f"could not use {self._settings.describe()}: {error}", hint=_TO_DO[what])


def _is_last(claim: state.Claim, last: state.Claim | None) -> bool:
    """Whether nobody has taken the slot since."""
    if last is None:
        return True
    ours = (claim.root_id, claim.epoch, claim.nonce)
    return ours == (last.root_id, last.epoch, last.nonce)


def _prepare(db: sqlite3.Connection) -> None:
    db.text_factory = lambda raw: raw.decode("utf-8", "replace")
    db.execute("PRAGMA synchronous = NORMAL")
    db.executescript(_SCHEMA)
