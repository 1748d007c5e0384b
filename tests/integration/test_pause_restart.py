"""A pause under `dagster dev`: it survives a kill and a restart, and a resume continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.control.wishes import current
from fuploader_dagster.intake.worker_status import read_statuses
from fuploader_dagster.settings.loading import load_pipelines
from tests.drains import backlog, files, publish, snapshot
from tests.integration.test_cli import fuploader
from tests.servers.dagster_dev import DagsterDev
from tests.settings import archived_files, embedded_parts


@pytest.mark.timeout(600)
def test_a_pause_outlives_dagster_and_nothing_is_lost(tmp_path: Path) -> None:
    values: dict[str, Any] = {**embedded_parts(tmp_path), "min_free_bytes": 0, "seal_messages": 50}
    configuration = {"storage_root": str(tmp_path / "data"), "pipelines": {"docs": values}}
    dev = DagsterDev(tmp_path / "dev", configuration, {})
    dev.start()
    try:
        settings = load_pipelines(tmp_path / "dev" / "fuploader.yaml")["docs"]

        def doing() -> list[str]:
            return [one.doing for one in read_statuses(settings.layout)]

        dev.wait_for(lambda: doing() == ["draining"], "a worker")
        paused = fuploader(tmp_path / "dev", "pause", "docs", "--reason", "a restart")
        assert paused.returncode == 0, paused.stderr
        dev.wait_for(lambda: doing() == ["held"], "a held worker")
        contents = files(120)
        publish(settings, contents)
        dev.kill()
        dev.start()
        dev.wait_for(lambda: doing() == ["held"], "a held worker after the restart")
        assert current(settings).intake.reason == "a restart"
        ticks = ticks_of(dev)
        dev.wait_for(
            lambda: any("a restart" in one for one in ticks_of(dev)), "a tick that says it"
        )
        assert backlog(settings) == len(contents), ticks
        assert snapshot(settings).stored_messages == 0
        assert fuploader(tmp_path / "dev", "resume", "docs").returncode == 0
        dev.wait_for(lambda: len(archived_files(tmp_path / "objects")) >= 100, "archives")
        seal = fuploader(tmp_path / "dev", "seal")
        assert seal.returncode == 0, seal.stderr
        names = contents.keys()
        dev.wait_for(lambda: archived_files(tmp_path / "objects").keys() == names, "the rest")
    finally:
        dev.stop()


def ticks_of(dev: DagsterDev) -> list[str]:
    """What the last ticks of the drain sensor said."""
    selector = {
        "repositoryLocationName": "fuploader",
        "repositoryName": "__repository__",
        "sensorName": "docs_drain",
    }
    found = dev.query(
        "query($s: SensorSelector!) { sensorOrError(sensorSelector: $s) { ... on Sensor "
        "{ sensorState { ticks(limit: 5) { skipReason } } } } }",
        s=selector,
    )
    state = found["sensorOrError"]["sensorState"]
    return [one["skipReason"] or "" for one in state["ticks"]]
