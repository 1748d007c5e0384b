"""Rows that are made of documents and stored in a table, by a program of its own.

`stored` measures one way once, into a new table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.contenders import Ours
from benchmarks.databases import Database, Dialect
from benchmarks.ground import Ground
from benchmarks.programs.storing import COLUMNS, DATABASE_VARIABLE, TABLE
from benchmarks.sealed_slots import sealed
from fuploader_dagster import ship_pipeline

How = Literal["ours", "executemany", "orm", "unpacked"]


@dataclass(frozen=True)
class StoringRun:
    """The figures of one way."""

    rows_per_second: float
    grown_mib: float
    """The highest resident memory of the program, above that before it began."""


@dataclass(frozen=True)
class Rows:
    """What is stored where."""

    items: int
    dialect: Dialect
    slots: int = 4
    archived: bool = False
    """The slots are in archives, and no longer on the disk."""


def stored(ground: Ground, rows: Rows, how: How) -> StoringRun:
    """Measure one way once. Checks that all rows are there."""
    with ground.folder() as folder:
        database = Database(ground, rows.dialect, folder)
        database.new_table()
        settings: dict[str, Any] = {"how": how, "items": rows.items}
        if how == "ours" or rows.archived:
            settings |= _slots(ground, folder, rows)
        said = database.run("storing", settings)
        count = database.count()
    if count != rows.items:
        raise RuntimeError(f"{how} stored {count:,} rows of {rows.items:,}")
    return StoringRun(rows.items / said["seconds"], said["grown_bytes"] / (1 << 20))


def _slots(ground: Ground, folder: Path, rows: Rows) -> dict[str, Any]:
    """New slots, sealed or archived, as the settings of the program."""
    sink = {
        "kind": "sql",
        "url": {"env": DATABASE_VARIABLE},
        "table": TABLE,
        "columns": dict(COLUMNS),
    }
    plain = Ours(ground, folder, "never-opened")
    partitions = list(sealed(plain, rows.items, rows.slots))
    archives: list[str] = []
    if rows.archived:
        ship_pipeline(plain.pipeline)
        archives = sorted(map(str, (folder / "objects").rglob("*.tar.zst")))
        assert len(archives) == rows.slots
    ours = Ours(ground, folder, "never-opened", {**plain.settings, "sinks": {"rows": sink}})
    return {"partitions": partitions, "config": str(ours.configuration), "archives": archives}
