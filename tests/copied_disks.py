"""Copies of a storage root, and what their workers say of each other.

Two copies of a folder on one machine are in two places, as two machines' are; a worker that starts
with `FUPLOADER_MACHINE` set is on another machine.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fuploader_dagster.intake.supervisor import Supervisor
from fuploader_dagster.settings.loading import dump_intake
from fuploader_dagster.settings.pipeline import Intake
from tests.drains import wait_for


def copy_disk(one: Intake, other: Intake) -> None:
    shutil.copytree(one.layout.root, other.layout.root)


def wait_until_said(supervisor: Supervisor, what: str) -> str:
    def said() -> bool:
        return any(what in one for one in supervisor.problems())

    wait_for(said, supervisor.pipeline, f"a worker that says {what!r}")
    return next(one for one in supervisor.problems() if what in one)


@contextmanager
def another_process(settings: Intake) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor in a process of its own, with its workers; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.drains"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        assert process.stdin is not None
        process.stdin.write(dump_intake(settings) + b"\n")
        process.stdin.flush()
        yield process
    finally:
        process.kill()
        process.communicate()
