"""Uses private names of Dagster: its SQLite storage, with engines and connections that stay open.

Dagster makes an engine and a connection for each thing that it reads or writes, and closes both
again. So SQLAlchemy compiles each statement every time, and SQLite's last connection writes its log
back, syncs twice and removes the log every time: a slot's five events cost 46 syncs. Each of them
delays the journal of the file system to which the drain syncs
(docs/decisions/0008-dagsters-history.md).

What must always hold: a killed process loses nothing, as with Dagster's own. A power cut may lose
the last moments of the history, never its files. Nothing depends on those moments: slots, archives
and receipts are found again from the disk.

When several processes start at once, one makes the files and the others wait for it
(`sqlite_files`); Dagster's own code fails then. A file that was removed or replaced is not written
to any more.

How: each process keeps its engines, with their connections; `synchronous = normal`, with which a
commit does not wait for the disk; and events that come together are stored together.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS, EVENT_TYPE_TO_PIPELINE_RUN_STATUS
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log.sqlite.sqlite_event_log import (
    INDEX_SHARD_NAME,
    SqliteEventLogStorage,
    SqliteEventLogStorageWatchdog,
)
from dagster._core.storage.runs.sqlite.sqlite_run_storage import SqliteRunStorage
from dagster._core.storage.schedules.sqlite.sqlite_schedule_storage import SqliteScheduleStorage
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS, create_db_conn_string
from dagster._core.storage.sqlite_storage import (
    DagsterSqliteStorage,
    _event_logs_directory,
    _runs_directory,
    _schedule_directory,
)
from dagster._serdes import ConfigurableClassData
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import QueuePool
from watchdog.events import FileSystemEvent
from watchdog.observers import Observer

from fuploader_dagster.disk.sqlite_files import being_made, identity

MOST_KEPT_OPEN = 16
"""Databases per process: each run has one of its own, and a webserver reads many."""
_WAIT_SECONDS = float(SQLITE_BUSY_TIMEOUT_SECONDS)
EVENTS_TOGETHER = 1000
"""Maximum number of events of one step that are stored in one transaction."""


class SqliteHistory(DagsterSqliteStorage):
    """Dagster's SQLite storage, with `base_dir` as there."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        runs, events = _runs_directory(base_dir), _event_logs_directory(base_dir)
        addresses = {
            "runs": create_db_conn_string(runs, "runs"),
            "events": create_db_conn_string(events, INDEX_SHARD_NAME),
            "schedules": create_db_conn_string(_schedule_directory(base_dir), "schedules"),
        }
        with ExitStack() as alone:
            for address in addresses.values():
                alone.enter_context(being_made(_path(address), wait_seconds=_WAIT_SECONDS))
            # Dagster would read all its migrations for each, a third of a second, to do nothing.
            if not all(_is_made(address) for address in addresses.values()):
                DagsterSqliteStorage.from_local(base_dir)
        self.base_dir = base_dir
        self._run_storage = _Runs(addresses["runs"])
        self._event_log_storage = _Events(events)
        self._schedule_storage = _Schedules(addresses["schedules"])
        self._inst_data = inst_data
        # Dagster's own switch: without it, events that come together are handed over one by one.
        os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", str(EVENTS_TOGETHER))
        super(DagsterSqliteStorage, self).__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Any
    ) -> "SqliteHistory":
        return cls.from_local(inst_data=inst_data, **config_value)


class _Kept(NamedTuple):
    engine: Engine
    file: tuple[int, int] | None
    """The file that it was made for; None if there was none."""


class _Engines:
    """Engines of this process, by the address of their database; keeps those used last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, address: str) -> Engine:
        """The engine of the file that has this name now."""
        with self._lock:
            kept, file = self._kept.pop(address, None), identity(_path(address))
            if kept is not None and kept.file != file:
                kept.engine.dispose()
                kept = None
            kept = kept or _Kept(_new_engine(address), file)
            self._kept[address] = kept
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)[1].engine.dispose()  # in use: when given back
            return kept.engine

    def forget(self, addresses: Iterable[str]) -> None:
        """Close these databases: their files are about to be removed."""
        with self._lock:
            for address in addresses:
                if kept := self._kept.pop(address, None):
                    kept.engine.dispose()


def _new_engine(address: str) -> Engine:
    engine = create_engine(
        address,
        poolclass=QueuePool,
        max_overflow=-1,
        connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.execute("pragma synchronous = normal")

    return engine


_engines = _Engines(MOST_KEPT_OPEN)


class _OfOneDatabase:
    _conn_string: str

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with _engines.of(self._conn_string).begin() as connection:
            yield connection


class _Runs(_OfOneDatabase, SqliteRunStorage):
    """Dagster's, with a kept engine."""


class _Schedules(_OfOneDatabase, SqliteScheduleStorage):
    """Dagster's, with a kept engine."""


class _Events(SqliteEventLogStorage):
    _known: ClassVar[set[str]] = set()
    """Tables and columns that exist: Dagster asks for each event."""
    _obs: Any = None

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        address = self.conn_string_for_shard(shard)
        with self._db_lock:
            path, lock = _path(address), Path(self._base_dir) / "making.lock"
            if shard not in self._initialized_dbs or not path.exists():
                if not _is_made(address):
                    with being_made(path, wait_seconds=_WAIT_SECONDS, lock=lock):
                        if not _is_made(address):
                            self._initdb(_engines.of(address))
                self._initialized_dbs.add(shard)
            with _engines.of(address).begin() as connection:
                yield connection

    def has_table(self, table_name: str) -> bool:
        return self._knows(table_name, lambda: super(_Events, self).has_table(table_name))

    def _has_asset_key_col_on_connection(self, conn: Connection, column_name: str) -> bool:
        look = super()._has_asset_key_col_on_connection
        return self._knows(f"asset_keys.{column_name}", lambda: look(conn, column_name))

    def _knows(self, what: str, look: Callable[[], bool]) -> bool:
        key = f"{self._base_dir} {what}"
        if key not in self._known and look():
            self._known.add(key)
        return key in self._known

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """What `store_event` does with each, in one transaction for the run and one for the index.

        What an asset's latest event is gets written once, for the last event of each kind.
        """
        if len({one.run_id for one in events}) != 1 or not all(map(_is_of_asset, events)):
            return super().store_event_batch(events)
        inserts = [self.prepare_insert_event(one) for one in events]
        with self.run_connection(events[0].run_id) as connection:
            for insert in inserts:
                connection.execute(insert)
        latest: dict[object, tuple[EventLogEntry, int]] = {}
        with self.index_transaction() as connection:
            numbers = []
            for insert, one in zip(inserts, events, strict=True):
                number = connection.execute(insert).lastrowid
                numbers.append(number)
                latest[one.dagster_event_type, one.get_dagster_event().asset_key] = one, number
            self._store_asset_event_tags(connection, events, numbers)
            for one, number in latest.values():
                self._store_asset_event(connection, one, number)
        return None

    def watch(self, run_id: str, cursor: str | None, callback: Callable[..., Any]) -> None:
        if self._obs is None:
            self._obs = Observer()
            self._obs.start()
        watchdog = _Watchdog(self, run_id, callback, cursor)
        schedule = self._obs.schedule(watchdog, self._base_dir, recursive=True)
        self._watchers[run_id][callback] = watchdog, schedule

    def wipe(self) -> None:
        _engines.forget(map(self.conn_string_for_shard, self.get_all_run_ids()))
        super().wipe()


class _Watchdog(SqliteEventLogStorageWatchdog):
    """Tells a page of a run what is new. While a connection is open, that is in SQLite's log beside
    the database."""

    @property
    def patterns(self) -> list[str]:
        return [self._log_path, f"{self._log_path}-wal"]

    def on_modified(self, event: FileSystemEvent) -> None:
        self._process_log()


def _is_of_asset(one: EventLogEntry) -> bool:
    kind = one.dagster_event_type
    return (
        kind in ASSET_EVENTS
        and kind not in ASSET_CHECK_EVENTS
        and kind not in EVENT_TYPE_TO_PIPELINE_RUN_STATUS
    )


def _is_made(address: str) -> bool:
    """Whether a database has all its tables: their version is written last."""
    if not _path(address).exists():
        return False
    with _engines.of(address).connect() as connection:
        try:
            return bool(connection.execute(text("select 1 from alembic_version")).first())
        except OperationalError as error:
            if "no such table" not in str(error):
                raise
            return False


def _path(address: str) -> Path:
    return Path(address.removeprefix("sqlite:///"))
