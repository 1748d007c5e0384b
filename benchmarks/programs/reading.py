"""Reads a table to its end, in one of two ways, and prints what it took.

Settings come as JSON in BENCH_SETTINGS; the database's address is in BENCH_DATABASE. `how`:

- `ours`: the source `sql`, by its cursor, settled after each `commit` rows.
- `loop`: a bare keyset loop with pages of so many rows, which writes each row as JSON and keeps no
  position.

The time ends with the last row.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from benchmarks.programs.storing import COLUMNS, DATABASE_VARIABLE, TABLE, connected

_LONGEST_PAUSE_SECONDS = 60.0

Run = Callable[[], int]
"""Returns how many rows were read."""


def main() -> None:
    settings = json.loads(os.environ["BENCH_SETTINGS"])
    run = _WAYS[settings["how"]](settings)
    started = time.monotonic()
    rows = run()
    seconds = time.monotonic() - started
    if rows != settings["rows"]:
        sys.exit(f"{rows:,} rows of {settings['rows']:,}")
    print(json.dumps({"seconds": seconds}))


def _ours(settings: dict[str, Any]) -> Run:
    from fuploader_dagster import CommittedBatch, SqlTable  # noqa: PLC0415  the other does without

    table = SqlTable.model_validate(
        {"url": os.environ[DATABASE_VARIABLE], "table": TABLE, "cursor": "id", "lag_seconds": 0}
    )
    source = table.source(prefetch=4 * settings["commit"])
    source.open()
    gc.freeze()  # as a worker does before it drains
    gc.set_threshold(50_000, 20, 100)

    def run() -> int:
        rows = 0
        while rows < settings["rows"]:
            batch = source.receive(settings["commit"], _LONGEST_PAUSE_SECONDS)
            if not batch:
                break
            source.settle(CommittedBatch(last=batch[-1], messages=len(batch)))
            rows += len(batch)
        return rows

    return run


def _loop(settings: dict[str, Any]) -> Run:
    connection = connected()
    columns = list(COLUMNS)
    sqlite = type(connection).__module__ == "sqlite3"
    query = (
        f"SELECT {', '.join(columns)} FROM {TABLE} WHERE id > {'?' if sqlite else '%s'} "  # noqa: S608  all ours
        f"ORDER BY id LIMIT {settings['commit']}"
    )

    def run() -> int:
        rows, last = 0, ""
        cursor = connection.cursor()
        while True:
            cursor.execute(query, (last,))
            page = cursor.fetchall()
            if not page:
                return rows
            for row in page:
                msgspec.json.encode(dict(zip(columns, row, strict=True)))
            rows, last = rows + len(page), page[-1][0]

    return run


_WAYS: dict[str, Callable[[dict[str, Any]], Run]] = {"ours": _ours, "loop": _loop}


if __name__ == "__main__":
    main()
