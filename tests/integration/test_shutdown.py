"""SIGTERM, as a process manager sends it: what is in hand is finished, and everybody leaves."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fuploader_dagster.settings.loading import load_pipelines
from tests.drains import backlog, contents_of, publishing, stored
from tests.servers.dagster_dev import DagsterDev, group_members
from tests.servers.ports import wait_until
from tests.settings import embedded_parts

ORDERLY_SECONDS = 25
"""Less than after which a worker that hangs ends itself."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("to", ["the code server", "dagster dev"])
def test_sigterm_under_load_ends_the_workers_in_seconds_with_their_batch_committed_and_settled(
    tmp_path: Path, to: str
) -> None:
    folder = tmp_path / "project"
    configuration = {
        "storage_root": str(folder / "data"),
        "pipelines": {
            "docs": {
                **embedded_parts(folder),
                "seal_messages": 1_000_000,
                "seal_age_seconds": 3600,
                "dedup_window_messages": 0,  # what was committed and not settled would show
            }
        },
    }
    dev = DagsterDev(folder, configuration, {})
    try:
        dev.start()
        pipeline = load_pipelines(dev.folder / "fuploader.yaml")["docs"]
        with publishing(pipeline, ahead=5_000) as contents:
            dev.wait_for(lambda: bool(stored(pipeline.layout)), "the first messages")
            terminate(dev, to)
            wait_for_none(dev, "fuploader_dagster.intake.worker" if to == "the code server" else "")
            wait_until(
                lambda: backlog(pipeline) > 0,
                seconds=60,
                what="a message that nobody takes",
                diagnose=lambda: f"{len(contents)} published",
            )
    finally:
        dev.kill()
    handled = stored(pipeline.layout)
    assert handled
    assert backlog(pipeline) == len(contents) - len(handled)
    (directory,) = (pipeline.layout.root / "active").glob("slot-*/dir-*")
    names = [name for name, _ in contents_of(directory)]
    assert len(names) == len(set(names)) == len(handled)


def terminate(dev: DagsterDev, whom: str) -> None:
    if whom == "dagster dev":
        os.kill(dev.group, signal.SIGTERM)
        return
    servers = [
        int(member.split()[0])
        for member in group_members(dev.group)
        if "api grpc" in member or "code-server start" in member
    ]
    assert servers
    for pid in servers:
        os.kill(pid, signal.SIGTERM)


def wait_for_none(dev: DagsterDev, words: str) -> None:
    """Until no process of the session has the words in its command line."""

    def left() -> list[str]:
        return [member for member in group_members(dev.group) if words in member]

    wait_until(
        lambda: not left(),
        seconds=ORDERLY_SECONDS,
        what=f"the end of {words or 'all processes'}",
        diagnose=lambda: "\n".join(left()),
    )
