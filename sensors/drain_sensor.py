"""The drain sensor: each tick keeps the workers alive and turns sealed slots into runs.

It learns of sealed slots from the state store, where the drain lists them (`waiting_list` describes
this hand-over).

What must always hold: a tick takes milliseconds, whatever the queue, the disk or the store do. The
workers' lease is renewed first, so trouble with anything else does not stop the drain. Keys leave
the waiting list only when a later tick sees their partitions in the instance, so a tick whose
answer was lost is simply repeated. Only the tick of a running sensor does anything: a test by hand
says what a tick would do.

A run costs Dagster seconds of CPU before it does anything. Under load, a run for each tick's few
slots would take more of the machine than draining and shipping. So while the last run of this
sensor is not over, slots wait for it and share the next one, unless they are enough for a run of
their own. They wait at most `LONGEST_WAIT_SECONDS`, so a run that hangs holds nothing up.
"""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec

from fuploader_dagster.assets.checks import reachable
from fuploader_dagster.assets.dead_letters import Reported, report
from fuploader_dagster.assets.outcomes import moment
from fuploader_dagster.assets.overrides import queue_and_state, with_resources
from fuploader_dagster.assets.partitions import (
    UNFINISHED_RUNS,
    Names,
    chunks,
    run_request,
    slots_per_run,
)
from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.state import Snapshot
from fuploader_dagster.control.wishes import PARTS, Wishes, known
from fuploader_dagster.delivery.processor_trouble import processor_trouble_of
from fuploader_dagster.delivery.store_trouble import find_refusal, find_trouble
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.place import machine
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.intake.leftovers import refuse_leftovers
from fuploader_dagster.intake.supervisor import supervisor_for
from fuploader_dagster.intake.worker_status import WorkerStatus, read_statuses
from fuploader_dagster.sensors.busy_runs import named
from fuploader_dagster.sensors.default_status import sensor_status
from fuploader_dagster.sensors.dry_runs import SAID, is_dry_run
from fuploader_dagster.sensors.waiting_list import WaitingList
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.safe_text import in_a_line
from fuploader_dagster.slots.sealing import find_sealed

MINIMUM_INTERVAL_SECONDS = 1
"""The daemon looks at sensors every 5 s and skips those whose interval has not passed. With 5 s
here, a tick that came a moment late would leave a gap of 10 s, longer than the lease."""
KEYS_PER_TICK = 320
"""Registering a key costs the daemon about 10 ms; the rest waits for the next tick."""
LONGEST_WAIT_SECONDS = 9.0
"""How long a sealed slot waits for the end of the previous run, while messages come."""
FAIL_AGAIN_SECONDS = 300.0
"""While one trouble lasts, a tick fails this often. Those between are skipped and say it."""
IN_TROUBLE = "in trouble: "
"""How the reason of such a tick begins."""
_FIGURES = re.compile(r"[0-9][0-9.,:]*")
_failed_last: dict[Path, tuple[str, float]] = {}
"""By pipeline: what a tick of this process last failed with, and when."""
_MOST_SHARES = 8
_SENSOR_TAG = "dagster/sensor_name"
_Event = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation


class DrainTrouble(Exception):
    """What keeps the drain from draining. Fails the tick, so that the UI shows it."""

    def __init__(self, said: str) -> None:
        super().__init__(in_a_line(said))


class _Cursor(msgspec.Struct):
    """What the last tick saw, for rates."""

    at: float = 0.0
    stored_messages: int = 0
    dead_letters: int = 0
    asked_at: float = 0.0
    """When runs were last asked for."""
    reported: Reported = msgspec.field(default_factory=Reported)
    store_down: bool | None = None
    """What was last reported for the check `store_reachable`; None: nothing yet."""
    paused: str = ""
    """What was last reported of the queue: what is paused."""


def build_drain_sensor(pipeline: Pipeline, *, running: bool = True) -> dg.SensorDefinition:
    """The drain sensor of a pipeline; `running`: on as soon as Dagster loads it."""
    names = Names.of(pipeline)
    partitions = names.partitions()

    @dg.sensor(
        name=names.drain_sensor,
        job_name=names.ship_job,
        minimum_interval_seconds=MINIMUM_INTERVAL_SECONDS,
        default_status=sensor_status(running=running),
        required_resource_keys=queue_and_state(pipeline),
        description="Keeps the drain workers running, registers sealed slots and asks for runs. "
        "It ticks every 5 seconds, as often as Dagster's daemon looks at sensors.",
    )
    def drain(context: dg.SensorEvaluationContext, **_: Any) -> dg.SensorResult:
        dry = is_dry_run(context)
        used = with_resources(pipeline, context)
        problems = _problems(used, dry=dry)
        layout, root = pipeline.layout, pipeline.layout.root
        try:
            new, elsewhere, snapshot, wishes = _look(used, context.instance, names, dry=dry)
        except FuploaderError as error:
            others = [problem for problem in problems if str(error) not in problem]
            return _in_trouble("; ".join([*others, str(error)]), root, dry=dry)
        if problems and not new:
            return _in_trouble("; ".join(problems), root, dry=dry)
        if problems and _is_news("; ".join(problems), root):
            context.log.error("; ".join(problems))
        if not problems:
            _failed_last.pop(root, None)
        now, last = time.time(), _read_cursor(context.cursor)
        letters, reported = report(pipeline, last.reported, now)
        events: list[_Event] = [*letters]
        trouble, refusal = find_trouble(layout), find_refusal(layout)
        idle, store_down = processor_trouble_of(pipeline), bool(trouble or refusal)
        if last.store_down is not store_down:
            events.append(reachable(pipeline, trouble or refusal))
        if str(wishes) != last.paused:
            events.append(_wanted(names, wishes))
        of_others = _elsewhere(elsewhere, pipeline)
        now_doing = _summary(last, snapshot, layout, now)
        summary = "; ".join(filter(None, (str(wishes), of_others, now_doing)))
        if dry:
            summary = f"{SAID}; a tick would {_duty(pipeline)}; {summary}"
        waits_for = _last_run(len(new), now - last.asked_at, pipeline, names, context.instance)
        if wishes.shipping.paused:  # they stay on the waiting list, so that conditions ask neither
            waits_for = "the pause"
        waiting = waits_for is not None
        asked_at = now if new and not waiting else last.asked_at
        following = _Cursor(
            now,
            snapshot.stored_messages,
            snapshot.dead_letters,
            asked_at,
            reported,
            store_down,
            str(wishes),
        )
        cursor = msgspec.json.encode(following).decode()
        if waiting or not new:
            held = (
                f"{counted(len(new), 'sealed slot waits', 'sealed slots wait')} for the end "
                f"of {waits_for}; "
                if new
                else ""
            )
            down = "".join(f"{one}; " for one in (trouble or refusal, idle) if one)
            return dg.SensorResult(
                skip_reason=down + held + summary, asset_events=events, cursor=cursor
            )
        context.log.info(summary)  # only here: each tick that logs leaves a file
        return dg.SensorResult(
            dynamic_partitions_requests=[partitions.build_add_request(new)],
            # While store or processor do not work, recovery keeps them and asks when they do.
            run_requests=[]
            if pipeline.runs_by == "automation" or trouble or idle
            else [
                run_request(names, keys, run_key=f"sealed:{keys[0]}:{keys[-1]}")
                for keys in chunks(new, slots_per_run(pipeline))
            ],
            asset_events=[
                *(_sealed_event(names, pipeline.layout, key) for key in new),
                *events,
            ],
            cursor=cursor,
        )

    return drain


def _in_trouble(sentence: str, root: Path, *, dry: bool) -> dg.SensorResult:
    """Fail the tick with the sentence if it is news; otherwise skip it with one line.

    A failed tick leaves some 40 lines of traceback in the daemon's log, and a tick comes every 5 s.
    """
    if dry or _is_news(sentence, root):
        raise DrainTrouble(sentence) from None  # its cause is in the sentence
    return dg.SensorResult(skip_reason=f"{IN_TROUBLE}{sentence}")


def _is_news(sentence: str, root: Path) -> bool:
    """Whether this was not said lately. Numbers in it may change."""
    gist, now = _FIGURES.sub("#", sentence), time.monotonic()
    said, at = _failed_last.get(root, ("", 0.0))
    if gist == said and now - at < FAIL_AGAIN_SECONDS:
        return False
    _failed_last[root] = (gist, now)
    return True


def _problems(pipeline: Pipeline, *, dry: bool) -> list[str]:
    """What keeps the workers from draining; unless that is so from the start, their lease is
    renewed."""
    try:
        refuse_leftovers(pipeline)
    except FuploaderError as error:
        return [str(error)]
    if dry or pipeline.drain_by != "sensor":
        return _told_by_workers(pipeline)
    supervisor = supervisor_for(pipeline.intake())
    supervisor.renew()
    if pipeline.metrics_port is not None:
        from fuploader_dagster.health.metrics_port import offer_metrics  # noqa: PLC0415  few ask

        offer_metrics(pipeline)
    return supervisor.problems()


def _told_by_workers(pipeline: Pipeline) -> list[str]:
    """What the workers of `fuploader drain` report of themselves."""
    told = read_statuses(pipeline.layout)
    drained = {one.worker for one in told if one.doing == "draining"}
    troubled = [one for one in told if one.problem and one.worker not in drained]
    return [f"worker {one.worker}: {one.problem}" for one in troubled]


def _duty(pipeline: Pipeline) -> str:
    if pipeline.drain_by != "sensor":
        return "start no workers (drain_by: command)"
    return f"keep {counted(pipeline.process_count, 'worker')} running"


def _look(
    pipeline: Pipeline, instance: dg.DagsterInstance, names: Names, *, dry: bool
) -> tuple[list[str], int, Snapshot, Wishes]:
    """Sealed slots to be registered, the number of those on another disk, what the state store
    knows, and what is paused."""
    settings = pipeline.state.in_a_hurry()
    with settings.opened(pipeline=pipeline.name, node=pipeline.node) as state:
        waiting = WaitingList(state, pipeline, changing=not dry)
        new = waiting.unregistered(instance, names, KEYS_PER_TICK)
        return (
            new,
            waiting.elsewhere,
            state.snapshot(),
            known(pipeline.layout, state, changing=not dry),
        )


def _last_run(
    slots: int, seconds: float, pipeline: Pipeline, names: Names, instance: dg.DagsterInstance
) -> str | None:
    """The run that this many sealed slots wait for, to share the next one; None if they need not.

    `seconds` have passed since runs were last asked for. Starting a run takes CPU from the workers.
    """
    enough = slots >= min(slots_per_run(pipeline), KEYS_PER_TICK)
    if not slots or enough or seconds >= LONGEST_WAIT_SECONDS or pipeline.runs_by == "automation":
        return None
    if not any(worker.messages_per_second for worker in read_statuses(pipeline.layout)):
        return None
    of_this_sensor = dg.RunsFilter(
        job_name=names.ship_job,
        statuses=[one for one in UNFINISHED_RUNS if one is not dg.DagsterRunStatus.CANCELING],
        tags={_SENSOR_TAG: names.drain_sensor},
    )
    for record in instance.get_run_records(of_this_sensor, limit=1):
        return named(record)
    return None


def _elsewhere(slots: int, pipeline: Pipeline) -> str:
    if not slots:
        return ""
    return (
        f"{counted(slots, 'sealed slot is', 'sealed slots are')} of node {pipeline.node}, but "
        f"not on the disk of this machine, "
        f"{machine()}: left to the one that has them. If that is another machine, give "
        f"each a node_id of its own"
    )


def _read_cursor(cursor: str | None) -> _Cursor:
    try:
        return msgspec.json.decode(cursor or "{}", type=_Cursor)
    except ValueError:
        return _Cursor()


def _summary(last: _Cursor, snapshot: Snapshot, layout: Layout, now: float) -> str:
    """What the pipeline is doing, in a sentence."""
    handled = max(0, snapshot.stored_messages - last.stored_messages)
    rate = handled / (now - last.at) if last.at and now > last.at else 0.0
    growing = sum(slot.messages for slot in snapshot.slots)
    summary = (
        f"{rate:,.0f} messages/s; {growing:,} in {counted(len(snapshot.slots), 'active slot')}; "
        f"{snapshot.stored_messages:,} stored, {counted(snapshot.duplicates, 'duplicate')}, "
        f"{counted(snapshot.dead_letters, 'dead letter')} in total"
    )
    workers = read_statuses(layout)
    summary += _shares(workers)
    new_dead = snapshot.dead_letters - last.dead_letters
    if new_dead > 0 and last.at:
        reasons = [one.last_dead_reason for one in workers if one.last_dead_reason]
        because = f", the last one because {in_a_line(reasons[-1])}" if reasons else ""
        became = counted(new_dead, "message became a dead letter", "messages became dead letters")
        return f"{became} since the last tick{because}; {summary}"
    return summary


def _shares(workers: Sequence[WorkerStatus]) -> str:
    """Who reads what, where the queue gives each worker a part of it."""
    told = [f"worker {one.worker} reads {in_a_line(one.reads)}" for one in workers if one.reads]
    if len(told) > _MOST_SHARES:
        told = [*told[:_MOST_SHARES], f"and {len(told) - _MOST_SHARES:,} more"]
    return "".join(f"; {one}" for one in told)


def _sealed_event(names: Names, layout: Layout, key: str) -> dg.AssetMaterialization:
    """What the UI shows of a sealed slot; one that is shipped already has no metadata."""
    try:
        slot = find_sealed(layout, key)
    except FuploaderError as error:
        return dg.AssetMaterialization(
            names.sealed_slot, partition=key, metadata={"problem": str(error)}
        )
    metadata = (
        {
            "messages": slot.seal.messages,
            "payload_bytes": slot.seal.payload_bytes,
            "reason": slot.seal.reason,
            "dagster/partition_row_count": slot.seal.messages,
            "sealed_at": moment(slot.seal.sealed_at),
            "object_key": slot.seal.object_key or slot.seal.key_problem,
            **({"split": _split(slot.seal.split)} if slot.seal.split else {}),
            "directory": dg.MetadataValue.path(str(slot.directory)),
        }
        if slot is not None
        else {}
    )
    return dg.AssetMaterialization(names.sealed_slot, partition=key, metadata=metadata)


def _wanted(names: Names, wishes: Wishes) -> dg.AssetObservation:
    """What is wanted of intake and shipping, at the queue: reported when it changes."""
    metadata = {
        str(part): f"paused {wishes.of(part)}" if wishes.of(part).paused else "runs"
        for part in PARTS
    }
    return dg.AssetObservation(names.queue, metadata=metadata)


def _split(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
