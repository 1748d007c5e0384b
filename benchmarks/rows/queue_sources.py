"""Redis and Kafka: the drain beside RabbitMQ's, the source beside a bare client loop.

The broker of Kafka is Tansu, which comes in a wheel and keeps messages in memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from benchmarks.contenders import REPOSITORY
from benchmarks.drains import Case, DrainRun, drain, drains
from benchmarks.ground import Ground, note, row_of_rounds
from benchmarks.processes import Program
from benchmarks.queues import Kind, backlog
from benchmarks.results import Row

COMMIT = 500
_MOST_SECONDS = 600.0
NAMES: dict[Kind, str] = {
    "redis_stream": "Redis stream",
    "redis_list": "Redis list",
    "kafka": "Kafka topic",
}
LOOPS: dict[Kind, str] = {
    "redis_stream": "XREADGROUP, XACK, XDEL",
    "redis_list": "RPOP, which loses what it has",
    "kafka": "consume, commit",
}
LEAST_OF_RABBITMQ: dict[Kind, float] = {"redis_stream": 0.95, "kafka": 1.1}
MOST_CPU_MICROSECONDS = 5.0
MOST_MIB = 100.0


@dataclass(frozen=True)
class Reading:
    """The figures of one reading without a drain."""

    messages_per_second: float
    cpu_microseconds: float
    """A message."""


def rows(ground: Ground) -> Iterator[Row]:
    yield from _drains(ground)
    for kind, name in NAMES.items():
        yield from _readings(ground, kind, name)


def memory_rows(ground: Ground) -> Iterator[Row]:
    for kind, name in NAMES.items():
        yield _memory(ground, kind, name)


def _drains(ground: Ground) -> Iterator[Row]:
    count = ground.sizes.messages(200_000, 40_000)

    def of(kind: Kind) -> DrainRun:
        return drain(ground, Case("ours", count, source=kind))

    sides = ground.rounds(
        f"drains of RabbitMQ, Redis and Kafka, {count:,} messages",
        {
            "rabbitmq": lambda: of("rabbitmq"),
            "redis_stream": lambda: of("redis_stream"),
            "redis_list": lambda: of("redis_list"),
            "kafka": lambda: of("kafka"),
        },
        ground.sizes.times(),
    )
    for kind, name in NAMES.items():
        ratios = sides.spread(
            lambda one, kind=kind: (
                one[kind].messages_per_second  # type: ignore[misc]
                / one["rabbitmq"].messages_per_second
            )
        )
        yield Row(
            row=f"drain of a {name}, against the drain of RabbitMQ",
            unit="messages/s",
            ours=sides.spread(lambda one, kind=kind: one[kind].messages_per_second),  # type: ignore[misc]
            bare=sides.spread(lambda one: one["rabbitmq"].messages_per_second),
            against="bare",
            least=LEAST_OF_RABBITMQ.get(kind),
            note=note(
                f"median of the rounds' own ratios {ratios.median:.2f}" if ratios else "", sides
            ),
        )


def _readings(ground: Ground, kind: Kind, name: str) -> Iterator[Row]:
    count = ground.sizes.messages(200_000, 40_000)
    sides = ground.rounds(
        f"{name} without a drain, {count:,} messages",
        {
            "ours": lambda: _read(ground, kind, count, "ours"),
            "loop": lambda: _read(ground, kind, count, "loop"),
        },
        ground.sizes.times(),
    )
    rate = Row(row=f"{name} read and settled, against a bare client loop", unit="messages/s")
    yield row_of_rounds(
        rate, sides, "loop", lambda one: one.messages_per_second, f"the loop: {LOOPS[kind]}"
    )
    cpu = Row(
        row=f"CPU of the source of a {name}, against a bare client loop",
        unit="µs a message",
        judge="ours",
        least=MOST_CPU_MICROSECONDS,
        more_is_better=False,
    )
    yield row_of_rounds(cpu, sides, "loop", lambda one: one.cpu_microseconds)


def _read(ground: Ground, kind: Kind, count: int, how: Literal["ours", "loop"]) -> Reading:
    with backlog(ground, kind, 2000, count) as queue, ground.folder() as folder:
        settings = {"how": how, "kind": kind, "queue": queue, "messages": count, "commit": COMMIT}
        with Program(
            [sys.executable, "-m", "benchmarks.programs.queue_reading"],
            env={"BENCH_SETTINGS": json.dumps(settings)},
            cwd=REPOSITORY,
            log=folder / "reading.log",
        ) as program:
            program.wait(_MOST_SECONDS)
            said = json.loads(program.log.read_text().splitlines()[-1])
    return Reading(said["messages"] / said["seconds"], said["cpu_seconds"] * 1e6 / said["messages"])


def _memory(ground: Ground, kind: Kind, name: str) -> Row:
    count = ground.sizes.messages(1_000_000, 200_000)
    found = drains(ground, Case("ours", count, source=kind), ground.sizes.times(3, 1))
    growth = found.spread(lambda run: run.growth)
    return Row(
        row=f"peak memory of a worker, backlog of {count:,} in a {name}",
        unit="MiB",
        ours=found.spread(lambda run: run.peak_mib),
        judge="ours",
        least=MOST_MIB,
        more_is_better=False,
        note=note(f"{growth.median:.2f} times that after a tenth of them" if growth else "", found),
    )
