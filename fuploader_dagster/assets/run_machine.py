"""On which machine a run works: a tag that it gets at its first step.

Dagster records a run's process id and not its machine. Several machines have processes of the same
number, and only the machine that started one can tell whether it is gone (`sensors/dead_runs.py`).

What must always hold: the tag of another run counts for nothing. A run that is started again gets
the tags of the first one, so the tag names its run: `{machine}, run {first 8 digits of its id}`.
"""

from __future__ import annotations

import dagster as dg

from fuploader_dagster.disk.place import machine

MACHINE_TAG = "fuploader/machine"


def note_machine(
    context: dg.OpExecutionContext | dg.AssetExecutionContext,
) -> None:
    """Give the run of this step the tag. Called first in each step; may be repeated."""
    context.instance.add_run_tags(context.run_id, machine_tag(context.run_id))


def machine_tag(run_id: str) -> dict[str, str]:
    """The tag of a run that works on this machine."""
    return {MACHINE_TAG: f"{machine()}{_of(run_id)}"}


def machine_of(run: dg.DagsterRun) -> str | None:
    """The machine on which the run works; None if it has not come to a step."""
    told = run.tags.get(MACHINE_TAG, "")
    return told.removesuffix(_of(run.run_id)) if told.endswith(_of(run.run_id)) else None


def _of(run_id: str) -> str:
    return f", run {run_id[:8]}"
