"""Sinks under `dagster dev`: one added later is filled by a backfill, one away catches up."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.delivery.sink_notes import SinkNotes
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.slots.sealing import sealed_partitions
from tests.integration.test_backfill import backfill
from tests.integration.test_processing_whole_way import stored
from tests.servers.dagster_dev import DagsterDev
from tests.settings import embedded_parts

MESSAGES = 400
LATER = 200
TABLE = "CREATE TABLE files (id INTEGER PRIMARY KEY, city TEXT NOT NULL)"
TICKS_SECONDS = 420.0
"""In which the recovery schedule ticks several times."""


def publish(folder: Path, numbers: range) -> None:
    publisher = EmbeddedQueue(path=folder / "queue").publisher()
    publisher.publish(
        (json.dumps({"id": n, "place": {"city": f"c{n % 7}"}}).encode(), {"message_id": f"m{n}"})
        for n in numbers
    )
    publisher.close()


def table(folder: Path, *statements: str) -> list[tuple[Any, ...]]:
    """Do this to the database, and return what the last statement finds."""
    with closing(sqlite3.connect(folder / "rows.sqlite", timeout=60)) as database:
        found: list[tuple[Any, ...]] = []
        for statement in statements:
            found = database.execute(statement).fetchall()
        database.commit()
        return found


def count(folder: Path) -> int:
    return int(table(folder, "SELECT count(*) FROM files")[0][0])


@pytest.mark.timeout(1500)
def test_a_sink_that_is_added_later_is_backfilled_and_one_that_was_away_catches_up(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "project"
    one: dict[str, Any] = {
        **embedded_parts(),
        "message_format": "raw",
        "seal_messages": 100,
        "commit_messages": 50,
        "seal_age_seconds": 5,
        "recovery_base_seconds": 2,
        "max_retries": 0,
    }
    dev = DagsterDev(folder, {"storage_root": "data", "pipelines": {"docs": one}}, {})
    publish(folder, range(MESSAGES))
    dev.start()
    try:
        dev.wait_for(lambda: stored(dev) >= MESSAGES, "all messages to be stored")
        dev.wait_for(
            lambda: (
                set(dev.materialized("docs", "uploaded_archive"))
                == set(dev.materialized("docs", "sealed_slot"))
            ),
            "the runs to report everything",
        )
    finally:
        dev.stop()
    table(folder, TABLE)
    one["sinks"] = {
        "rows": {
            "kind": "sql",
            "url": f"sqlite:///{folder / 'rows.sqlite'}",
            "table": "files",
            "columns": {"id": "id", "city": "place.city"},
        }
    }
    dev = DagsterDev(folder, {"storage_root": "data", "pipelines": {"docs": one}}, {})
    layout = Layout(folder / "data" / "docs")
    notes = SinkNotes(layout, "rows")
    dev.start()
    try:
        before = dev.materialized("docs", "uploaded_archive")
        assert dev.materialized("docs", "sink_rows") == []
        assert (notes.owed(), count(folder)) == ([], 0)
        backfill(dev, ["sink_rows"], before)
        assert count(folder) == MESSAGES
        assert set(dev.materialized("docs", "sink_rows")) == set(before)
        wanted = [(n, f"c{n % 7}") for n in range(MESSAGES)]
        assert table(folder, "SELECT id, city FROM files ORDER BY id") == wanted

        table(folder, "ALTER TABLE files RENAME TO away")
        publish(folder, range(MESSAGES, MESSAGES + LATER))
        dev.wait_for(lambda: stored(dev) >= MESSAGES + LATER, "the archives, without the table")
        dev.wait_for(lambda: not sealed_partitions(layout), "the slots to go")
        assert notes.trouble is not None
        assert notes.owed()
        table(folder, "ALTER TABLE away RENAME TO files")
        dev.wait_for(
            lambda: count(folder) == MESSAGES + LATER, "recovery to store them", TICKS_SECONDS
        )
        dev.wait_for(
            lambda: (
                set(dev.materialized("docs", "sink_rows"))
                == set(dev.materialized("docs", "sealed_slot"))
            ),
            "the runs to report it",
        )
        assert (notes.owed(), notes.trouble, list(notes.failures.all())) == ([], None, [])
    finally:
        dev.stop()
