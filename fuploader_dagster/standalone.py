"""Without Dagster, from Python: a whole pipeline in this process, or one step of it.

    run_pipeline(pipeline)                      # queue to object store, until SIGTERM or Ctrl-C
    run_pipeline(pipeline, until_empty=True)    # until the queue is empty and all of it is stored

    drain_pipeline(pipeline, stop)              # only from the queue to sealed slots
    ship_pipeline(pipeline)                     # only from sealed slots to the object store, once
    recover_pipeline(pipeline)                  # only what dead processes left

They obey a pause (`fuploader pause`, or `pause_pipeline` here) unless `despite_pause`: workers stay
and take no messages, the first two ship nothing until the end of the pause, the last two raise
`Paused`.

What must always hold: Dagster runs the same steps with the same promises. Several may run at once,
in one process or in several, with or without Dagster beside them. Worker processes drain the queue
and exit when this process does; a script that calls `run_pipeline` or `drain_pipeline` needs no
`if __name__ == "__main__"` guard.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from fuploader_dagster.contracts.object_store import ObjectStore
from fuploader_dagster.control.wishes import PARTS, Part, current, wish
from fuploader_dagster.delivery import notices, recovery
from fuploader_dagster.delivery.all_rows import AllRows
from fuploader_dagster.delivery.attempts import Done, Outcome
from fuploader_dagster.delivery.failures import all_failures, is_due
from fuploader_dagster.delivery.owed_rows import stored_here
from fuploader_dagster.delivery.processor_trouble import held_back
from fuploader_dagster.delivery.ship import mend_unreadable, replacements, upload_partitions
from fuploader_dagster.delivery.sink_notes import kept_for_sinks
from fuploader_dagster.errors import Paused, SourceUnavailable, StateRefused, StateUnavailable
from fuploader_dagster.intake.leftovers import refuse_leftovers
from fuploader_dagster.intake.supervisor import Supervisor
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.sealing import sealed_partitions

log = logging.getLogger(__name__)

RENEW_SECONDS = 0.5
LOOK_AT_QUEUE_SECONDS = 1.0


@dataclass(frozen=True)
class Shipped:
    """What became of sealed slots."""

    archives: int = 0
    messages: int = 0
    failures: tuple[str, ...] = ()
    """Partition and reason; the data is kept and tried again, after longer and longer pauses."""
    rows: int = 0
    """Rows that sinks confirmed."""

    def __add__(self, other: Shipped) -> Shipped:
        return Shipped(
            self.archives + other.archives,
            self.messages + other.messages,
            self.failures + other.failures,
            self.rows + other.rows,
        )


def run_pipeline(
    pipeline: Pipeline,
    *,
    stop: threading.Event | None = None,
    until_empty: bool = False,
    despite_pause: bool = False,
) -> Shipped:
    """Drain and ship, until `stop` is set; by default at SIGTERM or Ctrl-C.

    `until_empty`: until the queue is empty and everything that came out of it was sealed and
    shipped, which takes until the end of a pause. Otherwise the active slots stay as they are at
    the end, unless `residue_file_upload` is set. Raises `FuploaderError` if it cannot begin; later
    trouble is logged and waited out.
    """
    with _stopped_by_signals(stop) as told_to_stop, ThreadPoolExecutor(1, "ship") as thread:
        refuse_leftovers(pipeline)
        ships = _Ships(pipeline, pipeline.store.open(), despite_pause=despite_pause)
        shipped = Shipped()
        while True:
            shipped += _drain_and_ship(ships, told_to_stop, until_empty, thread)
            if until_empty or pipeline.residue_file_upload:
                _seal_all(pipeline, told_to_stop)
            shipped += ships.due()
            while until_empty and ships.paused and not told_to_stop.wait(RENEW_SECONDS):
                shipped += ships.due()
            notices.settle(pipeline)
            if not until_empty or told_to_stop.is_set() or _is_empty(pipeline):
                return shipped


def drain_pipeline(
    pipeline: Pipeline, stop: threading.Event | None = None, *, despite_pause: bool = False
) -> None:
    """Drain until `stop` is set; by default at SIGTERM or Ctrl-C."""
    with _stopped_by_signals(stop) as told_to_stop:
        refuse_leftovers(pipeline)
        with _workers(pipeline, despite_pause=despite_pause) as workers:
            while not told_to_stop.is_set():
                workers.renew()
                told_to_stop.wait(RENEW_SECONDS)


def ship_pipeline(pipeline: Pipeline, *, despite_pause: bool = False) -> Shipped:
    """Pack and upload all sealed slots and store their rows, except what waits after a failure."""
    refuse_leftovers(pipeline)
    if not despite_pause:
        refuse_while_paused(pipeline)
    return _shipped_and_told(pipeline)


def pause_pipeline(
    pipeline: Pipeline, *, by: str, reason: str = "", parts: Sequence[Part] = PARTS
) -> None:
    """Pause these parts, `intake` and `shipping`, on all nodes, until somebody resumes them."""
    _wish(pipeline, parts, paused=True, by=by, reason=reason)


def resume_pipeline(
    pipeline: Pipeline, *, by: str, reason: str = "", parts: Sequence[Part] = PARTS
) -> None:
    """End a pause of these parts, whoever asked for it, on all nodes."""
    _wish(pipeline, parts, paused=False, by=by, reason=reason)


def _wish(pipeline: Pipeline, parts: Sequence[Part], *, paused: bool, by: str, reason: str) -> None:
    done = wish(pipeline, parts, paused=paused, by=by, reason=reason)
    if done.trouble:
        log.warning("%s: %s", pipeline.name, done.trouble)


def refuse_while_paused(pipeline: Pipeline) -> None:
    """Raise `Paused` if somebody has paused the shipping."""
    paused = _why_paused(pipeline)
    if paused:
        raise Paused(
            f"the shipping of {pipeline.name} is {paused}",
            hint="`fuploader resume` ends the pause; `fuploader ship --despite-pause` ships this "
            "once",
        )


def recover_pipeline(pipeline: Pipeline, *, despite_pause: bool = False) -> Shipped:
    """Finish what dead processes left, seal the slots that no worker owns any more, and ship."""
    refuse_leftovers(pipeline)
    if not despite_pause:
        refuse_while_paused(pipeline)
    found = recovery.look(pipeline)
    recovery.apply(recovery.plan(found, pipeline, busy=(), now=time.time()), pipeline)
    mend_unreadable(pipeline)
    try:
        recovery.seal_unowned(pipeline.intake(), pipeline.layout.active_slots())
    except (StateUnavailable, StateRefused) as error:
        log.warning("%s: active slots stay as they are: %s", pipeline.name, error)
    return _shipped_and_told(pipeline)


def _seal_all(pipeline: Pipeline, stop: threading.Event) -> None:
    """Seal the active slots, as soon as the state store answers; if it should stop, only now."""
    said = _Said()
    while True:
        try:
            recovery.seal_on_request(pipeline.intake())
        except StateUnavailable as error:
            if said.is_news(str(error)):
                log.warning("%s: active slots stay as they are for now: %s", pipeline.name, error)
        else:
            return
        if stop.wait(RENEW_SECONDS):
            return


def _shipped_and_told(pipeline: Pipeline) -> Shipped:
    shipped = _ship_due(pipeline, pipeline.store.open())
    notices.settle(pipeline)
    return shipped


class _Ships:
    """Ships what is due, unless that is paused."""

    def __init__(self, pipeline: Pipeline, store: ObjectStore, *, despite_pause: bool) -> None:
        self.pipeline = pipeline
        self.despite_pause = despite_pause
        self.paused = ""
        self._store = store
        self._said = _Said()

    def due(self) -> Shipped:
        """Ship; nothing while `paused`, which is logged once."""
        before = self.paused
        self.paused = "" if self.despite_pause else _why_paused(self.pipeline)
        if self.paused:
            if self.paused != before:
                log.warning("nothing of %s is shipped: it is %s", self.pipeline.name, self.paused)
            return Shipped()
        return _ship_due(self.pipeline, self._store, self._said)


def _why_paused(pipeline: Pipeline) -> str:
    shipping = current(pipeline).shipping
    return f"paused {shipping}" if shipping.paused else ""


def _drain_and_ship(
    ships: _Ships,
    stop: threading.Event,
    until_empty: bool,
    thread: ThreadPoolExecutor,
) -> Shipped:
    """Workers drain while a thread ships: a slow upload must not let the lease run out."""
    pipeline = ships.pipeline
    shipping: Future[Shipped] | None = None
    shipped, look_at = Shipped(), time.monotonic() + LOOK_AT_QUEUE_SECONDS
    with _workers(pipeline, despite_pause=ships.despite_pause) as workers:
        while not stop.is_set():
            workers.renew()
            if shipping is None or shipping.done():
                shipped += shipping.result() if shipping else Shipped()
                shipping = thread.submit(ships.due)
            if until_empty and time.monotonic() >= look_at:
                if _is_empty(pipeline):
                    break
                look_at = time.monotonic() + LOOK_AT_QUEUE_SECONDS
            stop.wait(RENEW_SECONDS)
    return shipped + shipping.result() if shipping else shipped


@contextmanager
def _workers(pipeline: Pipeline, *, despite_pause: bool) -> Iterator[Supervisor]:
    supervisor = Supervisor(pipeline.intake(), despite_pause=despite_pause)
    try:
        yield supervisor
    finally:
        supervisor.stop()


class _Said:
    """What was logged last of something that is looked at all the time."""

    last = ""

    def is_news(self, sentence: str) -> bool:
        before, self.last = self.last, sentence
        return sentence not in ("", before)


def _ship_due(pipeline: Pipeline, store: ObjectStore, said: _Said | None = None) -> Shipped:
    notices.wake(pipeline)
    now = time.time()
    waiting = {
        failure.partition
        for failure in all_failures(pipeline.layout)
        if not is_due(failure.attempts, failure.failed_at, pipeline, now)
    }
    kept = kept_for_sinks(pipeline, stored_here(pipeline))
    sealed = [k for k in sealed_partitions(pipeline.layout) if k not in waiting and k not in kept]
    partitions, idle = held_back(sealed, pipeline, now)
    waits = idle if len(partitions) < len(sealed) else ""
    if (said or _Said()).is_news(waits):  # this is called twice a second
        log.warning("%d slots wait: %s", len(sealed) - len(partitions), waits)
    rows = AllRows(pipeline, patient=True)
    outcomes = upload_partitions(partitions, pipeline, store, first=rows.of)
    shipped = sum(map(_shipped, outcomes), Shipped())
    again = replacements(pipeline, {*partitions, *waiting, *kept})
    outcomes = upload_partitions(again, pipeline, store, first=rows.of)
    shipped = sum(map(_shipped, outcomes), shipped)
    rows.of_owed()
    return shipped + Shipped(failures=tuple(rows.failures), rows=rows.stored)


def _shipped(outcome: Outcome) -> Shipped:
    if isinstance(outcome, Done):
        return Shipped(1, outcome.receipt.messages if outcome.receipt else 0)
    log.error("%s was not shipped and is kept: %s", outcome.partition, outcome.error)
    return Shipped(failures=(f"{outcome.partition}: {outcome.error}",))


def _is_empty(pipeline: Pipeline) -> bool:
    """Whether no message waits in the queue. What workers hold and do not settle returns to it.

    A queue that does not answer counts as not empty: its workers wait for it as well.
    """
    publisher = pipeline.source.publisher()
    try:
        return publisher.backlog() == 0
    except SourceUnavailable as error:
        log.warning("cannot tell yet whether the queue is empty: %s", error)
        return False
    finally:
        publisher.close()


@contextmanager
def _stopped_by_signals(stop: threading.Event | None) -> Iterator[threading.Event]:
    """The caller's event, or in a main thread one that SIGTERM and Ctrl-C set."""
    event = stop or threading.Event()
    former: dict[signal.Signals, Callable[..., object] | int | None] = {}
    if stop is None and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            former[number] = signal.signal(number, lambda *_: event.set())
    try:
        yield event
    finally:
        for one, handler in former.items():
            signal.signal(one, handler)
