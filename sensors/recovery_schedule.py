"""The recovery schedule: asks again for whatever is on the disk without a verified object, and for
rows that sinks are owed.

It needs no memory: it finds from the directories what failed, was interrupted or never registered,
and leaves to a queued or working run what that is about to handle (`busy_runs`). While somebody has
paused the shipping it asks for nothing. While the object store does not answer, it asks for nothing
but rows of slots on the disk, and looks at the store until that is back.
"""

import logging
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import chain
from typing import Any

import dagster as dg

from fuploader_dagster.assets.overrides import queue_and_state, with_resources
from fuploader_dagster.assets.partitions import (
    Names,
    contiguous_ranges,
    keys_of_run,
    run_request,
    slots_per_run,
)
from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.control.wishes import current
from fuploader_dagster.delivery import notices, recovery
from fuploader_dagster.delivery.processor_trouble import held_back
from fuploader_dagster.delivery.ship import mend_unreadable
from fuploader_dagster.delivery.store_trouble import find_trouble, still_in_trouble
from fuploader_dagster.errors import (
    FuploaderError,
    OutdatedCopy,
    StateRefused,
    StateUnavailable,
)
from fuploader_dagster.sensors.busy_runs import (
    UnfinishedRun,
    busy_keys,
    given_up,
    unfinished_runs,
    what_blocks,
)
from fuploader_dagster.sensors.dead_runs import end_dead_runs
from fuploader_dagster.sensors.default_status import schedule_status
from fuploader_dagster.sensors.dry_runs import SAID, is_dry_run
from fuploader_dagster.settings.pipeline import Pipeline

HOUSEKEEPING_MINUTE = 0
"""Of each hour. Unfinished uploads cost money by the day, and listing them costs a request."""

log = logging.getLogger(__name__)


def build_recovery_schedule(pipeline: Pipeline, *, running: bool = True) -> dg.ScheduleDefinition:
    """The recovery schedule of a pipeline, once a minute."""
    names = Names.of(pipeline)

    @dg.schedule(
        name=f"{names.scope}_recovery",
        job_name=names.ship_job,
        cron_schedule="* * * * *",
        execution_timezone="UTC",
        default_status=schedule_status(running=running),
        required_resource_keys=queue_and_state(pipeline),
        description="Asks for runs of slots without a verified object, and of rows that are owed.",
    )
    def recover(
        context: dg.ScheduleEvaluationContext, **_: Any
    ) -> list[dg.RunRequest] | dg.SkipReason:
        dry, used = is_dry_run(context), with_resources(pipeline, context)
        registered = context.instance.get_dynamic_partitions(names.partition_set)
        dead = [] if dry else end_dead_runs(context.instance, names)
        every = unfinished_runs(context.instance, names, pipeline.layout, registered)
        runs = [run for run in every if run.ships(names)]
        # Dead runs still count this time: Dagster may be about to start them again.
        of_dead = {key for run in dead for key in keys_of_run(run.tags, registered)}
        busy = busy_keys(runs) | of_dead
        trouble = find_trouble(pipeline.layout) if dry else still_in_trouble(pipeline)
        found, now = recovery.look(pipeline), time.time()
        busy_rows = {
            name: busy_keys([run for run in every if run.stores_rows(names.sink(name))]) | of_dead
            for name in pipeline.sinks
        }
        plan = recovery.plan(
            found, pipeline, busy=busy, busy_rows=busy_rows, ships=trouble is None, now=now
        )
        due = recovery.plan(found, pipeline, busy=(), now=now).ask
        for sentence in given_up(plan.ask, runs):
            context.log.warning(sentence)
        asked, idle = held_back(plan.ask, pipeline, now)
        ranges = list(contiguous_ranges(asked, registered, slots_per_run(pipeline)))
        if trouble is not None:
            ranges = []
        moment = f"{context.scheduled_execution_time:%Y%m%dT%H%M}"
        requests = [
            run_request(names, keys, run_key=f"recovery:{moment}:{keys[0]}") for keys in ranges
        ]
        requests += [
            run_request(
                names, keys, run_key=f"rows:{name}:{moment}:{keys[0]}", assets=[names.sink(name)]
            )
            for name, owed in _rows_to_store(plan, found, names, every).items()
            for keys in contiguous_ranges(owed, registered, pipeline.sinks[name].partitions_per_run)
        ]
        shipping = current(used, changing=not dry).shipping
        if shipping.paused:
            requests = []
        if not dry:
            _do_what_needs_no_run(plan, requests, registered, used, context)
        if not requests:
            summary = (
                f"{counted(len(found.sealed), 'slot')} on disk, {len(busy):,} in runs, "
                f"{len(found.failures):,} failed and waiting for their next attempt"
            )
            paused = f"shipping is paused {shipping}" if shipping.paused else ""
            said = SAID if dry else ""
            told = [said, paused, str(trouble or ""), idle, summary, what_blocks(due, runs)]
            told += [
                f"sink {name}: {counted(len(rows.owed), 'slot is', 'slots are')} owed"
                + (f", {rows.trouble}" if rows.trouble else "")
                for name, rows in found.rows.items()
                if rows.owed
            ]
            return dg.SkipReason("; ".join(filter(None, told)))
        return requests

    return recover


def _rows_to_store(
    plan: recovery.Plan,
    found: recovery.Found,
    names: Names,
    runs: Sequence[UnfinishedRun],
) -> dict[str, Sequence[str]]:
    """By sink, the partitions for runs of just that sink. While a sink takes nothing, at most one
    such run tries."""
    return {
        name: owed
        for name, owed in plan.rows.items()
        if found.rows[name].trouble is None
        or not any(run.works and set(run.selected) == {names.sink(name)} for run in runs)
    }


def _do_what_needs_no_run(
    plan: recovery.Plan,
    requests: Sequence[dg.RunRequest],
    registered: Sequence[str],
    pipeline: Pipeline,
    context: dg.ScheduleEvaluationContext,
) -> None:
    """Remove, seal, mend, register. Trouble with the state store holds up no run."""
    recovery.apply(plan, pipeline)
    notices.wake(pipeline)
    forgotten = [*_seal_abandoned(pipeline, context), *mend_unreadable(pipeline)]
    forgotten += sorted({*plan.ask, *chain(*plan.rows.values())} - set(registered))
    try:
        _hand_to_sensor(pipeline, forgotten)
    except FuploaderError as error:
        if not requests:
            raise
        context.log.error(
            f"{counted(len(forgotten), 'slot')} could not be queued for registration: {error}"
        )
    if context.scheduled_execution_time.minute == HOUSEKEEPING_MINUTE:
        _keep_house(pipeline)


def _seal_abandoned(pipeline: Pipeline, context: dg.ScheduleEvaluationContext) -> list[str]:
    """Keys of the slots that are sealed. Without the state store a later tick does it; an outdated
    copy of the storage root stays as it is."""
    hurried = pipeline.model_copy(update={"state": pipeline.state.in_a_hurry()})
    try:
        return [slot.seal.partition for slot in recovery.seal_abandoned(hurried)]
    except (OutdatedCopy, StateUnavailable, StateRefused) as error:
        context.log.error(f"slots that no worker owns stay open: {error}")
        return []


def _keep_house(pipeline: Pipeline) -> None:
    """Abort unneeded uploads, in a thread: the store's retries take longer than a tick may."""
    if find_trouble(pipeline.layout) is not None:
        return

    def abort() -> None:
        try:
            now = datetime.now(tz=timezone.utc)
            recovery.abort_unneeded_uploads(pipeline, pipeline.store.open(), now)
        except (FuploaderError, OSError) as error:
            log.warning("%s: could not look for unneeded uploads: %s", pipeline.name, error)

    threading.Thread(target=abort, daemon=True, name="unfinished uploads").start()


def _hand_to_sensor(pipeline: Pipeline, keys: list[str]) -> None:
    """Queue keys that no tick has registered, in case the state store was lost (`waiting_list`)."""
    if not keys:
        return
    settings = pipeline.state.in_a_hurry()
    with settings.opened(pipeline=pipeline.name, node=pipeline.node) as state:
        state.add_sealed(keys)
