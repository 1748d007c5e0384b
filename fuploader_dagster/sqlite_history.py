"""Dagster's history in SQLite, with a seventh of the syncs. Chosen in dagster.yaml:

    storage:
      custom:
        module: fuploader_dagster.sqlite_history
        class: SqliteHistory
        config: {base_dir: .dagster/storage}

It is Dagster's own storage, with the same files: either reads what the other wrote. Dagster opens a
connection for each event and closes it again. The last one that closes a SQLite database writes its
log back, syncs twice and removes the log, so a slot's five events cost 46 syncs, and each makes the
journal of the file system wait that the drain syncs to (docs/decisions/0008-dagsters-history.md).

What must always hold: a killed process loses nothing, as before. A power cut may lose the last
moments of the history, never its files: nothing rests on it, because slots, archives and receipts
are found again from the disk.

How: a connection that stays open in each process for each database, so that no other is the last;
and `synchronous = normal`, with which a commit does not wait for the disk. Only databases below
`base_dir` are meant; other engines of the process are left alone.
"""

import sqlite3
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData
from sqlalchemy import event
from sqlalchemy.engine import Engine

MOST_KEPT_OPEN = 16
"""Databases in a process: each run has one of its own, and a webserver reads many."""


class SqliteHistory(DagsterSqliteStorage):
    """Dagster's SQLite storage, with `base_dir` as there."""

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Any
    ) -> "SqliteHistory":
        _quick.below(Path(config_value["base_dir"]))
        return cls.from_local(inst_data=inst_data, **config_value)


class _QuickConnections:
    """What happens at each connection of this process to a database below certain folders."""

    def __init__(self) -> None:
        self._folders: set[Path] = set()
        self._kept: OrderedDict[Path, sqlite3.Connection] = OrderedDict()
        self._lock = threading.Lock()

    def below(self, folder: Path) -> None:
        with self._lock:
            if not self._folders:
                event.listen(Engine, "connect", self._connected)
            self._folders.add(folder.resolve())

    def _connected(self, connection: object, _: object) -> None:
        if not isinstance(connection, sqlite3.Connection):
            return
        ((_, _, name),) = connection.execute("pragma database_list").fetchall()
        if not name or not self._folders & set(Path(name).resolve().parents):
            return
        connection.execute("pragma synchronous = normal")
        self._keep(Path(name))

    def _keep(self, path: Path) -> None:
        with self._lock:
            kept = self._kept.pop(path, None)
            if kept is None:
                kept = sqlite3.connect(path, check_same_thread=False, timeout=0)
            self._kept[path] = kept
            try:
                # Reading takes part in the log. All rows, or the log could never be emptied.
                kept.execute("select count(*) from sqlite_master").fetchall()
            except sqlite3.OperationalError:  # locked, as it is being made: the next one keeps it
                self._kept.pop(path).close()
            while len(self._kept) > MOST_KEPT_OPEN:
                self._kept.popitem(last=False)[1].close()


_quick = _QuickConnections()
