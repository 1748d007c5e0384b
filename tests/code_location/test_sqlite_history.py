"""Dagster's history: the same as with Dagster's own storage, killed or not, with few syncs."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy

from fuploader_dagster.sqlite_history import MOST_KEPT_OPEN, SqliteHistory, _QuickConnections

OURS = """
storage:
  custom:
    module: fuploader_dagster.sqlite_history
    class: SqliteHistory
    config: {base_dir: BASE}
"""
DAGSTERS = "storage: {sqlite: {base_dir: BASE}}"
WRITER = """
import sys, dagster as dg
from tests.code_location.test_sqlite_history import written
instance = dg.DagsterInstance.from_config(sys.argv[1])
written(instance, int(sys.argv[2]))
print("written", flush=True)
sys.stdin.read()
"""


def instance(folder: Path, settings: str) -> dg.DagsterInstance:
    (folder / "dagster.yaml").write_text(settings.replace("BASE", str(folder / "storage")))
    return dg.DagsterInstance.from_config(str(folder))


def written(one: dg.DagsterInstance, events: int) -> None:
    one.add_dynamic_partitions("slots", [f"key-{number}" for number in range(events)])
    for number in range(events):
        one.report_runless_asset_event(dg.AssetMaterialization("a", partition=f"key-{number}"))


def found(one: dg.DagsterInstance) -> tuple[int, int]:
    events = one.fetch_materializations(dg.AssetKey("a"), limit=1000).records
    return len(one.get_dynamic_partitions("slots")), len(events)


def test_what_one_storage_wrote_the_other_reads(tmp_path: Path) -> None:
    with instance(tmp_path, DAGSTERS) as before:
        written(before, 2)
    with instance(tmp_path, OURS) as ours:
        assert isinstance(ours.get_ref().storage, SqliteHistory)
        assert found(ours) == (2, 2)
        written(ours, 3)
        assert found(ours) == (3, 5)
    with instance(tmp_path, DAGSTERS) as after:
        assert found(after) == (3, 5)


def test_a_killed_process_leaves_every_event(tmp_path: Path) -> None:
    with instance(tmp_path, OURS):
        pass
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), "5"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        writer.send_signal(signal.SIGKILL)
    with instance(tmp_path, OURS) as after:
        assert found(after) == (5, 5)


def test_an_event_costs_a_fraction_of_the_syncs(tmp_path: Path) -> None:
    syncs = {}
    for name, settings in (("ours", OURS), ("dagster's", DAGSTERS)):
        folder = tmp_path / name
        folder.mkdir()
        with instance(folder, settings) as one:
            written(one, 1)  # makes the databases
        few, many = (synced(folder, events) for events in (1, 6))
        syncs[name] = (many - few) / 5
    assert syncs["dagster's"] > 2  # else this storage has lost its reason
    assert syncs["ours"] < 0.5


def synced(folder: Path, events: int) -> int:
    """How often a process that writes so many events syncs."""
    log = folder / f"strace-{events}"
    command = ["strace", "-f", "--seccomp-bpf", "-o", str(log), "-e", "trace=fsync,fdatasync"]
    subprocess.run(
        [*command, sys.executable, "-c", WRITER, str(folder), str(events)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return log.read_text().count("sync(")


def test_databases_elsewhere_are_left_alone(tmp_path: Path) -> None:
    with instance(tmp_path, OURS):
        other = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'other.sqlite'}")
        with other.connect() as connection:
            (synchronous,) = connection.execute(sqlalchemy.text("pragma synchronous")).one()
        assert synchronous == 2


def test_no_more_than_some_databases_stay_open(tmp_path: Path) -> None:
    kept = _QuickConnections()
    for number in range(2 * MOST_KEPT_OPEN):
        path = tmp_path / f"{number}.db"
        with sqlite3.connect(path) as connection:
            connection.execute("pragma journal_mode = wal")
            connection.execute("create table t (x)")
        connection.close()
        kept._keep(path)
    with sqlite3.connect(path) as connection:
        connection.execute("insert into t values (1)")
    connection.close()
    logs = {log.name for log in tmp_path.glob("*-wal")}
    assert len(logs) == MOST_KEPT_OPEN
    assert f"{2 * MOST_KEPT_OPEN - 1}.db-wal" in logs


@pytest.mark.parametrize("project", ["dagster.yaml", "fuploader_dagster/new_project/dagster.yaml"])
def test_projects_of_ours_use_it(project: str) -> None:
    settings = (Path(__file__).parents[2] / project).read_text()
    assert "class: SqliteHistory" in settings
