"""Runs under `fuploader dev` are forks: with the code of today, and nobody loses sight of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fuploader_dagster.settings.loading import load_pipelines
from fuploader_dagster.slots.receipts import receipts_between
from tests.drains import files, publish, sealed_files
from tests.packers import HOLD, held_packer
from tests.servers.dagster_dev import DagsterDev
from tests.settings import archived_files, embedded_parts

MESSAGES = 20
TERMINATE = """mutation($run: String!) { terminateRun(runId: $run) { __typename
 ... on TerminateRunFailure { message } } }"""
SECONDS = 60


@pytest.mark.timeout(300)
def test_runs_are_forks_that_are_seen_when_they_die_ended_when_asked_and_load_what_was_corrected(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "project"
    settings = {
        **embedded_parts(folder),
        "packer": "packing:pack",
        "seal_messages": MESSAGES,
        "recovery_base_seconds": 3600,  # so it is not who asks
    }
    configuration = {"storage_root": str(folder / "data"), "pipelines": {"docs": settings}}
    dev = DagsterDev(folder, configuration, {})
    (folder / "packing.py").write_text(held_packer("packing-one"))
    (folder / HOLD).touch()
    first, second = (files(MESSAGES, prefix=which) for which in ("first", "second"))

    def packing(version: str) -> int:
        """Who packs."""
        path = folder / f"packing-{version}"
        return int(path.read_text() or 0) if path.exists() else 0

    def statuses() -> list[str]:
        return [run["status"] for run in reversed(dev.runs())]

    try:
        dev.start()
        pipeline = load_pipelines(folder / "fuploader.yaml")["docs"]
        publish(pipeline, first)
        dev.wait_for(lambda: packing("one") > 0, "a run to pack", SECONDS)
        killed = packing("one")
        assert "forkserver" in command_of(parent_of(killed))
        os.kill(killed, signal.SIGKILL)
        dev.wait_for(lambda: packing("one") not in (0, killed), "its retry to pack", SECONDS)
        assert statuses() == ["FAILURE", "STARTED"]

        answer = dev.query(TERMINATE, run=dev.runs()[0]["runId"])
        assert answer["terminateRun"]["__typename"] == "TerminateRunSuccess", answer
        dev.wait_for(lambda: statuses()[1] == "CANCELED", "the end of the run", SECONDS)
        assert sealed_files(pipeline.layout) == {name: [body] for name, body in first.items()}

        (folder / "packing.py").write_text(held_packer("packing-two"))
        (folder / HOLD).unlink()
        publish(pipeline, second)
        dev.wait_for(lambda: bool(receipts_between(pipeline.layout)), "an archive", SECONDS)
        assert packing("two") > 0
    finally:
        dev.stop()
    assert archived_files(folder / "objects") == {name: [body] for name, body in second.items()}


def test_what_runs_need_is_imported_before_them() -> None:
    """A name that Dagster changed would be passed over like an SDK that is not installed."""
    program = (
        "import sys; from fuploader_dagster.dagster_internals.warm_imports import MODULES;"
        "print(*(name for name in MODULES if name not in sys.modules))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
