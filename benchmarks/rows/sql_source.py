"""A SQL table as a source, beside a bare keyset loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from benchmarks.databases import DIALECTS, Database, Dialect
from benchmarks.documents import documents_of
from benchmarks.ground import Ground, row_of_rounds
from benchmarks.results import Row

COMMIT = 1_000
"""Rows that are settled at once, and rows of a page of the loop."""


def rows(ground: Ground) -> Iterator[Row]:
    for dialect, name in DIALECTS.items():
        yield _row(ground, dialect, name)


def _row(ground: Ground, dialect: Dialect, name: str) -> Row:
    count = ground.sizes.messages(100_000, 20_000)
    sides = ground.rounds(
        f"SQL source, {name}, {count:,} rows",
        {
            "ours": lambda: _rows_per_second(ground, dialect, count, "ours"),
            "loop": lambda: _rows_per_second(ground, dialect, count, "loop"),
        },
        ground.sizes.times(),
    )
    what = f"rows of a table of {name} read by its key, against a bare keyset loop"
    return row_of_rounds(Row(row=what, unit="rows/s", least=0.6), sides, "loop", float)


def _rows_per_second(
    ground: Ground, dialect: Dialect, count: int, how: Literal["ours", "loop"]
) -> float:
    documents = documents_of(200).documents
    with ground.folder() as folder:
        database = Database(ground, dialect, folder)
        database.new_table(key="PRIMARY KEY")
        database.fill(
            {
                "id": f"{number:012d}",
                "author": "somebody",
                "likes": number,
                "body": documents[number % len(documents)]["text"],
            }
            for number in range(count)
        )
        said = database.run("reading", {"how": how, "rows": count, "commit": COMMIT})
    return float(count / said["seconds"])
