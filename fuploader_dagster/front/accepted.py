"""What was accepted: the idempotency keys and item ids that this node remembers.

What must always hold: an id is noted before its message is published, and confirmed after. So of
two requests with one id, in whichever process, at most one publishes. The file may be lost: then a
message that is sent again is published again.

Format: `accepted.sqlite` in the pipeline's folder. `key` and `content` are digests of 16 bytes
(`items`); `since`: seconds since 1970 when a request began, 0 once it is confirmed. The newest rows
stay. Nothing is synced: a power cut forgets at most the last ones.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from fuploader_dagster.disk.sqlite_files import TROUBLE, SqliteFile, remove_database, trouble
from fuploader_dagster.errors import DiskFailed

log = logging.getLogger(__name__)

State = Literal["new", "known", "other", "busy"]
"""`other`: known with another content. `busy`: another request is at it."""
WAIT_SECONDS = 5.0
_TRIM_EVERY = 1000


class Accepted:
    """Used by one thread at a time."""

    def __init__(self, path: Path, most: int, *, given_up_seconds: float) -> None:
        """`given_up_seconds`: a request that began longer ago and was never confirmed is dead."""
        self._path = path
        self._most = most
        self._given_up_seconds = given_up_seconds
        self._file: SqliteFile | None = None
        self._untrimmed = _TRIM_EVERY

    def claim(self, contents: Mapping[bytes, bytes]) -> dict[bytes, State]:
        """Note those keys that are new, all at once, and say what each is."""
        now = int(time.time())
        states: dict[bytes, State] = {}
        with self._trying(), self._opened().transaction() as db:
            for key, content in contents.items():
                row = db.execute("SELECT content, since FROM ids WHERE key = ?", (key,)).fetchone()
                if row is None:
                    states[key] = "new"
                elif row[0] != content:
                    states[key] = "other"
                elif row[1] == 0:
                    states[key] = "known"
                else:
                    states[key] = "busy" if now - row[1] < self._given_up_seconds else "new"
            db.executemany(
                "INSERT OR REPLACE INTO ids (key, content, since) VALUES (?, ?, ?)",
                [(key, contents[key], now) for key, state in states.items() if state == "new"],
            )
            self._trim(db, len(contents))
        return states

    def confirm(self, keys: Sequence[bytes]) -> None:
        """They are in the queue."""
        with self._trying(), self._opened().transaction() as db:
            db.executemany("UPDATE ids SET since = 0 WHERE key = ?", [(key,) for key in keys])

    def forget(self, keys: Sequence[bytes]) -> None:
        """They are not in the queue, as far as anybody knows."""
        with self._trying(), self._opened().transaction() as db:
            db.executemany("DELETE FROM ids WHERE key = ? AND since > 0", [(key,) for key in keys])

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _trim(self, db: sqlite3.Connection, more: int) -> None:
        self._untrimmed += more
        if self._untrimmed >= _TRIM_EVERY:
            self._untrimmed = 0
            db.execute(
                "DELETE FROM ids WHERE number <= (SELECT max(number) FROM ids) - ?", (self._most,)
            )

    def _opened(self) -> SqliteFile:
        if self._file is not None and not self._file.in_place:
            self.close()
        if self._file is None:
            self._file = SqliteFile(self._path, _prepare, wait_seconds=WAIT_SECONDS)
        return self._file

    def _trying(self) -> _Trying:
        return _Trying(self)

    def failed(self, error: BaseException) -> DiskFailed:
        """Close the file, and remove it if it is damaged: it is only a memory."""
        self.close()
        if trouble(error) == "damaged":
            log.warning("%s is damaged and is begun again: %s", self._path, error)
            with suppress(*TROUBLE):
                remove_database(self._path, wait_seconds=WAIT_SECONDS)
        return DiskFailed(
            f"cannot remember in {self._path} what is accepted: {error}",
            hint="has the disk space left, and may this user write there? Try again",
        )


class _Trying:
    def __init__(self, accepted: Accepted) -> None:
        self._accepted = accepted

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, TROUBLE):
            raise self._accepted.failed(error) from error


def _prepare(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA synchronous = OFF")
    db.execute(
        "CREATE TABLE IF NOT EXISTS ids (number INTEGER PRIMARY KEY AUTOINCREMENT, "
        "key BLOB NOT NULL UNIQUE, content BLOB NOT NULL, since INTEGER NOT NULL)"
    )
