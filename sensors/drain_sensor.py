"""The drain sensor: each tick keeps the workers alive and turns sealed slots into runs.

What must always hold: a tick takes milliseconds, whatever the queue, the disk or the store do. The
workers' lease is renewed first, so trouble with anything else does not stop the drain. Keys leave
the state store's waiting list only when a later tick sees their partitions in the instance; so a
tick whose answer was lost is simply repeated. Only keys of this pipeline's own slots are
registered: whatever else somebody put into that list is taken out of it and logged.

A run costs Dagster seconds of CPU before it does anything, so under load a run for each tick's few
slots would take more of the machine than draining and shipping. While the last run of this sensor
is not over, slots wait for it and share the next one; not when they are enough for a run of their
own, and not longer than `LONGEST_WAIT_SECONDS`, so that a run that hangs holds nothing up.
"""

import logging
import time
from collections.abc import Sequence

import dagster as dg
import msgspec

from fuploader_dagster.config import Pipeline
from fuploader_dagster.dead_letter_asset import Reported, report
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.layout import Layout, PartitionKey
from fuploader_dagster.partitions import UNFINISHED_RUNS, Names, chunks, run_request
from fuploader_dagster.sealing import find_sealed
from fuploader_dagster.sensors.busy_runs import named
from fuploader_dagster.state import Snapshot, StateStore
from fuploader_dagster.supervisor import supervisor_for
from fuploader_dagster.taking_over import gate_of
from fuploader_dagster.worker_status import read_statuses

MINIMUM_INTERVAL_SECONDS = 1
"""The daemon looks at sensors every 5 s and skips those whose interval has not passed; with 5 s
here a tick that came a moment late would be followed by a gap of 10 s, longer than the lease."""
KEYS_PER_TICK = 320
"""A registered key costs the daemon about 10 ms; the rest waits for the next tick."""
KEYS_LOOKED_AT = 10_000
"""A worker that starts queues all that lies sealed, also what was registered long ago and waits
for a store that is down. New keys come last and must not wait until all those were passed over."""

LOOKS_PER_TICK = 10
"""As many times a tick looks again where it found nothing but junk in the waiting list."""
LONGEST_KEY = 200
"""Characters. Ours have about 100 with the longest node_id; each names a lock file, too."""

LONGEST_WAIT_SECONDS = 9.0
"""Of a sealed slot for the end of the run before, while messages come."""
_SENSOR_TAG = "dagster/sensor_name"

log = logging.getLogger(__name__)


class DrainTrouble(Exception):
    """What keeps the drain from draining. The tick fails with it, so that the UI shows it."""


class _Cursor(msgspec.Struct):
    """What the last tick saw, for rates."""

    at: float = 0.0
    stored_messages: int = 0
    dead_letters: int = 0
    asked_at: float = 0.0
    """When runs were asked for last."""
    reported: Reported = msgspec.field(default_factory=Reported)


def build_drain_sensor(pipeline: Pipeline, *, running: bool) -> dg.SensorDefinition:
    """The drain sensor of a pipeline; `running`: on without anybody switching it on."""
    names = Names.of(pipeline)
    partitions = names.partitions()

    @dg.sensor(
        name=names.drain_sensor,
        job_name=names.ship_job,
        minimum_interval_seconds=MINIMUM_INTERVAL_SECONDS,
        default_status=(
            dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED
        ),
        description="Keeps the drain workers running; registers sealed slots and asks for runs.",
    )
    def drain(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        problems = _renew(pipeline)
        try:
            new, snapshot = _look(pipeline, context.instance, names)
        except FuploaderError as error:
            others = [problem for problem in problems if str(error) not in problem]
            raise DrainTrouble("; ".join([*others, str(error)])) from error
        for problem in problems:
            context.log.error(problem)
        if problems and not new:
            raise DrainTrouble("; ".join(problems))
        now, last = time.time(), _read_cursor(context.cursor)
        dead_letters, reported = report(pipeline, last.reported, now)
        summary = _summary(last, snapshot, pipeline.layout, now)
        context.log.info(summary)
        waits_for = (
            _last_run(len(new), now - last.asked_at, pipeline, names, context.instance)
            if new
            else None
        )
        waiting = waits_for is not None
        asked_at = now if new and not waiting else last.asked_at
        following = _Cursor(
            now, snapshot.stored_messages, snapshot.dead_letters, asked_at, reported
        )
        cursor = msgspec.json.encode(following).decode()
        if waiting or not new:
            held = f"{len(new)} sealed slots wait for the end of {waits_for}; " if waiting else ""
            return dg.SensorResult(
                skip_reason=held + summary, asset_events=dead_letters, cursor=cursor
            )
        return dg.SensorResult(
            dynamic_partitions_requests=[partitions.build_add_request(new)],
            run_requests=[]
            if pipeline.runs_by == "automation"
            else [
                run_request(names, keys, run_key=f"sealed:{keys[0]}:{keys[-1]}")
                for keys in chunks(new, pipeline.partitions_per_run)
            ],
            asset_events=[
                *(_sealed_event(names, pipeline.layout, key) for key in new),
                *dead_letters,
            ],
            cursor=cursor,
        )

    return drain


def _renew(pipeline: Pipeline) -> list[str]:
    if pipeline.drain_by != "sensor":  # somebody else's workers: what they say of themselves
        told = read_statuses(pipeline.layout)
        drained = {one.worker for one in told if one.doing == "draining"}
        troubled = [one for one in told if one.problem and one.worker not in drained]
        return [f"worker {one.worker}: {one.problem}" for one in troubled]
    if waits_for := gate_of(pipeline).closed():
        return [waits_for]
    supervisor = supervisor_for(pipeline.intake())
    supervisor.renew()
    return supervisor.problems()


def _look(
    pipeline: Pipeline, instance: dg.DagsterInstance, names: Names
) -> tuple[list[str], Snapshot]:
    """Sealed slots to be registered, and what the state store knows."""
    state = pipeline.state.in_a_hurry().store(pipeline=pipeline.name, node=pipeline.node)
    try:
        state.open()
        return _unregistered(state, instance, names, pipeline), state.snapshot()
    finally:
        state.close()


def _unregistered(
    state: StateStore, instance: dg.DagsterInstance, names: Names, pipeline: Pipeline
) -> list[str]:
    waiting = _waiting(state, pipeline)
    if not waiting:
        return []
    registered = instance.get_existing_dynamic_partitions(names.partition_set, waiting)
    state.forget_sealed([key for key in waiting if key in registered])
    return [key for key in waiting if key not in registered][:KEYS_PER_TICK]


def _waiting(state: StateStore, pipeline: Pipeline) -> list[str]:
    """Keys of slots of ours in the waiting list. The others are taken out of it.

    They would fail each tick (Dagster refuses some names) and stay at the head of the list.
    """
    for _ in range(LOOKS_PER_TICK):
        found = state.sealed(KEYS_LOOKED_AT)
        ours = [key for key in found if _is_ours(key, pipeline)]
        if len(ours) < len(found):
            kept = set(ours)
            _remove_junk(state, [key for key in found if key not in kept], pipeline)
        if ours or not found:
            return ours
    return []


def _is_ours(text: str, pipeline: Pipeline) -> bool:
    """Whether it is the key of a slot of this node, or of one that is sealed on its disk.

    The latter has another node's name after `node_id` was changed.
    """
    key = PartitionKey.parse(text) if len(text) <= LONGEST_KEY else None
    if key is None:
        return False
    if key.node == pipeline.node:
        return True
    try:
        return find_sealed(pipeline.layout, text) is not None
    except FuploaderError:  # its directory is damaged, and the run will say so
        return True


def _remove_junk(state: StateStore, junk: Sequence[str], pipeline: Pipeline) -> None:
    state.forget_sealed(junk)
    first = junk[0] if len(junk[0]) <= LONGEST_KEY else f"{junk[0][:LONGEST_KEY]}..."
    log.warning(
        "%s of pipeline %s on node %s listed %d strings as sealed slots that are no partition keys "
        "of ours, the first one %r; they were taken out of the list and nothing is lost: find out "
        "who else writes there",
        pipeline.state.describe(),
        pipeline.name,
        pipeline.node,
        len(junk),
        first,
    )


def _last_run(
    slots: int, seconds: float, pipeline: Pipeline, names: Names, instance: dg.DagsterInstance
) -> str | None:
    """The run whose end sealed slots wait for, to share the next one, so long after runs were
    asked for last; None if they need not. It is named as a tick shows it.

    Starting a run takes from the workers what they could drain with.
    """
    enough = slots >= min(pipeline.partitions_per_run, KEYS_PER_TICK)
    if enough or seconds >= LONGEST_WAIT_SECONDS or pipeline.runs_by == "automation":
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


def _read_cursor(cursor: str | None) -> _Cursor:
    try:
        return msgspec.json.decode(cursor or "{}", type=_Cursor)
    except ValueError:
        return _Cursor()


def _summary(last: _Cursor, snapshot: Snapshot, layout: Layout, now: float) -> str:
    """What is going on, in a sentence."""
    handled = max(0, snapshot.stored_messages - last.stored_messages)
    rate = handled / (now - last.at) if last.at and now > last.at else 0.0
    growing = sum(slot.messages for slot in snapshot.slots)
    summary = (
        f"{rate:,.0f} messages/s; {growing:,} in {len(snapshot.slots)} active slots; "
        f"{snapshot.stored_messages:,} stored, {snapshot.duplicates:,} duplicates, "
        f"{snapshot.dead_letters:,} dead letters in all"
    )
    new_dead = snapshot.dead_letters - last.dead_letters
    if new_dead > 0 and last.at:
        reasons = [s.last_dead_reason for s in read_statuses(layout) if s.last_dead_reason]
        because = f", the last one because {reasons[-1]}" if reasons else ""
        return f"{new_dead:,} messages became dead letters since the last tick{because}; {summary}"
    return summary


def _sealed_event(names: Names, layout: Layout, key: str) -> dg.AssetMaterialization:
    """What the UI shows of a sealed slot; a slot that is shipped already has only its name."""
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
            "sealed_at": slot.seal.sealed_at,
            "object_key": slot.seal.object_key or slot.seal.key_problem,
            "directory": dg.MetadataValue.path(str(slot.directory)),
        }
        if slot is not None
        else {}
    )
    return dg.AssetMaterialization(names.sealed_slot, partition=key, metadata=metadata)
