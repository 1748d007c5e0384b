"""A take-over, for the command `fuploader migrate`.

    plan = examine(pipeline)                 # changes nothing
    take_over(pipeline)                      # look, plan, apply; safe to repeat

It must come before the pipeline drains. What FUploader wrote but did not acknowledge comes again
from the queue, and the drain recognises it as a redelivery only if it is already sealed.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, closing, nullcontext

from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.intake.leftovers import root_of
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.sealing import SealedSlot
from fuploader_dagster.takeover.apply import Progress, apply
from fuploader_dagster.takeover.former_redis import FormerRedis
from fuploader_dagster.takeover.look import look, refuse_if_alive
from fuploader_dagster.takeover.plan import Plan, plan

log = logging.getLogger(__name__)


def examine(pipeline: Pipeline, *, stopped: bool = False) -> Plan:
    """What a take-over would do now. Changes nothing, and may be asked while FUploader runs."""
    with _redis(pipeline) as redis:
        return plan(look(pipeline, redis, stopped=stopped))


def take_over(
    pipeline: Pipeline, *, stopped: bool = False, progress: Progress | None = None
) -> list[SealedSlot]:
    """Adopt everything that FUploader left; returns what was sealed.

    `stopped`: the caller guarantees that FUploader does not run. Raises `SlotInUse` if it does, or
    if another process takes over at the moment; `StateUnavailable` and `StoreUnavailable` if Redis
    or the object store has to be asked and does not answer. None of these loses anything.
    """
    with FileLock(pipeline.layout.root / "locks" / "takeover.lock"), _redis(pipeline) as redis:
        found = plan(look(pipeline, redis, stopped=stopped))
        refuse_if_alive(found.alive, root_of(pipeline))
        for remark in found.remarks:
            log.warning("taking over from FUploader: %s", remark)
        sealed = apply(found, pipeline, redis, progress)
    if sealed:
        _register(pipeline, sealed)
    return sealed


def _redis(pipeline: Pipeline) -> AbstractContextManager[FormerRedis | None]:
    """The Redis in which FUploader kept its state; None if there is none."""
    url = pipeline.takeover.redis_url or pipeline.state.redis_url()
    return nullcontext() if url is None else closing(FormerRedis(url))


def _register(pipeline: Pipeline, sealed: list[SealedSlot]) -> None:
    """Have the new slots become partitions soon; recovery finds them by itself a little later."""
    try:
        with pipeline.state.opened(pipeline=pipeline.name, node=pipeline.node) as state:
            state.add_sealed([slot.seal.partition for slot in sealed])
    except FuploaderError as error:
        log.warning("%d adopted slots wait for recovery to register them: %s", len(sealed), error)
