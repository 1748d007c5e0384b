"""The retention schedule: folds away old partitions that the object store has confirmed.

To fold a partition away is to delete its key from the partition set. Dagster lists all keys of the
set for many things, so the set has to stay small (Dagster advises 100,000 at most). Deleting a key
deletes no history; `old_history` and `old_events` remove what is old of that. Receipts stay. A
partition without a receipt is never folded away, unless its slot was damaged and replaced (`mend`);
nor is one whose rows are still owed to a sink.

The schedule also adds the partitions of archives that were stored without Dagster (`fuploader
ship`, `run_pipeline`), as long as it would not fold them away. It reports what no run has reported:
these, and what canceled runs stored, for example.
"""

import time
from collections.abc import Collection, Sequence
from datetime import datetime

import dagster as dg

from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.assets.unreported import report_unreported
from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.delivery.mended import find_mended
from fuploader_dagster.delivery.sink_notes import all_sinks, kept_for_sinks
from fuploader_dagster.disk.layout import PartitionKey, utc
from fuploader_dagster.sensors.default_status import schedule_status
from fuploader_dagster.sensors.dry_runs import SAID, is_dry_run
from fuploader_dagster.sensors.old_events import remove_old_events
from fuploader_dagster.sensors.old_history import (
    remove_old_runs,
    remove_old_ticks,
    remove_partitions,
)
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import find_receipts, receipts_between
from fuploader_dagster.slots.sealing import sealed_partitions

KEYS_PER_EVALUATION = 5_000
ADDED_PER_EVALUATION = 2_000
"""Each of them is reported, which takes longer than to fold one away."""
_DAY_SECONDS = 86_400.0


def build_retention_schedule(pipeline: Pipeline, *, running: bool = True) -> dg.ScheduleDefinition:
    """The retention schedule of a pipeline, once an hour. It launches no runs."""
    names = Names.of(pipeline)

    @dg.schedule(
        name=f"{names.scope}_retention",
        job_name=names.ship_job,
        cron_schedule="17 * * * *",
        execution_timezone="UTC",
        default_status=schedule_status(running=running),
        description="Removes the keys of old verified partitions, and old runs, events and ticks.",
    )
    def fold(context: dg.ScheduleEvaluationContext) -> dg.SkipReason:
        registered = context.instance.get_dynamic_partitions(names.partition_set)
        candidates = foldable(registered, pipeline, now=time.time())[:KEYS_PER_EVALUATION]
        receipts = find_receipts(pipeline.layout, candidates)
        owed = _owed(pipeline, receipts)
        stored = [
            key
            for key in candidates
            if (key in receipts or find_mended(pipeline.layout, key)) and key not in owed
        ]
        added = unknown(registered, pipeline, now=time.time())[:ADDED_PER_EVALUATION]
        if is_dry_run(context):
            return dg.SkipReason(
                f"{SAID}; a tick would fold away {len(stored):,} of "
                f"{counted(len(registered), 'partition')}, and add {len(added):,} "
                f"that were stored without Dagster"
            )
        if added:
            context.instance.add_dynamic_partitions(names.partition_set, added)
        report_unreported(context.instance, pipeline, [*registered, *added])
        remove_partitions(context.instance, names.partition_set, stored)
        now, log_key = time.time(), context.log_key
        runs = remove_old_runs(context.instance, pipeline, now=now)
        events = remove_old_events(context.instance, pipeline, now=now)
        repository = log_key[0] if log_key else None
        logs = remove_old_ticks(context.instance, pipeline, repository, now=now)
        return dg.SkipReason(
            f"folded away {len(stored):,} of {counted(len(registered), 'partition')}; added "
            f"{len(added):,} "
            f"that were stored without Dagster; removed {counted(runs, 'run')} and "
            f"{counted(events, 'event')} of "
            f"sensors older than run_history_days, and {counted(logs, 'log')} of ticks older than "
            f"tick_history_days"
        )

    return fold


def _owed(pipeline: Pipeline, stored: Collection[str]) -> set[str]:
    """Partitions that a run still has to store rows of."""
    here = set(stored) & set(sealed_partitions(pipeline.layout))
    return kept_for_sinks(pipeline, here).union(*(one.owed() for one in all_sinks(pipeline)))


def foldable(registered: Sequence[str], pipeline: Pipeline, *, now: float) -> list[str]:
    """Keys that are too old, or too many, oldest first. Keys that are not ours are left alone."""
    ours = _by_age(registered)
    surplus = len(ours) - pipeline.retention_partitions
    oldest_kept = now - pipeline.retention_days * _DAY_SECONDS
    return [
        key
        for position, (sealed_at, key) in enumerate(ours)
        if position < surplus or sealed_at.timestamp() < oldest_kept
    ]


def unknown(registered: Sequence[str], pipeline: Pipeline, *, now: float) -> list[str]:
    """Keys of stored archives that are not registered and are not to be folded away, the newest
    first."""
    since = utc(max(now - pipeline.retention_days * _DAY_SECONDS, 0))
    stored = receipts_between(pipeline.layout, since)
    kept = _by_age({*registered, *stored})[-pipeline.retention_partitions :]
    missing = stored.keys() - set(registered)
    return [key for _, key in reversed(kept) if key in missing]


def _by_age(keys: Collection[str]) -> list[tuple[datetime, str]]:
    """Those of them that are ours, with the time of sealing, the oldest first."""
    parsed = [(key, PartitionKey.parse(key)) for key in keys]
    return sorted((partition.sealed_at, key) for key, partition in parsed if partition)
