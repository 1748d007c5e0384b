"""Which slots a run is about to handle, so that nobody asks for them a second time.

What must always hold: no run keeps a slot waiting for ever. A run that was being terminated when
its machine died stays CANCELING, one whose process never started stays STARTING, and Dagster's
defaults clean up neither. So an unfinished run counts only while a process works on its slots,
which the kernel knows (only live processes hold a partition's lock), or while it is young:
something happened in it a short while ago. A run in Dagster's queue counts as long as it is there,
because a second one would only queue up after it.

A run that is taken for dead and still works does no harm: the second run waits for the partition's
lock, then finds the work done.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timezone

import dagster as dg

from fuploader_dagster.assets.partitions import PIPELINE_TAG, UNFINISHED_RUNS, Names, keys_of_run
from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.temporaries import is_held

YOUNG_SECONDS = 300.0
"""After a run's last event. Between two events it packs or uploads, with locks held, or pauses
before the next attempt; starting a process takes seconds."""
LISTED_RUNS = 3


@dataclass(frozen=True)
class UnfinishedRun:
    """A run of the pipeline that has not ended, and what it keeps."""

    name: str
    """As a tick shows it (`named`)."""
    keys: Sequence[str]
    works: bool
    """False: no process holds a lock of its slots, and nothing has happened in it for a while."""
    selected: Collection[dg.AssetKey] = ()
    """The assets that it makes; none: all of its job."""

    def ships(self, names: Names) -> bool:
        """Whether it does more than to store rows in sinks."""
        return not self.selected or not all(map(names.is_sink, self.selected))

    def stores_rows(self, sink: dg.AssetKey) -> bool:
        return not self.selected or sink in self.selected


def unfinished_runs(
    instance: dg.DagsterInstance, names: Names, layout: Layout, registered: Sequence[str]
) -> list[UnfinishedRun]:
    """The pipeline's runs that have not ended. A backfill's runs do not name a pipeline; they count
    if they are for keys of this one."""
    now, found = time.time(), []
    for record in instance.get_run_records(dg.RunsFilter(statuses=UNFINISHED_RUNS)):
        run = record.dagster_run
        if run.tags.get(PIPELINE_TAG, names.scope) != names.scope:
            continue
        if keys := keys_of_run(run.tags, registered):
            works = (
                run.status is dg.DagsterRunStatus.QUEUED
                or any(is_held(lock) for key in keys for lock in layout.locks_of(key))
                or now - last_event(instance, record) < YOUNG_SECONDS
            )
            selected = frozenset(run.asset_selection or ())
            found.append(UnfinishedRun(named(record), keys, works, selected))
    return found


def named(record: dg.RunRecord) -> str:
    """A run's id and status, and since when it has this status."""
    run, since = record.dagster_run, record.update_timestamp.astimezone(timezone.utc)
    return f"run {run.run_id} ({run.status.value} since {since:%Y-%m-%d %H:%M:%S} UTC)"


def busy_keys(runs: Sequence[UnfinishedRun]) -> set[str]:
    """Slots that need not be asked for."""
    return {key for run in runs if run.works for key in run.keys}


def what_blocks(keys: Collection[str], runs: Sequence[UnfinishedRun]) -> str:
    """Which runs these slots wait for, in a sentence; empty if there are none."""
    waiting = [(run, [key for key in run.keys if key in keys]) for run in runs if run.works]
    told = [
        f"{held[0]}{f' and {len(held) - 1:,} more' if len(held) > 1 else ''} for {run.name}"
        for run, held in waiting
        if held
    ]
    more = (
        f", and {counted(len(told) - LISTED_RUNS, 'more run')}" if len(told) > LISTED_RUNS else ""
    )
    return f"waiting: {', '.join(told[:LISTED_RUNS])}{more}" if told else ""


def given_up(keys: Collection[str], runs: Sequence[UnfinishedRun]) -> list[str]:
    """A sentence for each unfinished run that these slots no longer wait for."""
    return [
        f"{run.name} does nothing: no process works on its slots, and nothing happened in it for "
        f"{YOUNG_SECONDS:.0f} s. Its slots are asked for again; if the run stays, terminate it in "
        "the UI"
        for run in runs
        if not run.works and not set(run.keys).isdisjoint(keys)
    ]


def last_event(instance: dg.DagsterInstance, record: dg.RunRecord) -> float:
    """When something last happened in a run; seconds since 1970. Never in the future: if the clock
    was set back, what happened before that counts as old."""
    moments = [record.update_timestamp.timestamp(), record.create_timestamp.timestamp()]
    last = instance.get_records_for_run(record.dagster_run.run_id, limit=1, ascending=False)
    moments += [one.timestamp for one in last.records]
    return max((moment for moment in moments if moment <= time.time()), default=0.0)
