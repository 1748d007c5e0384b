"""Removes what a pipeline left in Dagster's history, which Dagster itself keeps for ever.

Old runs with their events, in SQLite the file that each run has, and their compute logs; rows of
old ticks, and the log files of ticks, which no code of Dagster removes. Only what is this
pipeline's, known by the names of its jobs, assets, sensors and schedules. Runs that have not ended
stay. Nothing rests on any of it: receipts, slots and archives are found on the disk and in the
store. A removed run takes the materialisations that it reported along; so runs are kept at least as
long as their partitions (`retention_days`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import dagster as dg
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager

from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.settings.pipeline import Pipeline

RUNS_PER_EVALUATION = 500
"""A run takes about 20 ms to remove; the schedule comes once an hour, and has 60 s."""
SECONDS_PER_EVALUATION = 20.0
ASSET_RUNS_LOOKED_AT = 2_000
_ASSET_JOB = "__ASSET_JOB"
"""Dagster's name for the job of a backfill or of assets that a person materialises."""
_DAY_SECONDS = 86_400.0
_ENDED = [
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
]

log = logging.getLogger(__name__)


def remove_old_runs(instance: dg.DagsterInstance, pipeline: Pipeline, *, now: float) -> int:
    """Remove the pipeline's runs that ended long ago, oldest first; returns how many."""
    days = max(pipeline.run_history_days, pipeline.retention_days)
    before = datetime.fromtimestamp(now - days * _DAY_SECONDS, timezone.utc)
    ends_at, removed = time.monotonic() + SECONDS_PER_EVALUATION, 0
    for run in _old_runs(instance, Names.of(pipeline), before):
        if removed >= RUNS_PER_EVALUATION or time.monotonic() > ends_at:
            break
        _remove(instance, run)
        removed += 1
    return removed


def remove_old_ticks(
    instance: dg.DagsterInstance, pipeline: Pipeline, repository: str | None, *, now: float
) -> int:
    """Remove rows of the pipeline's old ticks, and log files; returns how many files."""
    names = Names.of(pipeline).instigators
    before = now - pipeline.tick_history_days * _DAY_SECONDS
    for state in instance.all_instigator_state():
        if state.name in names:
            instance.purge_ticks(state.instigator_origin_id, state.selector_id, before)
    return sum(_remove_logs(instance, repository, name, before) for name in names)


def _old_runs(
    instance: dg.DagsterInstance, names: Names, before: datetime
) -> Sequence[dg.DagsterRun]:
    found: list[dg.DagsterRun] = []
    for job in names.jobs:
        filters = dg.RunsFilter(job_name=job, statuses=_ENDED, updated_before=before)
        found += instance.get_runs(filters, limit=RUNS_PER_EVALUATION, ascending=True)
    filters = dg.RunsFilter(job_name=_ASSET_JOB, statuses=_ENDED, updated_before=before)
    assets = {names.packed_archive, names.uploaded_archive}
    for run in instance.get_runs(filters, limit=ASSET_RUNS_LOOKED_AT, ascending=True):
        if run.asset_selection and run.asset_selection <= assets:
            found.append(run)
    return found


def _remove(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """The log first: a run that is gone nobody comes back to."""
    try:
        instance.compute_log_manager.delete_logs(prefix=[run.run_id])
    except NotImplementedError:
        log.debug("these compute logs are removed by the rules of their bucket")
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
