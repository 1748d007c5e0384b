"""Sinks at the command line: ship, status, doctor, and dead letters that are stored again."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.delivery.attempts import Done
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.rows import store_partitions
from fuploader_dagster.settings.loading import load_pipelines
from tests.integration.test_cli import configure, fuploader
from tests.settings import pipeline, sealed

TABLE = "CREATE TABLE files (id INTEGER PRIMARY KEY, name TEXT NOT NULL)"
APP = """
def rows(item):
    found = item.json()
    return [{"id": one, "name": item.name} for one in found["ids"]]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    url = f"sqlite:///{tmp_path / 'rows.sqlite'}"
    sink = {"kind": "sql", "url": url, "table": "files", "rows": "app:rows"}
    configure(tmp_path, sinks={"rows": sink}, recovery_base_seconds=0.001)
    with closing(sqlite3.connect(tmp_path / "rows.sqlite")) as database:
        database.execute(TABLE)
    return tmp_path


def ids(project: Path, table: str = "files") -> list[int]:
    with closing(sqlite3.connect(project / "rows.sqlite")) as database:
        return [one for (one,) in database.execute(f"SELECT id FROM {table} ORDER BY id")]  # noqa: S608


def listed(project: Path, *more: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        fuploader(project, "dead-letters", "list", "--json", *more).stdout
    )
    return found


def test_what_a_sink_did_not_take_is_listed_and_stored_again_alone(project: Path) -> None:
    content = {"a": b'{"ids": [1, 2]}', "b": b'{"ids": [null, "x"]}', "c": b"no", "d": b'{"id": 3}'}
    key = sealed(pipeline(project), content).seal.partition
    done = fuploader(project, "ship")
    assert done.returncode == 0, done.stderr
    assert "stored 2 rows" in done.stdout
    letters = {one["name"]: one for one in listed(project)}
    assert letters.keys() == {"b", "c", "d"}
    assert {(one["stage"], one["partition"]) for one in letters.values()} == {("sink:rows", key)}
    assert "KeyError in line 4 of app.py" in letters["d"]["reason"]
    done = fuploader(project, "dead-letters", "requeue", "--all", "--stage")
    assert done.returncode == 4
    assert done.stdout == ""
    assert done.stderr.count(" stays here: ") == 3
    assert len(listed(project)) == 3
    (project / "app.py").write_text(APP.replace('["ids"]', '.get("ids", [3])'))
    done = fuploader(project, "dead-letters", "requeue", letters["d"]["id"], "--stage")
    assert done.returncode == 0, done.stderr
    assert "stored 1 row of 1 file" in done.stdout
    assert {one["name"] for one in listed(project)} == {"b", "c"}
    again = fuploader(project, "dead-letters", "requeue", letters["d"]["id"], "--stage")
    assert again.returncode == 0, again.stderr
    assert ids(project) == [1, 2, 3]


@pytest.mark.parametrize("how", [("--stage",), ()])
def test_letters_whose_items_a_redo_stored_are_settled_and_not_sent(
    project: Path, how: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    with closing(sqlite3.connect(project / "rows.sqlite")) as database:
        database.execute("CREATE TABLE numbers (id INTEGER PRIMARY KEY, slot TEXT)")
    url = f"sqlite:///{project / 'rows.sqlite'}"
    sink: dict[str, Any] = {"kind": "sql", "url": url, "table": "numbers", "slot_column": "slot"}
    configure(project, sinks={"rows": {**sink, "columns": ["id"]}})
    content = {"a": b'{"id": 1, "other": 1}', "b": b'{"id": "x", "other": 2}'}
    key = sealed(pipeline(project), content).seal.partition
    assert fuploader(project, "ship").returncode == 0
    (letter,) = listed(project)
    configure(project, sinks={"rows": {**sink, "columns": {"id": "other"}}})
    pipelines = load_pipelines(project / "fuploader.yaml")
    open_archive = ArchiveFinder(pipelines).open
    (redone,) = store_partitions([key], pipelines["docs"], "rows", open_archive, redo=True)
    assert isinstance(redone, Done), redone
    assert ids(project, "numbers") == [1, 2]
    assert listed(project) == []
    (shown,) = listed(project, "--all")
    assert shown["settled"] == f"{key} was stored again since, by redo 1 of sink rows"
    for which in ("--all", letter["id"]):
        done = fuploader(project, "dead-letters", "requeue", which, *how)
        assert done.returncode == 0, done.stderr
        assert "1 dead letter is settled" in done.stdout
        assert "by redo 1 of sink rows" in done.stdout
        assert "sent" not in done.stdout
    assert ids(project, "numbers") == [1, 2]
    assert not list(project.glob("**/queue.sqlite"))


def test_status_says_what_is_stored_owed_and_wrong_and_the_doctor_what_to_do(
    project: Path,
) -> None:
    good = fuploader(project, "doctor")
    assert "sink rows" in good.stdout
    assert good.returncode == 0, good.stdout
    with closing(sqlite3.connect(project / "rows.sqlite")) as database:
        database.execute("DROP TABLE files")
    assert fuploader(project, "doctor").returncode != 0
    for n in range(3):
        sealed(pipeline(project), {"a": b'{"ids": [%d]}' % n})
    done = fuploader(project, "ship")
    assert done.returncode == 4
    assert "not stored: rows of" in done.stderr
    (found,) = json.loads(fuploader(project, "status", "--json").stdout)
    (sink,) = found["sinks"]
    assert (sink["stored_slots"], sink["owed_slots"], sink["failing_slots"]) == (0, 3, 1)
    assert "files" in sink["trouble"]
    assert "no rows could be stored since" in fuploader(project, "status").stdout
    with closing(sqlite3.connect(project / "rows.sqlite")) as database:
        database.execute(TABLE)
    assert fuploader(project, "ship").returncode == 0
    (found,) = json.loads(fuploader(project, "status", "--json").stdout)
    (sink,) = found["sinks"]
    assert (sink["stored_slots"], sink["rows"], sink["owed_slots"]) == (3, 3, 0)
    assert (sink["trouble"], sink["last_error"]) == ("", "")
    assert ids(project) == [0, 1, 2]
