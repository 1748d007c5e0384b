"""Removes a pipeline's old events that belong to no run: what its sensors and schedules reported.

Uses private names of Dagster, as they are in 1.13 (pyproject.toml allows no other). Dagster has no
call that removes single events.

These are sealed slots, dead letters, changes of freshness and checks, with their tags and the rows
of past checks, which go as late as runs; and what the watch says of the queue each minute, which
goes after `tick_history_days`. What must always hold: an asset keeps its newest event of each kind,
and a check its newest result, whatever their age; partitions that are still in the pipeline's set
keep all; events of other assets stay. Events of runs go with their runs (`old_history`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.instance.utils import RUNLESS_RUN_ID
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    DynamicPartitionsTable,
    SqlEventLogStorageTable,
)
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage

from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.settings.pipeline import Pipeline

EVENTS_TOGETHER = 500
SECONDS_PER_EVALUATION = 10.0
_DAY_SECONDS = 86_400.0
_KINDS = (
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_OBSERVATION,
    dg.DagsterEventType.FRESHNESS_STATE_CHANGE,
)
_events, _checks = SqlEventLogStorageTable.c, AssetCheckExecutionsTable.c


def remove_old_events(instance: dg.DagsterInstance, pipeline: Pipeline, *, now: float) -> int:
    """Remove old events of the pipeline's assets that no run reported; returns how many."""
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        return 0
    names = Names.of(pipeline)
    ends_at, removed = time.monotonic() + SECONDS_PER_EVALUATION, 0
    for asset in filter(names.is_ours, instance.all_asset_keys()):
        days = max(pipeline.run_history_days, pipeline.retention_days)
        if asset == names.queue:
            days = pipeline.tick_history_days
        moment = datetime.fromtimestamp(max(now - days * _DAY_SECONDS, 0), timezone.utc)
        before = moment.replace(tzinfo=None)  # as Dagster stores it
        for numbers in _old(storage, asset.to_string(), before, names.partition_set):
            removed += _remove(storage, numbers)
            if time.monotonic() > ends_at:
                return removed
    return removed


def newest_runs(instance: dg.DagsterInstance, names: Names) -> set[str]:
    """The runs that reported the newest materialization or observation of an asset of ours."""
    found: set[str] = set()
    for asset in filter(names.is_ours, instance.all_asset_keys()):
        for records in (
            instance.fetch_materializations(asset, limit=1).records,
            instance.fetch_observations(asset, limit=1).records,
        ):
            found.update(record.run_id for record in records)
    return found


def _old(
    storage: SqlEventLogStorage, asset: str, before: datetime, partition_set: str
) -> Iterator[Sequence[int]]:
    """Numbers of old events, and of old results of checks, some at a time."""
    registered = sa.select(DynamicPartitionsTable.c.partition).where(
        DynamicPartitionsTable.c.partitions_def_name == partition_set
    )
    for kind in _KINDS:
        of_kind = sa.and_(_events.asset_key == asset, _events.dagster_event_type == kind.value)
        newest = sa.select(sa.func.max(_events.id)).where(of_kind).scalar_subquery()
        query = (
            sa.select(_events.id)
            .where(of_kind, _events.run_id == RUNLESS_RUN_ID, _events.timestamp < before)
            .where(_events.id != newest)
            .where(sa.or_(_events.partition.is_(None), _events.partition.not_in(registered)))
        )
        yield from _some_at_a_time(storage, query, _events.id)
    newest_results = (
        sa.select(sa.func.max(_checks.id))
        .where(_checks.asset_key == asset)
        .group_by(_checks.check_name)
    )
    query = sa.select(_checks.id).where(
        _checks.asset_key == asset,
        _checks.evaluation_event_timestamp < before,
        _checks.id.not_in(newest_results),
    )
    for rows in _some_at_a_time(storage, query, _checks.id):
        yield _events_of_results(storage, rows)
        with storage.index_connection() as connection:
            connection.execute(AssetCheckExecutionsTable.delete().where(_checks.id.in_(rows)))


def _some_at_a_time(storage: SqlEventLogStorage, query: Any, number: Any) -> Iterator[list[int]]:
    last = 0
    while True:
        with storage.index_connection() as connection:
            some = query.where(number > last).order_by(number).limit(EVENTS_TOGETHER)
            found = list(connection.execute(some).scalars())
        if not found:
            return
        last = found[-1]
        yield found


def _events_of_results(storage: SqlEventLogStorage, rows: Sequence[int]) -> Sequence[int]:
    """The numbers of the events of those results that no run reported."""
    query = sa.select(_checks.evaluation_event_storage_id).where(
        _checks.id.in_(rows),
        _checks.run_id == RUNLESS_RUN_ID,
        _checks.evaluation_event_storage_id.is_not(None),
    )
    with storage.index_connection() as connection:
        return list(connection.execute(query).scalars())


def _remove(storage: SqlEventLogStorage, numbers: Sequence[int]) -> int:
    if isinstance(storage, SqliteEventLogStorage):
        _remove_copies(storage, numbers)
    with storage.index_connection() as connection:
        tags = AssetEventTagsTable.delete().where(AssetEventTagsTable.c.event_id.in_(numbers))
        connection.execute(tags)
        done = connection.execute(SqlEventLogStorageTable.delete().where(_events.id.in_(numbers)))
        return int(done.rowcount)


def _remove_copies(storage: SqliteEventLogStorage, numbers: Sequence[int]) -> None:
    """In SQLite an event is also in the file of its run, under another number."""
    with storage.index_connection() as connection:
        query = sa.select(_events.event).where(_events.id.in_(numbers))
        texts = list(connection.execute(query).scalars())
    with storage.run_connection(RUNLESS_RUN_ID) as connection:
        connection.execute(SqlEventLogStorageTable.delete().where(_events.event.in_(texts)))
