"""What a look at a pipeline finds that a person should be told.

Workers, object store, disk, dead letters and slots are each looked at alone: one look that fails
leaves its kind unknown and hides nothing that the others find. Looks are short and change nothing.
What only Dagster knows (runs, ticks, a switch) comes from the caller.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fuploader_dagster.delivery.failures import Failure, all_failures
from fuploader_dagster.delivery.mend import all_mended
from fuploader_dagster.delivery.store_trouble import find_trouble
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.health.alerts import Kind, Looked, Trouble
from fuploader_dagster.intake.dead_letter_counts import grouped, read_counts
from fuploader_dagster.intake.disk_space import Unshipped, shortage, space_of
from fuploader_dagster.intake.worker_status import WorkerStatus, read_statuses
from fuploader_dagster.settings.pipeline import Pipeline

log = logging.getLogger(__name__)

SILENT_SECONDS = 60.0
"""A worker writes its status about once a second."""
LISTED = 20
LISTED_CHARACTERS = 500


@dataclass(frozen=True)
class FailedRun:
    """A run that failed and is not started again by Dagster itself."""

    run_id: str
    reason: str


@dataclass(frozen=True)
class Draining:
    """What Dagster knows of the drain."""

    wanted: bool
    """False: somebody switched its sensor off."""
    problem: str = ""
    """Why its ticks fail."""
    since: float = 0.0


def look(
    pipeline: Pipeline,
    draining: Draining,
    runs: Sequence[FailedRun],
    *,
    now: float,
    going_on: Sequence[str] = (),
) -> Looked:
    """All of it. `going_on`: the kinds of trouble that are known already."""
    layout = pipeline.layout
    looks: dict[Kind, Callable[[], Trouble | None]] = {
        "drain": lambda: drain_trouble(pipeline, draining, read_statuses(layout), now),
        "store": lambda: store_trouble(pipeline),
        "disk": lambda: disk_trouble(pipeline, now, paused="disk" in going_on),
        "dead_letters": lambda: letter_trouble(pipeline, now),
        "failed_slots": lambda: slot_trouble(
            list(all_failures(layout)), runs, pipeline, now, going_on="failed_slots" in going_on
        ),
        "damaged": lambda: damage(layout, now),
    }
    found, unknown = [], []
    for kind, one in looks.items():
        try:
            trouble = one()
        except (FuploaderError, OSError) as error:
            log.warning("%s of %s could not be looked at: %s", kind, pipeline.name, error)
            unknown.append(kind)
        else:
            found += [trouble] if trouble is not None else []
    if not any(trouble.kind in ("failed_slots", "store") for trouble in found):
        found += _failed_runs(runs, now)
    endings = {} if draining.wanted else {"drain": "was switched off: its drain is not watched"}
    return Looked(tuple(found), tuple(unknown), endings)


def drain_trouble(
    pipeline: Pipeline, draining: Draining, workers: Sequence[WorkerStatus], now: float
) -> Trouble | None:
    """What keeps messages in the queue, unless somebody wants it so. A full disk is one of its
    own."""
    if not draining.wanted:
        return None
    draining_ones = {one.worker for one in workers if one.doing == "draining"}
    told = [
        one
        for one in workers
        if one.problem and one.doing != "paused" and one.worker not in draining_ones
    ]
    silent = [
        one for one in workers if one.doing == "draining" and now - one.updated_at > SILENT_SECONDS
    ]
    if told:
        said = "; ".join(f"worker {one.worker}: {one.problem}" for one in told[:LISTED])
        since = min(one.problem_since or now for one in told)
    elif silent:
        said = f"{len(silent)} workers have said nothing for {SILENT_SECONDS:.0f} s or longer"
        since = min(one.updated_at for one in silent)
    elif draining.problem and not any(one.problem for one in workers):
        said, since = draining.problem, draining.since
    elif not workers:
        said, since = _nobody(pipeline), now
    else:
        return None
    text = f"the drain has stopped or is hindered, and messages wait in the queue: {said}"
    return Trouble("drain", text, since)


def _nobody(pipeline: Pipeline) -> str:
    if pipeline.drain_by == "command":
        return "no worker runs: is `fuploader drain` running on this machine?"
    return "no worker runs: look at the ticks of the drain sensor"


def store_trouble(pipeline: Pipeline) -> Trouble | None:
    """Whether the object store answers those who ship, or the recovery schedule, which looks."""
    found = find_trouble(pipeline.layout)
    if found is None:
        return None
    text = f"the object store {pipeline.store.describe()} does not answer: {found.error}"
    return Trouble("store", f"{text}; what is sealed waits on the disk", found.since)


def disk_trouble(pipeline: Pipeline, now: float, *, paused: bool) -> Trouble | None:
    """Whether the drain pauses, or would, for lack of room."""
    waiting = [one for one in read_statuses(pipeline.layout) if one.doing == "paused"]
    if waiting:
        said = next((one.problem for one in waiting if one.problem), "a worker pauses")
        return Trouble("disk", said, min(one.problem_since or now for one in waiting))
    if not pipeline.layout.root.is_dir():
        return None  # nothing was drained yet, or its disk is gone, which the workers say
    unshipped = Unshipped(pipeline.layout).bytes() if pipeline.max_unshipped_bytes else 0
    space = space_of(pipeline.storage_root.absolute(), unshipped)
    said = shortage(space, pipeline.intake(), paused=paused)
    return Trouble("disk", said, now) if said else None


def letter_trouble(pipeline: Pipeline, now: float) -> Trouble | None:
    """Whether more dead letters come than may."""
    counts, most = read_counts(pipeline.layout), pipeline.max_dead_letters_per_hour
    if (recent := counts.last_hour(now)) <= most:
        return None
    reasons = dict(list(counts.reasons.items())[:LISTED])
    text = (
        f"{recent:,} messages became dead letters within an hour, max_dead_letters_per_hour is "
        f"{most:,}; the most frequent reason of all: {next(iter(reasons), 'unknown')}. "
        f"`fuploader dead-letters list` shows them"
    )
    return Trouble("dead_letters", text, now, details={"last_hour": recent, "reasons": reasons})


def slot_trouble(
    failures: Sequence[Failure],
    runs: Sequence[FailedRun],
    pipeline: Pipeline,
    now: float,
    *,
    going_on: bool,
) -> Trouble | None:
    """Slots that were given up to the recovery schedule. One that fails within a run's retries is
    none of them yet."""
    given_up = [one for one in failures if runs or one.attempts > pipeline.max_retries]
    if not (given_up or (going_on and failures)):
        return None
    since = min((one.failed_at for one in failures), default=now)
    causes = dict.fromkeys(grouped(one.error) for one in given_up)
    run = f"run {runs[-1].run_id} failed: {runs[-1].reason}. " if runs else ""
    text = (
        f"{run}{len(failures):,} slots failed after all retries and wait for their next attempt; "
        f"their data is kept. Correct what their errors say, then materialise their partitions, or "
        f"wait for the recovery schedule. The first: {failures[0].error[:LISTED_CHARACTERS]}"
    )
    details: dict[str, Any] = {
        **({"run_id": runs[-1].run_id} if runs else {}),
        "slots_waiting": len(failures),
        "failures": [
            {
                "partition": one.partition,
                "stage": one.stage,
                "attempts": one.attempts,
                "error": one.error[:LISTED_CHARACTERS],
            }
            for one in failures[:LISTED]
        ],
    }
    return Trouble("failed_slots", text, since, tuple(causes), details)


def _failed_runs(runs: Sequence[FailedRun], now: float) -> Iterator[Trouble]:
    """Runs that failed before they touched a slot, or whose slots were replaced."""
    for run in runs:
        text = f"run {run.run_id} failed: {run.reason} What it did not finish is asked for again"
        yield Trouble("failed_run", text, now, (grouped(run.reason),), {"run_id": run.run_id})


def damage(layout: Layout, now: float) -> Trouble | None:
    """Damaged slots whose directory nobody has looked after yet."""
    found = [one for one in all_mended(layout) if (layout.root / one.set_aside).exists()]
    if not found:
        return None
    text = ". ".join(one.sentence(layout) for one in found[:LISTED])
    details = [
        {
            "partition": one.partition,
            "messages": one.sealed_messages,
            "stored_again": one.stored,
            "stored_as": one.stored_as,
            "set_aside": one.set_aside,
        }
        for one in found[:LISTED]
    ]
    causes = tuple(one.set_aside for one in found)
    return Trouble("damaged", text, now, causes, {"damaged": details})
