"""Processing sealed slots: beside what does only the work, in memory, and beside a drain."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from benchmarks.drains import Case, DrainRun, drain
from benchmarks.ground import Ground, Runs, note, ratio_of_rounds, row_of_rounds
from benchmarks.processing import CONCURRENCY, ProcessingRun, Work, handler, processed, start
from benchmarks.results import Row

HANDLER_SECONDS = 0.05
SLOW_HANDLER_SECONDS = 1.0
WORKERS = len(os.sched_getaffinity(0))
_MOST_GROWTH_MIB = 64
_ITEMS_OF_CELERY = 2_000
"""It would need minutes for more, and its figures are the same."""
_MORE_THAN_A_DRAIN_TAKES = 50_000
"""Items that are done after 13 minutes."""

Sides = Runs[dict[str, ProcessingRun]]


def rows(ground: Ground) -> Iterator[Row]:
    yield from _http(ground)
    yield from _functions(ground, "steady", "of a millisecond", 10_000, least=0.8)
    yield from _functions(ground, "short", "of a tenth of a millisecond", 20_000, least=None)
    yield from _memory(ground)
    yield from _beside_a_drain(ground)


def _http(ground: Ground) -> Iterator[Row]:
    items = ground.sizes.messages(20_000, 5_000)
    with ground.folder() as folder, handler(folder, HANDLER_SECONDS) as slow:
        works = [Work(items, "ours", url=slow.url), Work(items, "loop", url=slow.url)]
        sides = _measured(ground, f"HTTP, {items:,} items", works)
    what = f"HTTP, handler of 50 ms, {CONCURRENCY} at once"
    limit = f"no more than {CONCURRENCY / HANDLER_SECONDS:,.0f} items/s are possible"
    yield _rate_row(f"{what}, against a bare aiohttp loop", sides, "loop", 0.9, limit)
    yield _cpu_row(f"CPU of {what}", sides, "loop", 1.3)


def _functions(
    ground: Ground, function: str, length: str, full: int, least: float | None
) -> Iterator[Row]:
    items = ground.sizes.messages(full, 5_000)
    works = [
        Work(items, "ours", function=function),
        Work(items, "pool", function=function),
        Work(min(items, _ITEMS_OF_CELERY), "celery", function=function),
    ]
    sides = _measured(ground, f"functions {length}, {items:,} items", works)
    what = f"functions {length}, {WORKERS} processes"
    yield _rate_row(f"{what}, against a bare process pool", sides, "pool", least)
    yield _cpu_row(f"CPU of {what}, against a bare process pool", sides, "pool", None)
    yield _rate_row(f"{what}, against Celery (prefork, RabbitMQ)", sides, "celery", None)
    yield _cpu_row(
        f"CPU of {what}, against Celery (prefork, RabbitMQ)",
        sides,
        "celery",
        None,
        "Celery's is that of its client and its worker, without the broker",
    )


def _memory(ground: Ground) -> Iterator[Row]:
    for full in (10_000, 200_000):
        items = ground.sizes.messages(full, min(full, 50_000))
        work = Work(items, "ours", function="short", slots=1)
        runs = ground.repeat(
            f"memory, a slot of {items:,}",
            lambda work=work: processed(ground, work, WORKERS),  # type: ignore[misc]
            ground.sizes.times(3, 1),
        )
        yield Row(
            row=f"memory that processing adds to a run, a slot of {items:,} items",
            unit="MiB",
            ours=runs.spread(lambda run: run.grown_mib),
            judge="ours",
            least=_MOST_GROWTH_MIB,
            more_is_better=False,
            note=note("functions; of the run's own process, without the children", runs),
        )


def _beside_a_drain(ground: Ground) -> Iterator[Row]:
    messages = ground.sizes.messages(200_000, 40_000)

    def beside() -> DrainRun:
        with ground.folder() as folder, handler(folder, SLOW_HANDLER_SECONDS) as slow:
            work = Work(_MORE_THAN_A_DRAIN_TAKES, "ours", url=slow.url, slots=1)
            with start(ground, work, folder, WORKERS) as program:
                slow.wait_for_call()
                run = drain(ground, Case("ours", messages))
                program.check()
            return run

    sides = ground.rounds(
        f"drain beside {CONCURRENCY} slow handlers, {messages:,} messages",
        {"alone": lambda: drain(ground, Case("ours", messages)), "beside": beside},
        ground.sizes.times(),
    )
    ratios = sides.spread(
        lambda one: one["beside"].messages_per_second / one["alone"].messages_per_second
    )
    yield Row(
        row=f"drain beside {CONCURRENCY} handlers of a second, against the drain alone",
        unit="messages/s",
        ours=sides.spread(lambda one: one["beside"].messages_per_second),
        bare=sides.spread(lambda one: one["alone"].messages_per_second),
        against="bare",
        least=0.9,
        note=note(ratio_of_rounds(ratios), sides),
    )


def _measured(ground: Ground, what: str, works: Sequence[Work]) -> Sides:
    """All sides in turns."""
    ways = {work.how: (lambda work=work: processed(ground, work, WORKERS)) for work in works}
    return ground.rounds(f"processing, {what}", ways, ground.sizes.times())  # type: ignore[arg-type]


def _rate_row(row: str, sides: Sides, other: str, least: float | None, said: str = "") -> Row:
    made = _row(row, sides, other, lambda run: run.items_per_second, said)
    return replace(made, unit="items/s", least=least)


def _cpu_row(row: str, sides: Sides, other: str, most: float | None, said: str = "") -> Row:
    made = _row(row, sides, other, lambda run: run.cpu_ms_per_1000, said)
    return replace(made, unit="ms per 1,000 items", least=most, more_is_better=False)


def _row(
    row: str, sides: Sides, other: str, figure: Callable[[ProcessingRun], float], said: str
) -> Row:
    """A figure of ours beside that of another side."""
    return row_of_rounds(Row(row=f"processing, {row}", unit=""), sides, other, figure, said)
