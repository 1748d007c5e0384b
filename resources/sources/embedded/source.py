"""A durable queue in a folder: for a machine without a broker.

What must always hold:

- A published message is on the disk when `publish` returns (SQLite's log, synced per batch).
- A message is delivered to one live consumer at a time, in the order of publishing. Only `settle`
  removes it, in one synced transaction per batch.
- A message is delivered as intact only if it is what was published: a damaged row comes with
  `damage` (`rows`). Nothing is removed that was not delivered.
- The messages of a dead or closed consumer are delivered again, before everything newer, and marked
  as redelivered. A consumer is alive while it holds its file lock, which kill -9 releases.

Format: `queue.sqlite` in the folder (tables: `database`) and `consumers/{id}.lock`, one file per
consumer. Taking messages writes one row about a range of ids and changes no message; that row need
not survive a power cut, because its consumer does not either.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.source import (
    CommittedBatch,
    Message,
    MessagePublisher,
    MessageSource,
    SourceSettings,
)
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.errors import ConfigError, SlotInUse, SourceRefused, SourceUnavailable
from fuploader_dagster.resources.sources.embedded import database
from fuploader_dagster.resources.sources.embedded.rows import Row, described, message_of, row_of

log = logging.getLogger(__name__)

CONSUMERS = "consumers"
_CONSUMER = re.compile(rb"[0-9a-f]{32}")
_BATCH_MESSAGES = 1_000
_BATCH_BYTES = 4 * 1024 * 1024
_LARGEST_ID = 2**63 - 1
_POLL_SECONDS = 0.02
_LOOK_FOR_THE_DEAD_EVERY_SECONDS = 1.0
_OLD_LOCK_SECONDS = 3_600


class EmbeddedQueue(SourceSettings):
    """A queue in a folder on this machine's own disk. Several processes may use it at once."""

    path: Path
    """Folder of the queue. It is created if it is missing."""
    busy_timeout_seconds: float = Field(default=30, gt=0, le=300)
    """Longest time that one process waits while another writes."""

    def source(self, *, prefetch: int) -> EmbeddedSource:
        if prefetch < 1:
            raise ConfigError(f"prefetch is {prefetch}; it must be at least 1")
        return EmbeddedSource(self, prefetch)

    def publisher(self) -> EmbeddedPublisher:
        return EmbeddedPublisher(self)

    def describe(self) -> str:
        return f"embedded queue in {self.path}"

    def examine(self) -> Iterator[Diagnosis]:
        with closing(database.QueueDatabase(self)) as file:
            file.open()  # can it be made? `backlog` of a queue without a file makes none
        yield from super().examine()


class _Run(NamedTuple):
    """Messages taken together, with no other consumer's between them: one row of `held`."""

    first_number: int
    """The delivery number of the first."""
    ids: list[int]


class EmbeddedSource(MessageSource):
    """One consumer."""

    def __init__(self, settings: EmbeddedQueue, prefetch: int) -> None:
        self._settings = settings
        self._database = database.QueueDatabase(settings)
        self._prefetch = self._most_in_hand = prefetch
        self._consumer = ""
        self._alive: FileLock | None = None
        self._runs: deque[_Run] = deque()
        self._unsettled = 0
        self._last_number = 0
        """The last delivery number that was given."""
        self._start = 0
        """The same when the source was opened: up to it nothing can be settled any more."""
        self._looked_for_the_dead = 0.0

    def open(self) -> None:
        self.close()
        self._database.open()
        self._consumer = uuid.uuid4().hex
        lock = FileLock(self._lock_path(self._consumer))
        try:
            lock.acquire()
            self._remove_old_locks()
        except OSError as error:
            raise database.explained(self._settings, error) from error
        self._alive = lock
        self._start = self._last_number
        self._looked_for_the_dead = 0.0

    def receive(self, limit: int, timeout_seconds: float) -> list[Message]:
        """As the contract says; with limit 0 it only waits."""
        if self._alive is None:
            raise SourceUnavailable(f"{self._settings.describe()} is not open")
        room = min(limit, self._most_in_hand - self._unsettled)
        if limit and room <= 0:
            return []
        deadline = time.monotonic() + timeout_seconds
        empty_at: int | None = None
        with self._closing_on_error():
            while True:
                version = self._database.version()
                if self._release_the_dead():
                    empty_at = None
                if room > 0 and version != empty_at:
                    messages = self._take(room)
                    if messages:
                        return messages
                    empty_at = version  # until another process writes, there is nothing new
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return []
                time.sleep(min(_POLL_SECONDS, remaining))

    def limit_in_hand(self, messages: int) -> None:
        self._most_in_hand = min(messages, self._prefetch)

    def settle(self, batch: CommittedBatch) -> None:
        if self._alive is None or batch.last.delivery <= self._start:
            self.close()
            raise SourceUnavailable(
                f"{self._settings.describe()} was closed after these messages were received",
                hint="nothing is lost: they will be delivered again",
            )
        covered = _covered(self._runs, batch.last.delivery)
        with self._closing_on_error(), self._database.transaction(durable=True) as db:
            for run, count in covered:
                self._forget(db, run, count)
        for run, count in covered:
            self._unsettled -= count
            self._runs.popleft()
            if count < len(run.ids):
                self._runs.appendleft(_Run(run.first_number + count, run.ids[count:]))

    def close(self) -> None:
        lock, self._alive = self._alive, None
        self._runs.clear()
        self._unsettled = 0
        if lock is not None:
            with suppress(SourceUnavailable, SourceRefused, OSError):  # the next consumer does it
                self._give_back(self._consumer.encode())
                lock.path.unlink(missing_ok=True)
            lock.release()
        self._database.close()

    def describe(self, message: Message) -> dict[str, Any]:
        return described(message)

    def _take(self, room: int) -> list[Message]:
        """Take the oldest messages that nobody holds."""
        taken: list[Message] = []
        runs: list[_Run] = []
        taken_bytes = 0
        with self._database.transaction(durable=False) as db:
            held = db.execute("SELECT first, last FROM held ORDER BY first").fetchall()
            for first, last in _gaps(held):
                rows, taken_bytes = _read(db, (first, last), room - len(taken), taken_bytes)
                if rows:
                    number = self._last_number + len(taken) + 1
                    runs.append(_Run(number, _rising([row[0] for row in rows], first, last)))
                    taken += [
                        message_of(row[1:], number + offset) for offset, row in enumerate(rows)
                    ]
                if len(taken) == room or taken_bytes >= _BATCH_BYTES:
                    break
            db.executemany(
                "INSERT INTO held VALUES (?, ?, ?, ?)",
                [(self._consumer, run.ids[0], run.ids[-1], len(run.ids)) for run in runs],
            )
            if not taken and not held:
                self._miss_none(db)
        self._runs += runs
        self._unsettled += len(taken)
        self._last_number += len(taken)
        return taken

    def _miss_none(self, db: sqlite3.Connection) -> None:
        """No row is left, so the count must be 0. If damage hid messages, log it once."""
        waiting = _waiting(db)
        if waiting == 0:
            return
        log.error(
            "%s should hold %s messages but holds none: its file was damaged, or another "
            "program removed them. Unless you know who did, save what the file still holds "
            '(docs/operations.md, "The file of an embedded queue is damaged")',
            self._settings.describe(),
            waiting,
        )
        db.execute("UPDATE waiting SET messages = 0")

    def _forget(self, db: sqlite3.Connection, run: _Run, count: int) -> None:
        """Remove the first messages of a run, and their range in `held`."""
        if count == len(run.ids):
            held = db.execute(
                "DELETE FROM held WHERE first = ? AND consumer = ?", (run.ids[0], self._consumer)
            )
        else:
            held = db.execute(
                "UPDATE held SET first = ?, messages = ? WHERE first = ? AND consumer = ?",
                (run.ids[count], len(run.ids) - count, run.ids[0], self._consumer),
            )
        if held.rowcount != 1:
            raise SourceUnavailable(
                f"{self._settings.describe()} gave our messages to another consumer",
                hint=f"did something remove files in its folder {CONSUMERS}?",
            )
        removed = db.execute(
            "DELETE FROM messages WHERE id BETWEEN ? AND ?", (run.ids[0], run.ids[count - 1])
        )
        if removed.rowcount != count:  # never remove what was not delivered
            raise sqlite3.DatabaseError(f"{count} rows were read, {removed.rowcount} are there")
        db.execute("UPDATE waiting SET messages = messages - ?", (count,))

    def _release_the_dead(self) -> bool:
        """Once a second, give back what dead consumers held."""
        now = time.monotonic()
        if now - self._looked_for_the_dead < _LOOK_FOR_THE_DEAD_EVERY_SECONDS:
            return False
        self._looked_for_the_dead = now
        released = False
        for name in self._database.consumers():
            if _CONSUMER.fullmatch(name) is None:  # damage: not a name for a file
                log.warning("%s: removing a damaged consumer's name", self._settings.describe())
                self._give_back(name)
                released = True
                continue
            consumer = name.decode()
            lock = FileLock(self._lock_path(consumer))
            if consumer == self._consumer or not _acquired(lock):
                continue
            self._give_back(name)
            lock.path.unlink(missing_ok=True)
            lock.release()
            released = True
        return released

    def _give_back(self, consumer: bytes) -> None:
        with self._database.transaction(durable=False) as db:
            db.execute(
                "UPDATE messages SET deliveries = deliveries + 1 WHERE id IN (SELECT m.id "
                "FROM held JOIN messages m ON m.id BETWEEN held.first AND held.last "
                "WHERE CAST(held.consumer AS BLOB) = ?)",
                (consumer,),
            )
            db.execute("DELETE FROM held WHERE CAST(consumer AS BLOB) = ?", (consumer,))

    def _remove_old_locks(self) -> None:
        """Remove the files of consumers that died holding nothing. New ones may be starting."""
        for path in (self._settings.path / CONSUMERS).glob("*.lock"):
            if path.stat().st_mtime > time.time() - _OLD_LOCK_SECONDS:
                continue
            lock = FileLock(path)
            holders = self._database.consumers()
            if path.stem.encode() not in holders and _acquired(lock):
                path.unlink(missing_ok=True)
                lock.release()

    def _lock_path(self, consumer: str) -> Path:
        return self._settings.path / CONSUMERS / f"{consumer}.lock"

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except (SourceUnavailable, SourceRefused):
            self.close()
            raise


class EmbeddedPublisher(MessagePublisher):
    """One transaction, and so one sync, per batch of messages."""

    def __init__(self, settings: EmbeddedQueue) -> None:
        self._database = database.QueueDatabase(settings)

    def publish(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        published = 0
        for rows in _batches(row_of(body, headers) for body, headers in messages):
            with self._database.transaction(durable=True) as db:
                db.executemany(
                    "INSERT INTO messages (body, message_id, headers, digest) "
                    "VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), ?)",
                    rows,
                )
                db.execute("UPDATE waiting SET messages = messages + ?", (len(rows),))
            published += len(rows)
        return published

    def backlog(self) -> int:
        """Looking makes no file: a queue without one is empty."""
        if not self._database.exists():
            return 0
        with self._database.transaction(durable=False) as db:
            (held,) = db.execute("SELECT total(messages) FROM held").fetchone()
            return max(0, _waiting(db) - int(held))

    def close(self) -> None:
        self._database.close()


def _read(
    db: sqlite3.Connection, ids: tuple[int, int], limit: int, bytes_before: int
) -> tuple[list[tuple[Any, ...]], int]:
    """The first rows of a range, and the bytes taken so far: 500 large ones would fill memory."""
    rows = []
    for row in db.execute(database.READ_ROWS, (*ids, limit)):
        rows.append(row)
        bytes_before += len(row[1]) if type(row[1]) is bytes else 0
        if bytes_before >= _BATCH_BYTES:
            break
    return rows, bytes_before


def _waiting(db: sqlite3.Connection) -> int:
    """The number of messages that the queue counts, including held ones."""
    row = db.execute("SELECT messages FROM waiting").fetchone()
    if row is None or type(row[0]) is not int:
        raise sqlite3.DatabaseError("the count of messages is not a number")
    return int(row[0])


def _gaps(held: Iterable[tuple[Any, Any]]) -> Iterator[tuple[int, int]]:
    """Ranges of ids that no consumer holds, between ranges that are held."""
    free_from = 1
    for first, last in held:
        if type(first) is not int or type(last) is not int:
            raise sqlite3.DatabaseError("a range of held messages is not two numbers")
        if free_from < first:
            yield free_from, first - 1
        free_from = max(free_from, last + 1)
    if free_from <= _LARGEST_ID:
        yield free_from, _LARGEST_ID


def _rising(ids: list[int], first: int, last: int) -> list[int]:
    """The ids of the rows; a damaged table returns a row twice, or out of order: that raises."""
    if ids[0] < first or ids[-1] > last or any(a >= b for a, b in pairwise(ids)):
        raise sqlite3.DatabaseError("the rows of messages are out of order")
    return ids


def _covered(runs: Iterable[_Run], last_number: int) -> list[tuple[_Run, int]]:
    """The runs up to a delivery number, each with the number of its messages that it covers."""
    counts = ((run, min(len(run.ids), last_number - run.first_number + 1)) for run in runs)
    return [(run, count) for run, count in counts if count > 0]


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire()
    except SlotInUse:
        return False
    return True


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Cut into batches by count and by bytes."""
    batch: list[Row] = []
    size_bytes = 0
    for row in rows:
        batch.append(row)
        size_bytes += len(row[0])
        if len(batch) >= _BATCH_MESSAGES or size_bytes >= _BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch
