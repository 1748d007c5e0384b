"""Runs whose process died together with its code server, which nobody else would notice.

Uses private names of Dagster, as they are in 1.13 (pyproject.toml allows no other).

Dagster's code server reports its runs that die. When it dies with them (kill -9, power cut, a
container that is removed), they stay "started" for ever: their partitions count as being handled,
and each run takes one of the places for concurrent runs. So the recovery schedule looks for them.

What must always hold: a run is called dead only if its process was on this machine and is gone.
Every run reports its process id when it starts, and at its first step on which machine it is
(`assets/run_machine.py`). The kernel may have reused the number since, so a process that is younger
than the run's start is another one. A run that has come to no step, and from which nothing was
heard for `LONGEST_START_SECONDS`, never started. Runs that other launchers started, in containers
or on other machines, are left to those launchers.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import dagster as dg
from dagster._core.events import EngineEventData, JobFailureData, RunFailureReason

from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.assets.run_machine import machine_of
from fuploader_dagster.disk.place import is_this_machine
from fuploader_dagster.sensors.busy_runs import last_event

_BEGUN = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
LONGEST_START_SECONDS = 900.0
"""Of silence between a run's launch and its first step. Dagster's run monitoring, where it is on,
waits 180 s."""
_GONE = (
    "The process of this run is gone: it was killed together with its code server. "
    "Nothing is lost; what the run did not finish will be asked for again."
)
_YOUNGER_SECONDS = 30.0
"""The clock may have been set a little since; the kernel does not reuse a number in seconds."""


def end_dead_runs(instance: dg.DagsterInstance, names: Names) -> list[dg.DagsterRun]:
    """Report the pipeline's runs whose process is gone as failed, or as canceled if they were being
    terminated; returns those that failed.

    Dagster's `run_retries` may start these again.
    """
    if not isinstance(instance.run_launcher, dg.DefaultRunLauncher):
        return []
    begun = instance.get_run_records(dg.RunsFilter(statuses=_BEGUN))
    failed = []
    for record in begun:
        run = record.dagster_run
        if not _is_ours(run, names) or not _is_dead(record, instance):
            continue
        if run.status is dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, _GONE)
        else:
            failed.append(run)
            reason = RunFailureReason.UNEXPECTED_TERMINATION
            instance.report_run_failed(run, _GONE, JobFailureData(None, failure_reason=reason))
    return failed


def living_process_of(run: dg.DagsterRun, instance: dg.DagsterInstance) -> int | None:
    """The process id of a run on this machine; None if it is gone, or not reported yet. Whether it
    is on this machine, the caller knows."""
    process = _process_of(run, instance)
    return process[0] if process is not None and _still_there(*process) else None


def _is_ours(run: dg.DagsterRun, names: Names) -> bool:
    selected = run.asset_selection or set()  # a backfill's runs have no job of this pipeline's
    return run.job_name in names.jobs or any(map(names.is_made_by_runs, selected))


def _is_dead(record: dg.RunRecord, instance: dg.DagsterInstance) -> bool:
    run = record.dagster_run
    process, place = _process_of(run, instance), machine_of(run)
    if place is not None and not is_this_machine(place):
        return False
    if process is not None and _still_there(*process):
        return False
    if process is None or place is None:
        # A run that somebody executes in their own process starts without reporting which.
        in_process = process is None and run.status is dg.DagsterRunStatus.STARTED
        if in_process or time.time() - last_event(instance, record) < LONGEST_START_SECONDS:
            return False
    now = instance.get_run_by_id(run.run_id)  # it may have ended in this moment
    return now is not None and now.status is run.status


def _process_of(run: dg.DagsterRun, instance: dg.DagsterInstance) -> tuple[int, float] | None:
    """Process id of a run, and when the run reported it; None before it did.

    A run that went back to the queue, because the code server did not answer, starts again.
    """
    found = None
    kinds = {dg.DagsterEventType.PIPELINE_STARTING, dg.DagsterEventType.ENGINE_EVENT}
    for entry in instance.all_logs(run.run_id, of_type=kinds):
        event = entry.dagster_event
        data = event and event.event_specific_data
        if event and event.event_type is dg.DagsterEventType.PIPELINE_STARTING:
            found = None
        elif isinstance(data, EngineEventData) and "pid" in data.metadata:
            found = int(str(data.metadata["pid"].value)), entry.timestamp
    return found


def _still_there(pid: int, begun_at: float) -> bool:
    if not _is_alive(pid):
        return False
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        running_seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):  # it ended in this moment, or this is no Linux
        return _is_alive(pid)
    return time.time() - running_seconds < begun_at + _YOUNGER_SECONDS


def _is_alive(pid: int) -> bool:
    """True while a process of this number runs on this machine.

    A zombie does not run. In a container whose first process reaps nobody, zombies stay for ever.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        state = (
            Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[0]
        )
    except (OSError, IndexError):  # it ended in this moment, or this is no Linux
        return not Path("/proc/self").exists()
    return state not in "ZX"
