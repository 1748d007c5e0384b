"""Messages over HTTP, beside a server that does nothing with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.ground import Ground, note, row_of_rounds
from benchmarks.results import Row
from benchmarks.serving import CONNECTIONS, Queue, broker_alone, paced, taken

RATE = 500
_MOST_P99_MS = 50
_MOST_REFUSAL_MS = 10
_REFUSALS = 100
_SAID = "one process each; ours are in the queue, confirmed, the echo keeps nothing"


def rows(ground: Ground) -> Iterator[Row]:
    yield from _against_echo(ground, "rabbitmq", "RabbitMQ", 0.5)
    yield from _against_echo(ground, "embedded", "embedded queue", None)
    runs = ground.repeat(
        f"serve, {RATE} requests/s", lambda: paced(ground, RATE, 202), ground.sizes.times()
    )
    yield Row(
        row=f"serve, p99 of answers at {RATE} requests/s, RabbitMQ",
        unit="ms",
        ours=runs.spread(lambda run: run.p99_ms),
        judge="ours",
        least=_MOST_P99_MS,
        more_is_better=False,
        note=note(runs),
    )
    refusals = ground.repeat(
        "serve, refusals",
        lambda: paced(ground, _REFUSALS, 429, max_backlog=10),
        ground.sizes.times(),
    )
    yield Row(
        row="serve, time of a 429",
        unit="ms",
        ours=refusals.spread(lambda run: run.median_ms),
        judge="ours",
        least=_MOST_REFUSAL_MS,
        more_is_better=False,
        note=note(refusals),
    )


def _against_echo(ground: Ground, queue: Queue, name: str, least: float | None) -> Iterator[Row]:
    """And against the broker, which sets a limit of its own to `CONNECTIONS` messages at once."""
    of_all = {
        "ours": lambda: taken(ground, "ours", queue),
        "echo": lambda: taken(ground, "echo", queue),
    }
    if queue == "rabbitmq":
        of_all["broker"] = lambda: broker_alone(ground)
    sides = ground.rounds(f"serve, {name}", of_all, ground.sizes.times())
    said = f"serve, messages of 1 kB at {CONNECTIONS} connections, {name}"
    row = Row(row=f"{said}, against a bare echo", unit="requests/s")
    made = row_of_rounds(row, sides, "echo", lambda run: run.requests_per_second, _SAID)
    yield replace(made, least=least)
    if queue == "rabbitmq":
        row = Row(row=f"{said}, against the broker alone", unit="requests/s")
        limit = sides.spread(
            lambda one: one["broker"].requests_per_second / one["echo"].requests_per_second
        )
        alone = f"ready frames to a socket, {CONNECTIONS} unconfirmed"
        if limit is not None:
            alone += f"; that alone is {limit.median:.2f} of the echo"
        yield row_of_rounds(row, sides, "broker", lambda run: run.requests_per_second, alone)
