"""Finds the troubles of a pipeline that a person should be told about.

Workers, object store, disk, dead letters and slots are looked at one by one: a look that fails
leaves its kind unknown and hides nothing that the others find. Looks are short and change nothing.
What only Dagster knows (runs, ticks, whether the sensor is on) comes from the caller.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.state import Snapshot
from fuploader_dagster.control.wishes import read_here
from fuploader_dagster.dead_letters.counts import grouped, read_counts
from fuploader_dagster.delivery.failures import Failure, all_failures
from fuploader_dagster.delivery.mended import damaged_aside
from fuploader_dagster.delivery.notice_files import all_notice_files
from fuploader_dagster.delivery.processor_trouble import processor_trouble_of
from fuploader_dagster.delivery.sink_notes import all_sinks
from fuploader_dagster.delivery.store_trouble import find_refusal, find_trouble
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.health.alerts import Findings, Kind, Trouble
from fuploader_dagster.health.balance import balance, lost_in_words, what_to_do
from fuploader_dagster.intake.disk_space import Unshipped, shortage, space_of
from fuploader_dagster.intake.worker_status import SILENT_SECONDS, WorkerStatus, read_statuses
from fuploader_dagster.settings.pipeline import Pipeline

log = logging.getLogger(__name__)

LISTED = 20
LISTED_CHARACTERS = 500
GIVEN_UP_SECONDS = 3600.0
"""How long after notices were given up that counts as trouble."""
WHAT_TO_DO = (
    "their data is kept. Fix what their errors say, then materialise their partitions, or wait for "
    "the recovery schedule"
)
"""About slots that failed."""


_FAIL_RUNS = ("failed_slots", "store", "processor", "sinks")
"""A run that failed because of these is no trouble of its own."""


@dataclass(frozen=True)
class FailedRun:
    """A failed run that Dagster will not retry."""

    run_id: str
    reason: str


@dataclass(frozen=True)
class Draining:
    """What Dagster knows about the drain."""

    wanted: bool
    """False if somebody switched its sensor off."""
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
) -> Findings:
    """Look for all kinds of trouble. `going_on` names those that are known already."""
    layout = pipeline.layout
    intake = read_here(layout).intake
    if intake.paused:
        draining = replace(draining, wanted=False)
    looks: dict[Kind, Callable[[], Trouble | None]] = {
        "drain": lambda: drain_trouble(pipeline, draining, read_statuses(layout), now),
        "store": lambda: store_trouble(pipeline),
        "processor": lambda: processor_trouble(pipeline),
        "sinks": lambda: sink_trouble(pipeline),
        "notices": lambda: notice_trouble(pipeline, now),
        "disk": lambda: disk_trouble(pipeline, now, paused="disk" in going_on),
        "dead_letters": lambda: letter_trouble(pipeline, now),
        "failed_slots": lambda: slot_trouble(
            _others(pipeline), runs, pipeline, now, going_on="failed_slots" in going_on
        ),
        "damaged": lambda: damage(layout, now),
        "lost": lambda: loss(pipeline, now),
    }
    found, unknown = [], []
    for kind, one in looks.items():
        try:
            trouble = one()
        except (FuploaderError, OSError) as error:
            log.warning("cannot tell whether %s has %s trouble: %s", pipeline.name, kind, error)
            unknown.append(kind)
        else:
            found += [trouble] if trouble is not None else []
    if not any(trouble.kind in _FAIL_RUNS for trouble in found):
        found += _failed_runs(runs, now)
    off = f"is paused {intake}" if intake.paused else "was switched off"
    endings = {} if draining.wanted else {"drain": f"{off}: its drain is not watched"}
    return Findings(tuple(found), tuple(unknown), endings)


def drain_trouble(
    pipeline: Pipeline, draining: Draining, workers: Sequence[WorkerStatus], now: float
) -> Trouble | None:
    """What keeps messages in the queue, unless somebody switched the drain off. A full disk is a
    kind of its own."""
    if not draining.wanted:
        return None
    hindered = _hindered(workers, now)
    if hindered is None and draining.problem and not any(one.problem for one in workers):
        hindered = draining.problem, draining.since
    if hindered is None and not workers:
        hindered = no_workers(pipeline), now
    if hindered is None:
        return None
    said, since = hindered
    text = f"the drain is stopped or hindered, and messages wait in the queue: {said}"
    return Trouble("drain", text, since)


def why_nobody_drains(pipeline: Pipeline, workers: Sequence[WorkerStatus], now: float) -> str:
    """Why no worker takes messages, in the words of the alert."""
    if hindered := _hindered(workers, now):
        return hindered[0]
    paused = [one.problem for one in workers if one.problem]
    return paused[0] if paused else no_workers(pipeline)


def _hindered(workers: Sequence[WorkerStatus], now: float) -> tuple[str, float] | None:
    """What workers that are alive say keeps them from draining, and since when."""
    busy = {one.worker for one in workers if one.doing == "draining"}
    troubled = [
        one for one in workers if one.problem and one.doing != "paused" and one.worker not in busy
    ]
    if troubled:
        said = "; ".join(f"worker {one.worker}: {one.problem}" for one in troubled[:LISTED])
        return said, min(one.problem_since or now for one in troubled)
    silent = [one for one in workers if one.doing == "draining" and not one.drains(now)]
    if silent:
        said = (
            f"{counted(len(silent), 'worker has', 'workers have')} not reported for "
            f"{SILENT_SECONDS:.0f} s or longer"
        )
        return said, min(one.updated_at for one in silent)
    return None


def no_workers(pipeline: Pipeline) -> str:
    if pipeline.drain_by == "command":
        return "no worker is running: is `fuploader drain` running on this machine?"
    return "no worker is running: look at the ticks of the drain sensor"


def store_trouble(pipeline: Pipeline) -> Trouble | None:
    """Whether the object store answers runs that ship, and the recovery schedule."""
    found = find_trouble(pipeline.layout)
    if found is None:
        return None
    text = f"the object store {pipeline.store.describe()} does not answer: {found.error}"
    return Trouble("store", f"{text}; sealed slots wait on the disk", found.since)


def store_refusal(pipeline: Pipeline) -> Trouble | None:
    """Whether the object store answers, but refuses us. No alert of its own: the slots that fail of
    it are one."""
    found = find_refusal(pipeline.layout)
    if found is None:
        return None
    text = f"the object store {pipeline.store.describe()} was reached, but refuses us: "
    return Trouble("store", f"{text}{found.error}; sealed slots wait on the disk", found.since)


def processor_trouble(pipeline: Pipeline) -> Trouble | None:
    """Whether the pipeline's processor works for any item."""
    found = processor_trouble_of(pipeline)
    if found is None:
        return None
    text = f"nothing can be processed: {found.error}; sealed slots wait on the disk"
    return Trouble("processor", text, found.since)


def sink_trouble(pipeline: Pipeline) -> Trouble | None:
    """Whether the pipeline's sinks take rows, and if not, what is owed to them."""
    told: dict[str, str] = {}
    since: list[float] = []
    for notes in all_sinks(pipeline):
        failures = list(notes.failures.all())
        trouble = notes.trouble
        if trouble is None and not failures:
            continue
        error = trouble.error if trouble is not None else failures[0].error
        target = pipeline.sinks[notes.sink].describe()
        told[notes.sink] = f"sink {notes.sink} ({target}): {error[:LISTED_CHARACTERS]}"
        since += [trouble.since] if trouble is not None else [one.failed_at for one in failures]
    if not told:
        return None
    text = f"rows could not be stored: {'; '.join(told.values())}. They are kept and tried again"
    return Trouble("sinks", text, min(since), tuple(told))


def notice_trouble(pipeline: Pipeline, now: float) -> Trouble | None:
    """Whether those who ask for tasks can be told of them, and were not given up lately."""
    told: dict[str, str] = {}
    since: list[float] = []
    for settings, files in all_notice_files(pipeline):
        trouble, given_up = files.trouble, files.given_up
        if trouble is not None:
            waiting = len(files.ends())
            error = trouble.error[:LISTED_CHARACTERS]
            told[files.key] = (
                f"{settings.describe()}: {error} "
                f"({counted(waiting, 'task waits', 'tasks wait')} to be told)"
            )
            since.append(trouble.since)
        elif 0 <= now - given_up.at < GIVEN_UP_SECONDS:
            told[files.key] = (
                f"{settings.describe()}: {counted(given_up.tasks, 'task was', 'tasks were')} "
                f"given up so far, the last "
                f"one because {given_up.reason[:LISTED_CHARACTERS]}"
            )
            since.append(given_up.at)
    if not told:
        return None
    text = f"tasks are done, but nobody is told: {'; '.join(told.values())}"
    return Trouble("notices", text, min(since), tuple(told))


def _others(pipeline: Pipeline) -> list[Failure]:
    """The failures that `processor_trouble` does not report."""
    failures = list(all_failures(pipeline.layout))
    if processor_trouble_of(pipeline) is None:
        return failures
    return [one for one in failures if one.stage != "process"]


def disk_trouble(pipeline: Pipeline, now: float, *, paused: bool) -> Trouble | None:
    """Whether the drain pauses, or would pause, for lack of disk space."""
    waiting = [one for one in read_statuses(pipeline.layout) if one.doing == "paused"]
    if waiting:
        said = next((one.problem for one in waiting if one.problem), "a worker is paused")
        return Trouble("disk", said, min(one.problem_since or now for one in waiting))
    if not pipeline.layout.root.is_dir():
        return None  # nothing was drained yet, or the disk is gone, which the workers report
    unshipped = Unshipped(pipeline.layout).bytes() if pipeline.max_unshipped_bytes else 0
    space = space_of(pipeline.storage_root.absolute(), unshipped)
    said = shortage(space, pipeline.intake(), paused=paused)
    return Trouble("disk", said, now) if said else None


def letter_trouble(pipeline: Pipeline, now: float) -> Trouble | None:
    """Whether there are more dead letters than `max_dead_letters_per_hour`."""
    counts, most = read_counts(pipeline.layout), pipeline.max_dead_letters_per_hour
    if (recent := counts.last_hour(now)) <= most:
        return None
    reasons = dict(list(counts.reasons.items())[:LISTED])
    became = counted(recent, "message became a dead letter", "messages became dead letters")
    text = (
        f"{became} within an hour; max_dead_letters_per_hour is {most:,}. "
        f"Most frequent reason so far: {next(iter(reasons), 'unknown')}. "
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
    """Slots that runs left to the recovery schedule. One that a run still retries is not among
    them."""
    given_up = [one for one in failures if runs or one.attempts > pipeline.max_retries]
    if not (given_up or (going_on and failures)):
        return None
    since = min((one.failed_at for one in failures), default=now)
    causes = dict.fromkeys(grouped(one.error) for one in given_up)
    run = f"{_failed(runs[-1])}. " if runs else ""
    text = (
        f"{run}{counted(len(failures), 'slot has', 'slots have')} failed after all retries, with "
        "another attempt to come; "
        f"{WHAT_TO_DO}. First error: {failures[0].error[:LISTED_CHARACTERS]}"
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
    """Runs that failed before they touched a slot, or whose slots were replaced since."""
    for run in runs:
        text = f"{_failed(run)}. The recovery schedule asks for its unfinished slots again"
        yield Trouble("failed_run", text, now, (grouped(run.reason),), {"run_id": run.run_id})


def _failed(run: FailedRun) -> str:
    return f"run {run.run_id} failed: {run.reason.rstrip('.')}"


def loss(pipeline: Pipeline, now: float) -> Trouble | None:
    """Acknowledged messages that are neither on the disk nor stored."""
    lost = balance(pipeline.layout, _snapshot(pipeline)).lost
    if not lost:
        return None
    text = f"{lost_in_words(lost)}; {what_to_do(lost)}"
    details = [{"what": one.what, "messages": one.messages} for one in lost[:LISTED]]
    return Trouble("lost", text, now, tuple(one.what for one in lost), {"lost": details})


def _snapshot(pipeline: Pipeline) -> Snapshot:
    settings = pipeline.state.in_a_hurry()
    if not settings.exists():
        return Snapshot()
    with settings.opened(pipeline=pipeline.name, node=pipeline.node) as state:
        return state.snapshot()


def damage(layout: Layout, now: float) -> Trouble | None:
    """Damaged directories that are still in `set-aside/`."""
    mended, others = damaged_aside(layout)
    if not (mended or others):
        return None
    said = [one.sentence(layout) for one in mended[:LISTED]]
    if others:
        names = ", ".join(path.name for path in others[:LISTED])
        said.append(
            f"{counted(len(others), 'damaged directory is', 'damaged directories are')} in "
            f"{layout.set_aside} ({names}). The log "
            "says which of their messages are stored; any other exists only there"
        )
    details: list[dict[str, Any]] = [
        {
            "partition": one.partition,
            "messages": one.sealed_messages,
            "stored_again": one.stored,
            "stored_as": one.stored_as,
            "set_aside": one.set_aside,
        }
        for one in mended[:LISTED]
    ]
    aside = [str(path.relative_to(layout.root)) for path in others]
    details += [{"set_aside": path} for path in aside[:LISTED]]
    causes = (*(one.set_aside for one in mended), *aside)
    return Trouble("damaged", ". ".join(said), now, causes, {"damaged": details})
