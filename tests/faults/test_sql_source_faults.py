"""A drain of a SQL table whose workers are killed while rows come: each row is stored once."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.delivery.recovery import seal_on_request
from fuploader_dagster.settings.pipeline import Intake
from tests.contract.sinks.databases import Database
from tests.contract.sources.sql_tables import NUMBERED, SourceTable
from tests.drains import backlog, draining, embedded, pids, sealed_files, stored, wait_for

KILLS = 3
ROWS_AT_ONCE = 40


@contextmanager
def inserting(table: SourceTable, settings: Intake) -> Iterator[list[int]]:
    """Rows come all the time inside the block, also in transactions that take longer."""
    count = [0]
    problems: list[BaseException] = []
    over = threading.Event()

    def go_on() -> None:
        try:
            while not over.wait(0.02):
                if count[0] - len(stored(settings.layout)) > 2_000:
                    continue
                rows = (f"'row {count[0] + n}'" for n in range(ROWS_AT_ONCE))
                table.insert(*rows, into="(note)")
                count[0] += ROWS_AT_ONCE
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield count
    finally:
        over.set()
        thread.join()
    assert problems == []


@pytest.mark.parametrize(
    ("database", "way"),
    [
        ("sqlite", {"cursor": "id"}),
        ("postgresql", {"cursor": "id", "lag_seconds": 0.1}),
        ("mariadb", {"status": {"column": "state"}}),
    ],
    indirect=["database"],
)
def test_kill_9_of_workers_under_load_stores_each_row_once(
    database: Database, way: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kind = request.node.callspec.params["database"]
    table = SourceTable(
        database, f"id {NUMBERED[kind]}, note TEXT, state VARCHAR(9) DEFAULT 'ready'"
    )
    settings = embedded(
        tmp_path,
        source=table.settings(columns=["id", "note"], **way),
        message_format="json",
        name_fields=("id",),
        process_count=2,
        commit_messages=20,
        prefetch_count=60,
        seal_messages=400,
    )
    dice = random.Random(3)
    killed: set[int] = set()
    with draining(settings):
        with inserting(table, settings) as count:
            for _ in range(KILLS):
                before = len(stored(settings.layout))
                wait_for(
                    lambda before=before: len(stored(settings.layout)) > before + 60,
                    settings,
                    "rows to be stored",
                )
                time.sleep(dice.random() * 0.05)  # so that they die at any moment
                for pid in pids(settings):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed.add(pid)
        wait_for(lambda: backlog(settings) == 0, settings, "the rest to be stored")
    assert len(killed) >= KILLS
    seal_on_request(settings)
    found = sealed_files(settings.layout)
    wanted = {str(n + 1): [{"id": n + 1, "note": f"row {n}"}] for n in range(count[0])}
    assert {name: [json.loads(one) for one in bodies] for name, bodies in found.items()} == wanted
