"""Commands that only look leave the disk as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuploader_dagster.cli.init import write_project

FUPLOADER = Path(sys.executable).with_name("fuploader")
LOOKING = [
    ["status"],
    ["status", "--json"],
    ["dead-letters", "list"],
    ["partitions"],
    ["lint"],
]


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every name below the folder, with its mode and its size."""
    found = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        size = 0 if path.is_dir() else stat.st_size
        found[str(path.relative_to(folder))] = (stat.st_mode, size)
    return found


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [str(FUPLOADER), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", LOOKING, ids=" ".join)
def test_looking_at_a_new_project_makes_nothing(tmp_path: Path, command: list[str]) -> None:
    write_project(tmp_path)
    before = tree(tmp_path)
    run(tmp_path, *command)
    assert tree(tmp_path) == before


def test_looking_at_a_queue_with_messages_makes_nothing_more(tmp_path: Path) -> None:
    write_project(tmp_path)
    (tmp_path / "lines").write_text('{"file_name": "a.json", "payload": {"n": 1}}\n')
    run(tmp_path, "publish", "lines")
    before = tree(tmp_path)
    assert before["data/queue/queue.sqlite"][1] > 0
    for command in LOOKING:
        said = run(tmp_path, *command)
        assert command[0] != "status" or "waiting" in said or "1 message waits" in said
    assert tree(tmp_path) == before
