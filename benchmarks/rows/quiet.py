"""A quiet queue: how long a lone message takes, and what waiting costs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

from benchmarks.contenders import Ours
from benchmarks.documents import documents_of
from benchmarks.ground import Ground, note
from benchmarks.processes import Program, cpu_seconds
from benchmarks.results import Row
from benchmarks.ways import dagster_dev
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ

_WAIT_SECONDS = 60.0
_LOOK_SECONDS = 0.001
_SETTLE_SECONDS = 10.0


def rows(ground: Ground) -> Iterator[Row]:
    lone = ground.repeat(
        "a lone message", lambda: _lone_message(ground), ground.sizes.times(20, 10)
    )
    ground_idle = ground.repeat("idle drain", lambda: _idle_drain(ground), ground.sizes.times(3, 1))
    dagster_idle = ground.repeat(
        "idle dagster dev", lambda: _idle_dagster(ground), ground.sizes.times(2, 1)
    )
    yield Row(
        row="a lone message on a slow queue, publish to durable and acked",
        unit="ms",
        ours=lone.spread(float),
        judge="ours",
        least=1000,
        more_is_better=False,
        note=note("from before the publish, with its confirm, to the count in Redis", lone),
    )
    yield Row(
        row="idle pipeline: worker and its supervisor",
        unit="% of a core",
        ours=ground_idle.spread(float),
        judge="ours",
        least=2,
        more_is_better=False,
        note=note(ground_idle),
    )
    yield Row(
        row="idle pipeline with all of dagster dev: daemon, webserver, code server, worker",
        unit="% of a core",
        ours=dagster_idle.spread(float),
        note=note(dagster_idle),
    )


def _lone_message(ground: Ground) -> float:
    """Milliseconds, with the worker waiting for some random time before."""
    with ground.backlog(2000, 1) as queue, ground.folder() as folder:
        ours = Ours(ground, folder, queue)
        publisher = RabbitMQ(queue=queue, url=ground.rabbitmq.url).publisher()
        with ours.start() as program:
            _wait_until(lambda: ours.handled() == 1, program)
            publisher.backlog()  # connects
            time.sleep(random.uniform(0.5, 1.5))
            started = time.monotonic()
            publisher.publish(documents_of(2000).messages(1, first=1))
            _wait_until(lambda: ours.handled() == 2, program)
            milliseconds = (time.monotonic() - started) * 1000
        publisher.close()
    return milliseconds


def _idle_drain(ground: Ground) -> float:
    with ground.backlog(2000, 1) as queue, ground.folder() as folder:
        ours = Ours(ground, folder, queue)
        with ours.start() as program:
            _wait_until(lambda: ours.handled() == 1, program)
            return _busy_percent(program.session, _idle_seconds(ground))


def _idle_dagster(ground: Ground) -> float:
    with ground.backlog(2000, 1) as queue, ground.folder() as folder:
        bucket = ground.swift.fresh_bucket()
        ours = Ours(ground, folder, queue, bucket=bucket)
        with dagster_dev(ours) as dev:
            dev.wait_for(lambda: ours.handled() == 1, "the first message", _WAIT_SECONDS)
            return _busy_percent(dev.group, 2 * _idle_seconds(ground))


def _idle_seconds(ground: Ground) -> float:
    return max(5.0, 30.0 * min(1.0, ground.sizes.scale))


def _busy_percent(session: int, seconds: float) -> float:
    time.sleep(min(_SETTLE_SECONDS, seconds / 2))
    started, before = time.monotonic(), cpu_seconds(session)
    time.sleep(seconds)
    return 100 * (cpu_seconds(session) - before) / (time.monotonic() - started)


def _wait_until(met: Callable[[], bool], program: Program) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not met():
        program.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {_WAIT_SECONDS:.0f} s for a message:\n{program.tail()}")
        time.sleep(_LOOK_SECONDS)
