"""Sinks at the command line: ship, status, doctor, and dead letters that are stored again."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

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


def ids(project: Path) -> list[int]:
    with closing(sqlite3.connect(project / "rows.sqlite")) as database:
        return [one for (one,) in database.execute("SELECT id FROM files ORDER BY id")]


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
    assert "stored 0 rows of 0 files" in done.stdout
    assert len(listed(project)) == 3
    (project / "app.py").write_text(APP.replace('["ids"]', '.get("ids", [3])'))
    done = fuploader(project, "dead-letters", "requeue", letters["d"]["id"], "--stage")
    assert done.returncode == 0, done.stderr
    assert "stored 1 rows of 1 files" in done.stdout
    assert {one["name"] for one in listed(project)} == {"b", "c"}
    again = fuploader(project, "dead-letters", "requeue", letters["d"]["id"], "--stage")
    assert again.returncode == 0, again.stderr
    assert ids(project) == [1, 2, 3]


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
