"""The databases of a run: two servers, or a file, with a new table for each measurement."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from benchmarks.contenders import REPOSITORY
from benchmarks.ground import Ground
from benchmarks.processes import Program
from benchmarks.programs.storing import COLUMNS, DATABASE_VARIABLE, TABLE, url_of

_MOST_SECONDS = 1200.0
_COLUMN_TYPES = ("varchar(40)", "varchar(80)", "bigint", "text")

Dialect = Literal["postgresql", "mariadb", "sqlite"]
DIALECTS: dict[Dialect, str] = {
    "postgresql": "PostgreSQL",
    "mariadb": "MariaDB",
    "sqlite": "SQLite",
}


@dataclass(frozen=True)
class Database:
    """The table is empty at first. A file lies in `folder`."""

    ground: Ground
    dialect: Dialect
    folder: Path

    @property
    def url(self) -> str:
        if self.dialect == "postgresql":
            return self.ground.postgresql.url()
        if self.dialect == "mariadb":
            return self.ground.mariadb.url()
        return f"sqlite:///{self.folder / 'rows.sqlite'}"

    def new_table(self, key: str = "") -> None:
        """`key`: what its first column is besides."""
        definitions = map(" ".join, zip(COLUMNS, _COLUMN_TYPES, strict=True))
        first, *others = definitions
        with self._connected() as connection:
            for table in (TABLE, "fuploader_ledger", "fuploader_positions"):
                connection.execute(sa.text(f"DROP TABLE IF EXISTS {table}"))
            columns = ", ".join([f"{first} {key}", *others])
            connection.execute(sa.text(f"CREATE TABLE {TABLE} ({columns})"))

    def fill(self, rows: Iterable[Mapping[str, Any]]) -> None:
        table = sa.table(TABLE, *map(sa.column, COLUMNS))
        with self._connected() as connection:
            connection.execute(table.insert(), list(map(dict, rows)))

    def count(self) -> int:
        with self._connected() as connection:
            query = sa.select(sa.func.count()).select_from(sa.table(TABLE))
            return int(connection.execute(query).scalar_one())

    def run(self, program: str, settings: Mapping[str, Any]) -> Any:
        """What a program of `benchmarks.programs` says of its work with the table."""
        started = Program(
            [sys.executable, "-m", f"benchmarks.programs.{program}"],
            env={"BENCH_SETTINGS": json.dumps(settings), DATABASE_VARIABLE: self.url},
            cwd=REPOSITORY,
            log=self.folder / f"{program}.log",
        )
        with started:
            started.wait(_MOST_SECONDS)
            return json.loads(started.log.read_text().splitlines()[-1])

    def _connected(self) -> Any:
        return sa.create_engine(url_of(self.url), poolclass=sa.NullPool).begin()
