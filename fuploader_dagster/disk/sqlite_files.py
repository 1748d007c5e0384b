"""SQLite files: how state store, embedded queue, catalog and Dagster's history open theirs.

What must always hold:

- One process at a time makes a file, switches it to the write-ahead log and makes its tables: the
  one that holds the lock on `{name}.lock`. Without the lock, if two processes open a new file at
  once, one fails: SQLite refuses the switch at once ("database is locked"), whatever its timeout.
- Opening waits at most about `wait_seconds`, for our processes and for programs that do not know
  the lock.
- `in_place` says whether the open file still has its name. SQLite would keep writing to a file that
  nobody can reach any more.
- Reading needs no right to write, neither to the file nor to its folder (`open_to_read`).
- `TROUBLE` is all that SQLite or Python's module raises on a damaged file; `trouble` sorts it.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Literal

from fuploader_dagster.disk.durable import make_dirs, remove_file
from fuploader_dagster.disk.own_files import closed_after, file_mode
from fuploader_dagster.disk.temporaries import is_at, lock_now

TROUBLE = (sqlite3.Error, OSError, UnicodeError, OverflowError)
"""UnicodeError: Python's module decodes SQLite's messages, which may quote a damaged schema.
OverflowError: a value from the file is passed back, and is not a 64-bit integer."""
Kind = Literal["busy", "rights", "damaged", "disk"]
LOGS = ("-wal", "-shm")
_POLL_SECONDS = 0.01


def trouble(error: BaseException) -> Kind:
    """What one of `TROUBLE` means: another process is busy, rights, a damaged file, or the disk.

    Our SQL is correct, so any other error comes from the file.
    """
    if isinstance(error, OSError):
        no_rights = (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError)
        return "rights" if isinstance(error, no_rights) else "disk"
    text = str(error)
    if isinstance(error, sqlite3.OperationalError):
        if "locked" in text:
            return "busy"
        if "readonly" in text or "unable to open" in text:
            return "rights"
        if "disk I/O error" in text or "disk is full" in text:
            return "disk"
    return "damaged"


class SqliteFile:
    """An open file. Outside of `transaction` each statement commits by itself."""

    def __init__(
        self, path: Path, prepare: Callable[[sqlite3.Connection], None], *, wait_seconds: float
    ) -> None:
        """Open the file; make it and its folder if they are missing. Raises one of `TROUBLE`.

        `prepare` makes the tables that are missing. Threads may take turns.
        """
        self._path = path
        until = time.monotonic() + wait_seconds
        with _locked(path, until):
            self.connection = _connect(path, wait_seconds)
            try:
                _switch_to_log(self.connection, until)
                prepare(self.connection)
                self._identity = identity(path)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Never raises, may be repeated."""
        with suppress(sqlite3.Error):  # from a damaged file; there is nothing left to do
            self.connection.close()

    @property
    def in_place(self) -> bool:
        """Whether the open file still has its name."""
        return self._identity == identity(self._path)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and nobody else writes in the meantime."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield self.connection
            self.connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # the first error says more; closing rolls back too
                self.connection.rollback()
            raise


@contextmanager
def being_made(path: Path, *, wait_seconds: float, lock: Path | None = None) -> Iterator[None]:
    """While this is held, no other process makes the file or its tables, and an existing file has a
    write-ahead log. For programs that make their files themselves.

    `lock`: the file to lock, if several databases share one.
    """
    until = time.monotonic() + wait_seconds
    with _locked(path, until, lock):
        if path.exists():
            with closing(_connect(path, wait_seconds)) as db:
                _switch_to_log(db, until)
        yield


def remove_database(path: Path, *, wait_seconds: float) -> None:
    """Remove the file, whatever state it is in, while nobody makes it. A missing one is no error.

    The file is removed before its log: a log without its file is known to be worthless.
    """
    with _locked(path, time.monotonic() + wait_seconds):
        remove_file(path)
        _remove_logs(path)


def open_to_read(path: Path, *, wait_seconds: float) -> sqlite3.Connection:
    """A connection that only reads, for a user who may only read.

    SQLite needs an index file beside the log. If it cannot make one, or would make one that the
    owner of the database cannot write, and no log has anything that the database lacks, the
    database is read as one that nobody writes.
    """
    log, index = (path.with_name(path.name + ending) for ending in LOGS)
    if not os.access(path, os.W_OK) and not (index.exists() or log.exists()):
        return _connect(path, wait_seconds, "mode=ro&immutable=1")
    db = _connect(path, wait_seconds, "mode=ro")
    try:
        db.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError as error:
        db.close()
        if trouble(error) != "rights" or (log.exists() and log.stat().st_size):
            raise
        db = _connect(path, wait_seconds, "mode=ro&immutable=1")
    except BaseException:
        db.close()
        raise
    return db


def identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file that has this name now, or None."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _connect(path: Path, wait_seconds: float, how: str = "mode=rwc") -> sqlite3.Connection:
    if how == "mode=rwc" and not path.exists():  # SQLite would make it readable by all
        with suppress(OSError):  # another process was quicker, or SQLite reports what is wrong
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, file_mode(path.parent)))
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?{how}",
        uri=True,
        timeout=wait_seconds,
        isolation_level=None,
        check_same_thread=False,
    )
    db.execute("PRAGMA cell_size_check = ON")  # finds more damage in pages that are read anyway
    return db


def _switch_to_log(db: sqlite3.Connection, until: float) -> None:
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            if trouble(error) != "busy" or time.monotonic() >= until:
                raise
        time.sleep(_POLL_SECONDS)


@contextmanager
def _locked(path: Path, until: float, lock: Path | None = None) -> Iterator[None]:
    """While this is held, no other process is here for this file, and any log belongs to it."""
    make_dirs(path.parent)
    with closed_after(_lock(lock or path.with_name(f"{path.name}.lock"), until)):
        if not path.exists():  # a log without its file belongs to one that is gone
            _remove_logs(path)
        yield


def _lock(path: Path, until: float) -> int:
    """A locked descriptor; closing it releases the lock."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, file_mode(path.parent))
        except PermissionError:  # another user made it; locking needs no right to write
            descriptor = os.open(path, os.O_RDONLY)
        # None: a file system without locks, where we can only try again
        locked = lock_now(descriptor, fcntl.LOCK_EX) is not False
        if locked and is_at(descriptor, path):
            return descriptor
        os.close(descriptor)
        if time.monotonic() >= until:
            raise sqlite3.OperationalError(f"database is locked: another process holds {path}")
        if not locked:
            time.sleep(_POLL_SECONDS)


def _remove_logs(path: Path) -> None:
    for ending in LOGS:
        path.with_name(path.name + ending).unlink(missing_ok=True)
