"""Rows of sealed and of archived slots into a table, beside the driver's own `executemany`."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.databases import DIALECTS, Dialect
from benchmarks.ground import Ground, Runs, note, row_of_rounds
from benchmarks.results import Row
from benchmarks.storing import How, Rows, StoringRun, stored

_MOST_GROWTH_MIB = 100
_ROWS_OF_ORM = 5_000
"""It would need minutes for more, and its figure is the same."""
_ITEMS_OF_A_SMALL_SLOT = 50

Sides = Runs[dict[str, StoringRun]]


def rows(ground: Ground) -> Iterator[Row]:
    for dialect, name in DIALECTS.items():
        yield from _sealed(ground, dialect, name)
    yield _archived(ground)
    yield from _memory(ground)


def _sealed(ground: Ground, dialect: Dialect, name: str) -> Iterator[Row]:
    items = ground.sizes.messages(40_000, 10_000)
    few = Rows(min(items, _ROWS_OF_ORM), dialect)
    sides = ground.rounds(
        f"sink, {name}, {items:,} rows",
        {
            "ours": lambda: stored(ground, Rows(items, dialect), "ours"),
            "executemany": lambda: stored(ground, Rows(items, dialect), "executemany"),
            "orm": lambda: stored(ground, few, "orm"),
        },
        ground.sizes.times(),
    )
    what = f"rows of four sealed slots into {name}"
    yield _row(f"{what}, against one executemany of what is in memory", sides, "executemany", 0.8)
    yield _row(f"{what}, against an object and a commit a row (SQLAlchemy)", sides, "orm", 20)


def _archived(ground: Ground) -> Row:
    slots = max(20, round(1_000 * ground.sizes.scale))
    archived = Rows(slots * _ITEMS_OF_A_SMALL_SLOT, "postgresql", slots, archived=True)
    ways: tuple[How, How] = ("ours", "unpacked")
    sides = ground.rounds(
        f"sink, backfill of {slots:,} archives",
        {how: (lambda how=how: stored(ground, archived, how)) for how in ways},  # type: ignore[misc]
        ground.sizes.times(3, 1),
    )
    return _row(
        f"rows of {slots:,} archives into PostgreSQL, against unpacking and executemany",
        sides,
        "unpacked",
        0.7,
    )


def _memory(ground: Ground) -> Iterator[Row]:
    for full in (10_000, 200_000):
        items = ground.sizes.messages(full, min(full, 50_000))
        runs = ground.repeat(
            f"memory of a sink, a slot of {items:,}",
            lambda items=items: stored(ground, Rows(items, "postgresql", 1), "ours"),  # type: ignore[misc]
            ground.sizes.times(3, 1),
        )
        yield Row(
            row=f"memory that a sink adds to a run, a slot of {items:,} rows",
            unit="MiB",
            ours=runs.spread(lambda run: run.grown_mib),
            judge="ours",
            least=_MOST_GROWTH_MIB,
            more_is_better=False,
            note=note("PostgreSQL", runs),
        )


def _row(row: str, sides: Sides, other: str, least: float) -> Row:
    made = Row(row=row, unit="rows/s", least=least)
    return row_of_rounds(made, sides, other, lambda run: run.rows_per_second)
