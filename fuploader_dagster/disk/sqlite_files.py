"""SQLite files: the one way in which state, embedded queue, catalog and Dagster's history open one.

What must always hold:

- One process at a time makes a file, switches it to the write-ahead log and makes its tables: the
  one that holds the lock on `{name}.lock`. Without it, of two that open a new file at once one
  fails: SQLite refuses the switch with "database is locked" at once, whatever the busy timeout.
- Opening waits for other processes, and for programs that know nothing of the lock, at most about
  `wait_seconds`.
- `in_place` tells whether the open file still has its name. SQLite would go on writing into a file
  that nobody can reach any more.
- Reading needs no right to write, neither to the file nor to its folder (`open_to_read`).
- All that a damaged file makes SQLite or Python's module raise is in `TROUBLE`; `trouble` sorts it.
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
from fuploader_dagster.disk.own_modes import file_mode
from fuploader_dagster.disk.temporaries import is_at, lock_now

TROUBLE = (sqlite3.Error, OSError, UnicodeError, OverflowError)
"""UnicodeError: Python's module reads SQLite's own words as UTF-8, and they quote a damaged schema.
OverflowError: a value that was read is handed back and is no 64-bit integer any more."""
Kind = Literal["busy", "rights", "damaged", "disk"]
LOGS = ("-wal", "-shm")
_POLL_SECONDS = 0.01


def trouble(error: BaseException) -> Kind:
    """What one of `TROUBLE` means: somebody else is at it, rights, a damaged file, or the disk.

    Our statements are fixed, so what SQLite has against one of them it has against the file.
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
    """An open file. Statements commit by themselves outside of `transaction`."""

    def __init__(
        self, path: Path, prepare: Callable[[sqlite3.Connection], None], *, wait_seconds: float
    ) -> None:
        """Opens the file; makes it and its folder if they are missing. Raises one of `TROUBLE`.

        `prepare` makes the tables; what it finds made it leaves as it is. Threads may take turns.
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
        with suppress(sqlite3.Error):  # of a damaged file; there is nothing left to be done
            self.connection.close()

    @property
    def in_place(self) -> bool:
        """Whether the open file is the one of this name."""
        return self._identity == identity(self._path)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and nobody else writes meanwhile."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield self.connection
            self.connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # the first error says more; SQLite undoes it at closing
                self.connection.rollback()
            raise


@contextmanager
def being_made(path: Path, *, wait_seconds: float, lock: Path | None = None) -> Iterator[None]:
    """Within, no other process makes the file or its tables, and a file that is there has a
    write-ahead log: for programs that make their files themselves.

    `lock`: the file to lock, where many databases share one.
    """
    until = time.monotonic() + wait_seconds
    with _locked(path, until, lock):
        if path.exists():
            with closing(_connect(path, wait_seconds)) as db:
                _switch_to_log(db, until)
        yield


def remove_database(path: Path, *, wait_seconds: float) -> None:
    """Remove the file, whatever state it is in, while nobody makes it. A missing one is no error.

    The file goes before its log: a log without a file is known to be worth nothing.
    """
    with _locked(path, time.monotonic() + wait_seconds):
        remove_file(path)
        _remove_logs(path)


def open_to_read(path: Path, *, wait_seconds: float) -> sqlite3.Connection:
    """A connection that writes nothing, for somebody who may only read.

    SQLite needs a file of its own beside the log. Where it can make none, or would make one of this
    user's that the file's owner may not write, and no log has anything that the file lacks, the
    file is read as one that nobody writes.
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
    """Which file has this name now: device and inode, or None."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _connect(path: Path, wait_seconds: float, how: str = "mode=rwc") -> sqlite3.Connection:
    if how == "mode=rwc" and not path.exists():  # SQLite would make it readable by all
        with suppress(OSError):  # SQLite says what is wrong, or somebody else was quicker
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, file_mode(path.parent)))
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?{how}",
        uri=True,
        timeout=wait_seconds,
        isolation_level=None,
        check_same_thread=False,
    )
    db.execute("PRAGMA cell_size_check = ON")  # finds more damage, in pages that are read anyway
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
    """Within, no other process is here for this file, and a log is that of the file."""
    make_dirs(path.parent)
    descriptor = _lock(lock or path.with_name(f"{path.name}.lock"), until)
    try:
        if not path.exists():  # a log without its file belongs to a file that is gone
            _remove_logs(path)
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path, until: float) -> int:
    """A locked descriptor; closing it gives the lock back."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, file_mode(path.parent))
        except PermissionError:  # another user made it; locking needs no right to write
            descriptor = os.open(path, os.O_RDONLY)
        # None: a file system without locks, where all that is left is trying again
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
