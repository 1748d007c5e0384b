"""Which slots a run is about to handle, so that nobody asks for them a second time.

What must always hold: no run keeps a slot waiting for ever. A run that was being terminated when
its machine died stays CANCELING, one whose process never came up stays STARTING, and Dagster's own
defaults do not look after either. So an unfinished run counts only while somebody works on its
slots, which the kernel knows (the lock of a partition is held by live processes only), or while
it is young: something happened in it a short while ago. A run in Dagster's queue counts for as long
as it is there, because a second one would only queue behind it.

A run that is believed gone and still works does no harm: the second run waits for the partition's
lock, then finds the work done.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timezone

import dagster as dg

from fuploader_dagster.assets.partitions import PIPELINE_TAG, UNFINISHED_RUNS, Names, keys_of_run
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
    """As a tick shows it: see `named`."""
    keys: Sequence[str]
    works: bool
    """False: nobody holds a lock of its slots, and nothing has happened in it for a while."""


def unfinished_runs(
    instance: dg.DagsterInstance, names: Names, layout: Layout, registered: Sequence[str]
) -> list[UnfinishedRun]:
    """The pipeline's runs that have not ended. Those of a backfill say no pipeline; they may be
    ours, and count if they are for keys of ours."""
    now, found = time.time(), []
    for record in instance.get_run_records(dg.RunsFilter(statuses=UNFINISHED_RUNS)):
        run = record.dagster_run
        if run.tags.get(PIPELINE_TAG, names.scope) != names.scope:
            continue
        if keys := keys_of_run(run.tags, registered):
            works = (
                run.status is dg.DagsterRunStatus.QUEUED
                or any(is_held(layout.partition_lock(key)) for key in keys)
                or now - _last_event(instance, record) < YOUNG_SECONDS
            )
            found.append(UnfinishedRun(named(record), keys, works))
    return found


def named(record: dg.RunRecord) -> str:
    """A run's id, its status, and since when it has this status."""
    run, since = record.dagster_run, record.update_timestamp.astimezone(timezone.utc)
    return f"run {run.run_id} ({run.status.value} since {since:%Y-%m-%d %H:%M:%S} UTC)"


def busy_keys(runs: Sequence[UnfinishedRun]) -> set[str]:
    """Slots that need not be asked for."""
    return {key for run in runs if run.works for key in run.keys}


def what_blocks(keys: Collection[str], runs: Sequence[UnfinishedRun]) -> str:
    """For which runs these slots wait, in a sentence; empty if there are none."""
    waiting = [(run, [key for key in run.keys if key in keys]) for run in runs if run.works]
    told = [
        f"{held[0]}{f' and {len(held) - 1:,} more' if len(held) > 1 else ''} for {run.name}"
        for run, held in waiting
        if held
    ]
    more = f", and {len(told) - LISTED_RUNS:,} more runs" if len(told) > LISTED_RUNS else ""
    return f"waiting: {', '.join(told[:LISTED_RUNS])}{more}" if told else ""


def given_up(keys: Collection[str], runs: Sequence[UnfinishedRun]) -> list[str]:
    """A sentence for each run that has not ended and that nobody waits for any more."""
    return [
        f"{run.name} does nothing: no process works on its slots, and nothing happened in it for "
        f"{YOUNG_SECONDS:.0f} s. They are asked for again; terminate the run in the UI if it stays"
        for run in runs
        if not run.works and not set(run.keys).isdisjoint(keys)
    ]


def _last_event(instance: dg.DagsterInstance, record: dg.RunRecord) -> float:
    """When something happened in a run last; seconds since 1970. Never in the future: after the
    clock was set back, what happened before it counts as old."""
    moments = [record.update_timestamp.timestamp(), record.create_timestamp.timestamp()]
    last = instance.get_records_for_run(record.dagster_run.run_id, limit=1, ascending=False)
    moments += [one.timestamp for one in last.records]
    return max((moment for moment in moments if moment <= time.time()), default=0.0)
