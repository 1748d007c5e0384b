"""Slots of a pipeline become rows in ClickHouse once: from the disk, from archives, again on
request, and though the process is killed behind any step."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from fuploader_dagster.dead_letters.letters import numbered_dead_letters
from fuploader_dagster.delivery.attempts import Done, Outcome
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.rows import store_partitions
from fuploader_dagster.delivery.ship import upload_partitions
from fuploader_dagster.disk.crash_points import CrashPoint, observe
from fuploader_dagster.settings.pipeline import Pipeline
from tests.clickhouse.tables import REMEMBERS, Table
from tests.servers.clickhouse import ClickhouseServer
from tests.settings import pipeline, sealed


@pytest.fixture(params=[f"ORDER BY number {REMEMBERS}", "ORDER BY number"])
def table(request: pytest.FixtureRequest, clickhouse: ClickhouseServer) -> Table:
    return Table(clickhouse, "number Int64, name String", after=request.param)


@pytest.fixture
def settings(tmp_path: Path, table: Table) -> Pipeline:
    sink = table.settings(columns={"number": "n", "name": "about.name"})
    return pipeline(tmp_path, sinks={"rows": sink})


def items(first: int, count: int) -> dict[str, bytes]:
    return {
        f"{n}.json": json.dumps({"n": n, "about": {"name": f"no. {n}"}}).encode()
        for n in range(first, first + count)
    }


def store(settings: Pipeline, partitions: Sequence[str], *, redo: bool = False) -> list[Outcome]:
    open_archive = ArchiveFinder({settings.name: settings}).open
    return list(store_partitions(partitions, settings, "rows", open_archive, redo=redo))


def numbers(table: Table) -> list[int]:
    return [one for (one,) in table.rows("number", order="number")]


def test_rows_come_from_the_disk_and_from_archives_and_a_redo_replaces_them(
    settings: Pipeline, table: Table
) -> None:
    bad = {"bad.json": b'{"n": "x", "about": {"name": "bad"}}', "none.json": b'{"n": 1}'}
    here = sealed(settings, items(0, 9) | bad).seal.partition
    gone = sealed(settings, items(10, 9)).seal.partition
    for outcome in upload_partitions([gone], settings, settings.store.open()):
        assert isinstance(outcome, Done), outcome
    first = store(settings, [here, gone])
    assert [(one.rows.rows, one.rows.rejected) for one in first if isinstance(one, Done)] == [
        (9, 2),
        (9, 0),
    ]
    assert numbers(table) == [*range(9), *range(10, 19)]
    letters = [letter for _, letter in numbered_dead_letters(settings.layout)]
    assert [letter.reason for letter in letters] == [
        "column number: not a whole number",
        "column name: NULL, and the column is not Nullable",
    ]
    for number in (1, 2):
        done = store(settings, [here, gone], redo=True)
        assert [one.rows.redo for one in done if isinstance(one, Done) and one.rows] == [number] * 2
        assert numbers(table) == [*range(9), *range(10, 19)]


@pytest.mark.parametrize("redo", [False, True])
@pytest.mark.parametrize("step", ["DEAD_LETTERS_KEPT", "ROWS_STORED", "ROWS_RECEIPT_KEPT"])
def test_a_process_killed_behind_any_step_ends_as_without_the_kill(
    settings: Pipeline, table: Table, step: str, redo: bool
) -> None:
    key = sealed(settings, items(0, 9) | {"bad.json": b'{"n": "x"}'}).seal.partition
    if redo:
        assert isinstance(store(settings, [key])[0], Done)
    child = os.fork()
    if child == 0:
        try:
            observe(lambda at: os.kill(os.getpid(), signal.SIGKILL) if at.name == step else None)
            store(settings, [key], redo=redo)
        finally:
            os._exit(3)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), f"{CrashPoint[step]} was not passed"
    (done,) = store(settings, [key], redo=redo)
    assert isinstance(done, Done) and done.rows is not None
    assert (done.rows.rows, done.rows.rejected) == (9, 1)
    assert numbers(table) == list(range(9))
    # A redo after the receipt is another redo, with a letter of its own.
    deliveries = 1 + redo + (redo and step == "ROWS_RECEIPT_KEPT")
    assert len(list(numbered_dead_letters(settings.layout))) == deliveries
