"""One `fuploader dev` at a time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from fuploader_dagster.cli.init import write_project
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.errors import SlotInUse

FUPLOADER = Path(sys.executable).with_name("fuploader")
HOLDER = """
import os, sys
from pathlib import Path
from fuploader_dagster.disk.locks import FileLock
lock = FileLock(Path(sys.argv[1]))
lock.acquire()
lock.keep_over_exec()
os.execvp("sh", ["sh", "-c", "echo held; read line"])
"""


def test_a_second_one_beside_a_running_one_says_so_and_ends(tmp_path: Path) -> None:
    write_project(tmp_path)
    lock = Layout(tmp_path / "data" / "documents").dev_lock
    with FileLock(lock):
        done = subprocess.run(
            [str(FUPLOADER), "dev"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 4
    assert "`fuploader dev` runs already for pipeline documents" in done.stderr
    assert "stop it first" in done.stderr
    assert not (tmp_path / "data" / "queue").exists(), "no samples were put into its queue"


def test_the_program_that_takes_its_place_holds_the_lock_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "dev.lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(SlotInUse):
            FileLock(path).acquire()
        process.kill()
    until = time.monotonic() + 60
    while True:
        try:
            FileLock(path).acquire()
        except SlotInUse:
            assert time.monotonic() < until
            time.sleep(0.05)
        else:
            break
