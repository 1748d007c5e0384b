"""Uses private names of Dagster: its Postgres storage, with connections that stay open.

Dagster's own (`dagster-postgres`) connects anew for each statement, looks up with each event which
tables exist, and stores most events one by one
(docs/decisions/0020-dagsters-history-in-postgres.md).

What must always hold: what a statement stored is stored as durably as with Dagster's own, and
either reads what the other wrote. A connection that broke is replaced before anything is sent on
it, so a server that was away is used again as soon as it answers, by every process. Nothing is sent
a second time: whether a statement arrived on a connection that broke meanwhile is not known. A
network that swallows packets ends a wait after half a minute (`_PATIENCE`), not after Linux's
quarter of an hour.

How: each process has one engine for a database, which all its instances and all three storages
share; the events of a step are stored together, with one statement for each table; what exists is
asked once in each process; one process at a time makes the tables.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._serdes import ConfigurableClassData
from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from dagster_postgres.utils import (
    create_pg_connection,
    create_pg_engine,
    get_token_provider_from_config,
    pg_url_from_config,
)
from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.pool import QueuePool

DRIVER = "postgresql+psycopg2"
"""The one that `dagster-postgres` is written for. SQLAlchemy 2.1 takes psycopg 3 where an address
names none."""
KEPT_CONNECTIONS = 4
"""Maximum number of idle connections that a process keeps. It never waits for one: it opens as many
as it needs, as with Dagster's own."""
EVENTS_TOGETHER = 1000
"""Maximum number of events of one step that are stored in one transaction."""
_PATIENCE = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""For libpq: seconds, and milliseconds of the last. What the address says itself goes first."""
_INSERT = SqlEventLogStorageTable.insert().returning(
    SqlEventLogStorageTable.c.id, sort_by_parameter_order=True
)
_MAIN_TABLES = ("runs", "instance_info", "event_logs", "jobs", "alembic_version")
"""Dagster's own looks for these. It makes those of `jobs` last."""
_MAKING = 0x66757031
"""The advisory lock of whoever makes tables: any number that nobody else takes."""


class PostgresHistory(DagsterPostgresStorage):
    """Dagster's Postgres storage, with the settings of `storage: postgres`."""

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: Any = None,
    ) -> None:
        address = with_driver(postgres_url)
        if should_autocreate_tables:
            engine = _engines.of(address, token_provider)
            _engines.knows(
                address,
                "all tables",
                lambda: _has_tables(engine) or _make_tables(engine, address, token_provider),
            )
        self.postgres_url = address
        self.should_autocreate_tables = should_autocreate_tables
        self._inst_data = inst_data
        made = (address, False, inst_data, token_provider)
        self._run_storage = _Runs(*made)
        self._event_log_storage = _Events(*made)
        self._schedule_storage = _Schedules(*made)
        # Dagster's own switch: without it, events that come together are handed over one by one.
        os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", str(EVENTS_TOGETHER))
        super(DagsterPostgresStorage, self).__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> PostgresHistory:
        return cls(
            pg_url_from_config(config_value),
            config_value.get("should_autocreate_tables", True),
            inst_data,
            get_token_provider_from_config(config_value),
        )


def with_driver(address: str) -> str:
    """The address with the driver that `dagster-postgres` needs."""
    return make_url(address).set(drivername=DRIVER).render_as_string(hide_password=False)


class _Engines:
    """The engines of this process, and what is known of their databases."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], Engine] = {}
        self._known: set[tuple[str, str]] = set()

    def of(self, address: str, provider: Any = None, **settings: int) -> Engine:
        """A child that was forked makes its own: two must not talk on one connection."""
        key = (os.getpid(), address, type(provider), *sorted(settings.items()))
        found = self._kept.get(key)
        return found or self._kept.setdefault(key, _new_engine(address, provider, **settings))

    def knows(self, address: str, what: str, look: Callable[[], bool]) -> bool:
        """Whether the database has this; it is asked until it has."""
        if (address, what) not in self._known and look():
            self._known.add((address, what))
        return (address, what) in self._known


_engines = _Engines()


def _new_engine(
    address: str,
    provider: Any,
    *,
    statement_timeout: int | None = None,
    pool_recycle: int = -1,
    max_overflow: int = -1,
) -> Engine:
    """`statement_timeout`: milliseconds; the other two as SQLAlchemy takes them."""
    said = make_url(address).query
    arguments: dict[str, Any] = {
        name: value for name, value in _PATIENCE.items() if name not in said
    }
    if statement_timeout is not None:
        own = f"-c statement_timeout={statement_timeout}"
        arguments["options"] = f"{said.get('options', '')} {own}".strip()
    engine: Engine = create_pg_engine(
        address,
        provider,
        isolation_level="AUTOCOMMIT",
        poolclass=QueuePool,
        pool_size=KEPT_CONNECTIONS,
        max_overflow=max_overflow,
        pool_recycle=pool_recycle,
        pool_pre_ping=True,
        pool_use_lifo=True,
        connect_args=arguments,
    )
    return engine


def _has_tables(engine: Engine) -> bool:
    names = ", ".join(f"to_regclass('{name}') is not null" for name in _MAIN_TABLES)
    with create_pg_connection(engine) as connection:
        return all(connection.execute(text(f"select {names}")).one())


def _make_tables(engine: Engine, address: str, provider: Any) -> bool:
    """Have Dagster make them, while no other process does. Returns True."""
    with create_pg_connection(engine) as connection:
        alone = connection.execution_options(isolation_level="READ COMMITTED")
        with alone.begin():
            alone.execute(text(f"select pg_advisory_xact_lock({_MAKING})"))
            DagsterPostgresStorage(address, token_provider=provider)
    return True


class _OfOneServer:
    """Beside a storage of Dagster's: the engine of this process, and what is known already."""

    postgres_url: str
    _token_provider: Any
    _engine: Engine

    def _share(self, **settings: int) -> None:
        self._engine = _engines.of(self.postgres_url, self._token_provider, **settings)

    def optimize_for_webserver(
        self, statement_timeout: int, pool_recycle: int, max_overflow: int
    ) -> None:
        self._share(
            statement_timeout=statement_timeout,
            pool_recycle=pool_recycle,
            max_overflow=max_overflow,
        )

    def _knows(self, what: str, look: Callable[[], bool]) -> bool:
        return _engines.knows(self.postgres_url, what, look)


class _Runs(_OfOneServer, PostgresRunStorage):
    def __init__(self, *arguments: Any) -> None:
        PostgresRunStorage.__init__(self, *arguments)
        self._share()

    def has_built_index(self, migration_name: str) -> bool:
        look = super().has_built_index
        return self._knows(f"runs: {migration_name}", lambda: look(migration_name))

    def has_run_stats_index_cols(self) -> bool:
        return self._knows("columns of run statistics", super().has_run_stats_index_cols)

    def has_backfill_id_column(self) -> bool:
        return self._knows("column of backfills", super().has_backfill_id_column)


class _Schedules(_OfOneServer, PostgresScheduleStorage):
    def __init__(self, *arguments: Any) -> None:
        PostgresScheduleStorage.__init__(self, *arguments)
        self._share()

    def has_built_index(self, migration_name: str) -> bool:
        look = super().has_built_index
        return self._knows(f"schedules: {migration_name}", lambda: look(migration_name))

    def _has_instigators_table(self, conn: Connection) -> bool:
        look = super()._has_instigators_table
        return self._knows("instigators", lambda: look(conn))

    def _has_asset_daemon_asset_evaluations_table(self, conn: Connection) -> bool:
        look = super()._has_asset_daemon_asset_evaluations_table
        return self._knows("evaluations", lambda: look(conn))


class _Events(_OfOneServer, PostgresEventLogStorage):
    def __init__(self, *arguments: Any) -> None:
        PostgresEventLogStorage.__init__(self, *arguments)
        self._share()

    def has_table(self, table_name: str) -> bool:
        look = super().has_table
        return self._knows(table_name, lambda: look(table_name))

    def has_secondary_index(self, name: str) -> bool:
        look = super().has_secondary_index
        return self._knows(f"events: {name}", lambda: look(name))

    def store_event(self, event: EventLogEntry) -> None:
        """What Dagster's own does, without the NOTIFY to which no version of 1.13 listens."""
        self._store([event])

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """What `store_event` does with each, in one transaction.

        What an asset's latest event is gets written once, for the last event of each kind.
        """
        self._store(
            [one for one in events if not one.get_dagster_event().is_asset_failed_to_materialize]
        )

    def _store(self, events: Sequence[EventLogEntry]) -> None:
        if not events:
            return
        if len(events) == 1 and not _is_of_asset(events[0]):
            with self._connect() as connection:
                numbers = self._insert(connection, events)
        else:
            with self.index_transaction() as connection:
                numbers = self._insert(connection, events)
                self._note_assets(connection, events, numbers)
        for one, number in zip(events, numbers, strict=True):
            if one.dagster_event_type in ASSET_CHECK_EVENTS:
                self.store_asset_check_event(one, number)

    def _insert(self, connection: Connection, events: Sequence[EventLogEntry]) -> Sequence[int]:
        """The numbers of the events, in their order."""
        found = connection.execute(_INSERT, [self._event_to_row(one) for one in events])
        return found.scalars().all()

    def _note_assets(
        self, connection: Connection, events: Sequence[EventLogEntry], numbers: Sequence[int]
    ) -> None:
        """In the order of their keys: two that write the same assets never wait for each other."""
        of_assets = [
            (one, number) for one, number in zip(events, numbers, strict=True) if _is_of_asset(one)
        ]
        self._store_asset_event_tags(
            connection, [one for one, _ in of_assets], [number for _, number in of_assets]
        )
        latest = {
            (one.get_dagster_event().asset_key, one.dagster_event_type): (one, number)
            for one, number in of_assets
        }
        for one, number in sorted(latest.values(), key=_key_and_number):
            self._store_asset_event(connection, one, number)


def _is_of_asset(one: EventLogEntry) -> bool:
    event = one.dagster_event
    return one.dagster_event_type in ASSET_EVENTS and event is not None and bool(event.asset_key)


def _key_and_number(found: tuple[EventLogEntry, int]) -> tuple[str, int]:
    one, number = found
    asset_key = one.get_dagster_event().asset_key
    return (asset_key.to_string() if asset_key else "", number)
