"""A sink that tests put into pipelines: a table and a ledger in an SQLite file."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from fuploader_dagster.contracts.processor import Item
from fuploader_dagster.contracts.sink import (
    Delivery,
    ItemRows,
    Reject,
    RejectedItem,
    Sink,
    SinkSettings,
    StoredRows,
)
from fuploader_dagster.errors import BadItem, SinkRefused, SinkUnavailable

calls: Counter[str] = Counter()
"""How often each delivery was tried in this process."""
meanwhile: list[Callable[[], object]] = []
"""Called, once each, after the first item of a delivery was read."""

_TABLES = """
CREATE TABLE IF NOT EXISTS rows (delivery TEXT, partition TEXT, row TEXT);
CREATE TABLE IF NOT EXISTS ledger (delivery TEXT PRIMARY KEY, rows INTEGER);
"""


class RowsFile(SinkSettings):
    """Rows as JSON in an SQLite file. A row with the field `refused` is not taken, normally."""

    path: Path
    takes_refused: bool = False
    fails: bool = False
    fails_late: bool = False
    """It is away when it commits."""
    switch: Path | None = None
    """The sink is away while this is not there."""
    forbidden: Path | None = None
    """The sink refuses everything while this is there."""

    def sink(self) -> Sink:
        return _RowsFile(self)

    def describe(self) -> str:
        return f"rows in {self.path.name}"


class _RowsFile(Sink):
    def __init__(self, settings: RowsFile) -> None:
        self._settings = settings

    def store(self, delivery: Delivery, items: Iterable[ItemRows], reject: Reject) -> StoredRows:
        settings = self._settings
        calls[delivery.id] += 1
        if settings.switch is not None and not settings.switch.exists():
            raise SinkUnavailable("the sink is switched off")
        if settings.fails:
            raise ValueError(f"a bug that quotes {list(items)}")
        if settings.forbidden is not None and settings.forbidden.exists():
            raise SinkRefused("there is no such table")
        with closing(sqlite3.connect(settings.path, timeout=60)) as database, database:
            database.executescript(_TABLES)
            database.execute("BEGIN IMMEDIATE")
            found = database.execute(
                "SELECT rows FROM ledger WHERE delivery = ?", (delivery.id,)
            ).fetchone()
            if found is not None:
                return StoredRows(found[0], settings.describe(), already_there=True)
            if delivery.redo:
                database.execute("DELETE FROM rows WHERE partition = ?", (delivery.partition,))
            rejected, rows = [], 0
            for item in items:
                if meanwhile:
                    meanwhile.pop()()
                if any("refused" in row for row in item.rows) and not settings.takes_refused:
                    rejected.append(RejectedItem(item.position, "the table does not take it"))
                    continue
                rows += len(item.rows)
                database.executemany(
                    "INSERT INTO rows VALUES (?, ?, ?)",
                    [(delivery.id, delivery.partition, json.dumps(row)) for row in item.rows],
                )
            reject(rejected)
            if settings.fails_late:
                raise SinkUnavailable("the connection was lost")
            database.execute("INSERT INTO ledger VALUES (?, ?)", (delivery.id, rows))
        return StoredRows(rows, settings.describe())

    def close(self) -> None:
        pass


def stored_rows(path: Path) -> list[dict[str, Any]]:
    """What is in the table, in the order of the rows."""
    with closing(sqlite3.connect(path)) as database:
        database.executescript(_TABLES)
        rows = database.execute("SELECT row FROM rows ORDER BY row").fetchall()
    return [json.loads(row) for (row,) in rows]


def two_rows(item: Item) -> list[dict[str, Any]]:
    """A user's function."""
    return [{"name": item.name, "part": part} for part in range(2)]


def odd_rows(item: Item) -> Any:
    """A user's function that does what the item says."""
    said = item.json()
    if said == "raise":
        raise ValueError(f"secret {said}")
    if said == "bad":
        raise BadItem("not one of ours")
    return {"none": None, "text": "text", "numbers": {1: 2}, "row": {"a": 1}}[said]
