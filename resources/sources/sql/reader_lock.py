"""Locks that end with their holder: the server's, or a file beside a SQLite database.

A lock says who works; it proves nothing. A server may give it to another process while the former
holder, whose connection was cut, does not know that yet. So what is written carries a proof of its
own: an epoch (`position`), or an owner (`claims`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.errors import SlotInUse
from fuploader_dagster.resources.sql.connection import Database, Transaction


class ReaderLock:
    """One name. On a server it is held by the connection of a `Database`, which must not be
    replaced by another one without an error."""

    def __init__(self, database: Database, name: str, file: Path | None) -> None:
        """`file`: where there is no server, a lock is a file beside this one."""
        self._where, self._name = database.where, name
        self._file: FileLock | None = None
        if file is not None:
            short = hashlib.sha256(name.encode()).hexdigest()[:16]
            self._file = FileLock(file.with_name(f"{file.name}.fuploader-{short}.lock"))

    def taken(self, transaction: Transaction) -> bool:
        """Take it, unless another process has it."""
        if self._file is None:
            return transaction.run(
                lambda connection: transaction.dialect.try_lock(connection, self._name),
                f"could not take a lock at {self._where}",
            )
        try:
            self._file.acquire()
        except SlotInUse:
            return False
        return True

    def release(self, transaction: Transaction | None = None) -> None:
        """Without a transaction: its connection is closed soon, which releases it."""
        if self._file is not None:
            self._file.release()
        elif transaction is not None:
            transaction.run(
                lambda connection: transaction.dialect.unlock(connection, self._name),
                f"could not release a lock at {self._where}",
            )

    def remove(self) -> None:
        """Of a lock that is held and never needed again: remove its file."""
        if self._file is not None:
            self._file.path.unlink(missing_ok=True)
            self._file.release()
