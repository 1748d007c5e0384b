"""Removes a pipeline's old entries in Dagster's history, which Dagster itself keeps for ever.

Uses private names of Dagster, as they are in 1.13 (pyproject.toml allows no other).

These are old runs with their events, their SQLite files and their compute logs; the rows of old
ticks; and the log files of ticks, which no code of Dagster removes. Only what belongs to this
pipeline goes, by the names of its jobs, assets, sensors and schedules. Runs that have not ended
stay, and so do those that reported an asset's newest materialization or observation, which the UI
shows. The pipeline needs none of it: receipts, slots and archives are on the disk and in the store.
With a run go the materialisations that it reported, so runs are kept at least as long as their
partitions (`retention_days`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import dagster as dg
from dagster._core.storage.event_log.schema import DynamicPartitionsTable
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager

from fuploader_dagster.assets.partitions import Names, chunks
from fuploader_dagster.sensors.old_events import newest_runs
from fuploader_dagster.settings.pipeline import Pipeline

RUNS_PER_EVALUATION = 500
"""Removing a run takes about 20 ms; the schedule ticks once an hour and has 60 s."""
KEYS_TOGETHER = 1_000
SECONDS_PER_EVALUATION = 20.0
ASSET_RUNS_LOOKED_AT = 2_000
_ASSET_JOB = "__ASSET_JOB"
"""Dagster's name for the job of backfills, and of assets that a person materialises."""
_DAY_SECONDS = 86_400.0
_ENDED = [
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
]

log = logging.getLogger(__name__)


def remove_old_runs(instance: dg.DagsterInstance, pipeline: Pipeline, *, now: float) -> int:
    """Remove the pipeline's old runs that have ended, oldest first; returns how many."""
    days = max(pipeline.run_history_days, pipeline.retention_days)
    before = datetime.fromtimestamp(max(now - days * _DAY_SECONDS, 0), timezone.utc)
    ends_at, removed = time.monotonic() + SECONDS_PER_EVALUATION, 0
    names = Names.of(pipeline)
    kept = newest_runs(instance, names)
    for run in _old_runs(instance, names, before):
        if run.run_id in kept:
            continue
        if removed >= RUNS_PER_EVALUATION or time.monotonic() > ends_at:
            break
        _remove(instance, run)
        removed += 1
    return removed


def remove_old_ticks(
    instance: dg.DagsterInstance, pipeline: Pipeline, repository: str | None, *, now: float
) -> int:
    """Remove the rows and log files of the pipeline's old ticks; returns how many files."""
    names = Names.of(pipeline).instigators
    before = now - pipeline.tick_history_days * _DAY_SECONDS
    for state in instance.all_instigator_state():
        if state.name in names:
            instance.purge_ticks(state.instigator_origin_id, state.selector_id, before)
    return sum(_remove_logs(instance, repository, name, before) for name in names)


def remove_partitions(
    instance: dg.DagsterInstance, partition_set: str, keys: Sequence[str]
) -> None:
    """Remove keys from a partition set. Dagster's own call removes one, with a transaction each."""
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        for key in keys:
            instance.delete_dynamic_partition(partition_set, key)
        return
    columns = DynamicPartitionsTable.c
    for some in chunks(keys, KEYS_TOGETHER):
        with storage.index_connection() as connection:
            connection.execute(
                DynamicPartitionsTable.delete().where(
                    columns.partitions_def_name == partition_set, columns.partition.in_(some)
                )
            )


def _old_runs(
    instance: dg.DagsterInstance, names: Names, before: datetime
) -> Sequence[dg.DagsterRun]:
    found: list[dg.DagsterRun] = []
    for job in names.jobs:
        filters = dg.RunsFilter(job_name=job, statuses=_ENDED, updated_before=before)
        found += instance.get_runs(filters, limit=RUNS_PER_EVALUATION, ascending=True)
    filters = dg.RunsFilter(job_name=_ASSET_JOB, statuses=_ENDED, updated_before=before)
    for run in instance.get_runs(filters, limit=ASSET_RUNS_LOOKED_AT, ascending=True):
        if run.asset_selection and all(map(names.is_made_by_runs, run.asset_selection)):
            found.append(run)
    return found


def _remove(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """The compute logs go first: once the run is gone, nobody would come back for them."""
    try:
        instance.compute_log_manager.delete_logs(prefix=[run.run_id])
    except NotImplementedError:
        log.debug("the rules of their bucket remove these compute logs")
    instance.delete_run(run.run_id)
    storage = instance.event_log_storage
    if isinstance(storage, SqliteEventLogStorage):
        file = storage.path_for_shard(run.run_id)
        for ending in ("", "-wal", "-shm"):
            Path(f"{file}{ending}").unlink(missing_ok=True)


def _remove_logs(
    instance: dg.DagsterInstance, repository: str | None, name: str, before: float
) -> int:
    manager = instance.compute_log_manager
    if repository is None or not isinstance(manager, LocalComputeLogManager):
        return 0
    folder = Path(manager.get_captured_local_path([repository, name, "any"], "err")).parent
    removed = 0
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_file() and path.stat().st_mtime < before:
            path.unlink(missing_ok=True)
            removed += 1
    return removed
