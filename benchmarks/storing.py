"""Rows that are made of documents and stored in a table, by a program of its own.

`stored` measures one way once, into a new table.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.contenders import REPOSITORY, Ours
from benchmarks.ground import Ground
from benchmarks.processes import Program
from benchmarks.programs.storing import COLUMNS, DATABASE_VARIABLE, TABLE
from benchmarks.sealed_slots import sealed
from fuploader_dagster import ship_pipeline

_MOST_SECONDS = 1200.0
_COLUMN_TYPES = ("varchar(40)", "varchar(80)", "bigint", "text")

Dialect = Literal["postgresql", "mariadb", "sqlite"]
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
        database = _Database.of(ground, rows.dialect, folder)
        columns = ", ".join(map(" ".join, zip(COLUMNS, _COLUMN_TYPES, strict=True)))
        database.execute(
            f"DROP TABLE IF EXISTS {TABLE}",
            "DROP TABLE IF EXISTS fuploader_ledger",
            f"CREATE TABLE {TABLE} ({columns})",
        )
        settings: dict[str, Any] = {"how": how, "items": rows.items}
        if how == "ours" or rows.archived:
            settings |= _slots(ground, folder, rows)
        program = Program(
            [sys.executable, "-m", "benchmarks.programs.storing"],
            env={"BENCH_SETTINGS": json.dumps(settings), DATABASE_VARIABLE: database.url},
            cwd=REPOSITORY,
            log=folder / "storing.log",
        )
        with program:
            program.wait(_MOST_SECONDS)
            said = json.loads(program.log.read_text().splitlines()[-1])
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


@dataclass(frozen=True)
class _Database:
    """A server of the run, or a file, with a plain client."""

    url: str
    execute: Callable[..., None]
    rows: Callable[[str], Sequence[tuple[Any, ...]]]

    @classmethod
    def of(cls, ground: Ground, dialect: Dialect, folder: Path) -> _Database:
        if dialect == "postgresql":
            server = ground.postgresql
            return cls(server.url(), server.execute, server.rows)
        if dialect == "mariadb":
            other = ground.mariadb
            return cls(other.url(), other.execute, other.rows)
        path = folder / "rows.sqlite"

        def rows(query: str) -> list[tuple[Any, ...]]:
            connection = sqlite3.connect(path)
            try:
                with connection:
                    return connection.execute(query).fetchall()
            finally:
                connection.close()

        def execute(*statements: str) -> None:
            for statement in statements:
                rows(statement)

        return cls(f"sqlite:///{path}", execute, rows)

    def count(self) -> int:
        """The rows of the table."""
        return int(self.rows(f"SELECT count(*) FROM {TABLE}")[0][0])  # noqa: S608  all ours
