"""What workers, schedules and commands call to take over what FUploader left.

    plan = examine(settings)                 # changes nothing
    take_over(settings)                      # look, plan, apply; safe to repeat

It is done before a pipeline drains: what FUploader had written and not yet acknowledged comes again
from the queue, and the drain knows it for a redelivery only if it is sealed already.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuploader_dagster.disk.durable import FileLock
from fuploader_dagster.errors import FuploaderError, SlotInUse
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.sealing import SealedSlot
from fuploader_dagster.takeover.apply import Progress, apply
from fuploader_dagster.takeover.folders import is_pending, root_of
from fuploader_dagster.takeover.former_redis import FormerState
from fuploader_dagster.takeover.look import former_state, look, refuse_if_alive
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

    `stopped`: somebody vouches that FUploader does not run. Raises `SlotInUse` if it does, or if
    another process takes over at the moment; `StateUnavailable` and `StoreUnavailable` where Redis
    or the store have to be asked and do not answer. Nothing is lost by any of these.
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


def take_over_if_needed(pipeline: Pipeline) -> list[SealedSlot]:
    """Take over, if there is anything to take over and nobody forbade it."""
    if not pipeline.takeover.enabled or not is_pending(pipeline):
        return []
    log.warning("FUploader left directories in %s; they are taken over", root_of(pipeline))
    return take_over(pipeline)


@contextmanager
def _redis(pipeline: Pipeline) -> Iterator[FormerState | None]:
    redis = former_state(pipeline)
    try:
        yield redis
    finally:
        if redis is not None:
            redis.close()


def _register(pipeline: Pipeline, sealed: list[SealedSlot]) -> None:
    """Have the new slots become partitions soon; recovery finds them by itself a little later."""
    state = pipeline.state.store(pipeline=pipeline.name, node=pipeline.node)
    try:
        state.open()
        state.add_sealed([slot.seal.partition for slot in sealed])
    except FuploaderError as error:
        log.warning("%d adopted slots are registered by recovery: %s", len(sealed), error)
    finally:
        state.close()


class Gate:
    """Holds the drain of a pipeline back until the take-over is through. Thread-safe.

    A sensor's tick must return at once, so the take-over runs in a thread of its own.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._trouble = ""

    def closed(self) -> str:
        """Why the drain has to wait, in a sentence; empty if it need not."""
        settings = self._pipeline
        with self._lock:
            running = self._thread is not None and self._thread.is_alive()
            if not running and not (settings.takeover.enabled and is_pending(settings)):
                return ""
            if not running:
                self._thread = threading.Thread(target=self._run, daemon=True, name="take-over")
                self._thread.start()
            return self._trouble or (
                f"what FUploader left in {root_of(settings)} is being taken over; "
                f"draining begins after that"
            )

    def _run(self) -> None:
        try:
            take_over_if_needed(self._pipeline)
            self._trouble = ""
        except (FuploaderError, OSError) as error:
            self._trouble = f"FUploader's directories cannot be taken over: {error}"
            level = logging.WARNING if isinstance(error, SlotInUse) else logging.ERROR
            log.log(level, self._trouble)


_gates: dict[Path, Gate] = {}
_gates_lock = threading.Lock()


def gate_of(pipeline: Pipeline) -> Gate:
    """The gate of a pipeline in this process."""
    with _gates_lock:
        return _gates.setdefault(pipeline.layout.root, Gate(pipeline))
