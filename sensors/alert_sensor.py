"""The alert sensor: once a minute it posts to `alert_webhook` what a person should know.

Uses private names of Dagster, as they are in 1.13 (pyproject.toml allows no other).

It needs no other sensor: with the drain sensor off it still watches the disk, the object store,
dead letters and failed slots. A drain sensor that is off is no trouble, because somebody switched
it off; trouble of the drain that was posted before then ends, and the message says why.

What was posted is noted in the pipeline's folder (`alert_memory`), so neither a restart nor another
daemon repeats or forgets anything. What could not be delivered is tried again at the next tick.
"""

import logging
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import dagster as dg
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, TickStatus
from dagster_shared.error import SerializableErrorInfo

from fuploader_dagster.assets.overrides import queue_and_state, with_resources
from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.errors import FuploaderError, SlotInUse
from fuploader_dagster.health.alert_look import Draining, FailedRun, look
from fuploader_dagster.health.alert_memory import read_memory, write_memory
from fuploader_dagster.health.alert_post import post
from fuploader_dagster.health.alerts import Alert, Memory, due, noticed, told
from fuploader_dagster.sensors.default_status import sensor_status
from fuploader_dagster.sensors.drain_sensor import IN_TROUBLE
from fuploader_dagster.sensors.dry_runs import SAID, is_dry_run
from fuploader_dagster.sensors.failure_sensor import is_of
from fuploader_dagster.settings.pipeline import Pipeline

INTERVAL_SECONDS = 60
RUNS_LOOKED_AT = 200
RUNS_OVERLAP_SECONDS = 120.0
"""Each process notes the changes of its run by its own clock and in its own transaction."""
TICKS_LOOKED_AT = 40
OLD_TICK_SECONDS = 600.0
_WILL_RETRY = "dagster/will_retry"

log = logging.getLogger(__name__)


class AlertNotSent(Exception):
    """Fails the tick, so that the UI shows it."""


def build_alert_sensor(pipeline: Pipeline, *, running: bool = True) -> dg.SensorDefinition | None:
    """The alert sensor of a pipeline; None without a webhook."""
    if pipeline.alert_webhook is None:
        return None

    @dg.sensor(
        name=Names.of(pipeline).alert_sensor,
        job_name=Names.of(pipeline).ship_job,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=sensor_status(running=running),
        required_resource_keys=queue_and_state(pipeline),
        description="Posts trouble that a person should know of to alert_webhook, and its end.",
    )
    def alert(context: dg.SensorEvaluationContext, **_: Any) -> dg.SkipReason:
        now, instance = time.time(), context.instance
        used = with_resources(pipeline, context)
        if is_dry_run(context):
            memory = _looked(used, instance, running, now)
            texts = [_message(one, pipeline)["text"] for one in due(memory, now)]
            return dg.SkipReason(f"{SAID}; a tick would post: {'; '.join(texts) or 'nothing'}")
        return dg.SkipReason(tell(used, instance, running=running, now=now))

    return alert


def tell(pipeline: Pipeline, instance: dg.DagsterInstance, *, running: bool, now: float) -> str:
    """Look, post what is due, and note it. Returns what the tick shows.

    Raises `AlertNotSent` if something could not be posted.
    """
    try:
        with FileLock(pipeline.layout.locks / "alerts.lock"):
            return _tell(pipeline, instance, running, now)
    except SlotInUse:
        return "another tick is posting at this moment"


def _tell(pipeline: Pipeline, instance: dg.DagsterInstance, running: bool, now: float) -> str:
    assert pipeline.alert_webhook is not None  # noqa: S101 - there would be no sensor
    url = pipeline.alert_webhook.get_secret_value()
    memory = _looked(pipeline, instance, running, now)
    write_memory(pipeline.layout, memory)
    posted, problem = 0, None
    for alert in list(due(memory, now)):
        try:
            post(url, _message(alert, pipeline))
        except FuploaderError as error:
            problem = str(error)
            log.error("%s: %s", pipeline.name, problem)
            break  # the rest waits: an end must not be posted before its beginning
        memory = told(memory, alert, now)
        write_memory(pipeline.layout, memory)
        posted += 1
    if problem:
        raise AlertNotSent(problem)
    lasting = sorted({one.kind for one in memory.episodes.values() if not one.over_since})
    return f"{counted(posted, 'alert')} posted; current trouble: {', '.join(lasting) or 'none'}"


def _looked(pipeline: Pipeline, instance: dg.DagsterInstance, running: bool, now: float) -> Memory:
    """What is known after a look; changes nothing."""
    names, before = Names.of(pipeline), read_memory(pipeline.layout)
    memory, runs = _failed_runs(before or Memory(runs_until=now), instance, names)
    if before is None:
        runs = []  # they failed before there was anybody to tell
    draining = _draining(instance, names, running, now)
    going_on = [one.kind for one in memory.episodes.values() if not one.over_since]
    return noticed(memory, look(pipeline, draining, runs, now=now, going_on=going_on), now)


def _message(alert: Alert, pipeline: Pipeline) -> dict[str, Any]:
    return alert.message(pipeline=pipeline.name, node=pipeline.node)


def _failed_runs(
    memory: Memory, instance: dg.DagsterInstance, names: Names
) -> tuple[Memory, Sequence[FailedRun]]:
    """The pipeline's runs that failed since the last look, except those that Dagster retries."""
    after = datetime.fromtimestamp(memory.runs_until - RUNS_OVERLAP_SECONDS, timezone.utc)
    filters = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=after)
    records = instance.get_run_records(filters, limit=RUNS_LOOKED_AT)
    found = []
    for record in reversed(records):
        run = record.dagster_run
        if run.run_id in memory.runs_known or run.tags.get(_WILL_RETRY) == "true":
            continue
        if is_of(run, names):
            found.append(FailedRun(run.run_id, _reason(instance, run)))
    after_these = Memory(
        episodes=memory.episodes,
        runs_until=max([memory.runs_until, *(one.update_timestamp.timestamp() for one in records)]),
        runs_known=tuple(sorted(record.dagster_run.run_id for record in records)),
    )
    return after_these, found


def _reason(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    events = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    said = [one.dagster_event.message for one in events if one.dagster_event]
    return (said[-1] if said else None) or "The run's log does not say why."


def _draining(instance: dg.DagsterInstance, names: Names, running: bool, now: float) -> Draining:
    """Whether the drain sensor is on, and why its last ticks failed, if they all did."""
    states = instance.all_instigator_state(instigator_type=InstigatorType.SENSOR)
    ours = [one for one in states if one.name == names.drain_sensor]
    if not ours:
        return Draining(wanted=running)
    state = ours[-1]
    if state.status is InstigatorStatus.STOPPED:
        return Draining(wanted=False)
    wanted = running or state.status is InstigatorStatus.RUNNING
    problem, since = _tick_problem(instance, state, now)
    return Draining(wanted, problem, since)


def _tick_problem(
    instance: dg.DagsterInstance, state: InstigatorState, now: float
) -> tuple[str, float]:
    ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=TICKS_LOOKED_AT)
    problem, since = "", now
    for tick in ticks:  # the newest first
        if tick.status is TickStatus.STARTED:
            continue
        skipped = tick.skip_reason or ""  # between two failures with the same sentence
        troubled = tick.status is TickStatus.FAILURE or skipped.startswith(IN_TROUBLE)
        if not troubled or now - tick.timestamp > OLD_TICK_SECONDS:
            break
        said = skipped.removeprefix(IN_TROUBLE) or _sentence(tick.error, state.name)
        problem = problem or said
        since = tick.timestamp
    return problem, since


def _sentence(error: SerializableErrorInfo | None, sensor: str) -> str:
    """What the drain sensor said. The text of other errors is not posted: it may hold anything."""
    while error is not None and error.cls_name != "DrainTrouble":
        error = error.cause
    if error is None:
        return f"the ticks of {sensor} fail: see their errors in the UI"
    return error.message.partition(": ")[2].strip()
