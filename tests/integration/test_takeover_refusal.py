"""Nothing starts beside what FUploader left; after `fuploader migrate` all of it goes on."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from fuploader_dagster import drain_pipeline, recover_pipeline, run_pipeline, ship_pipeline
from fuploader_dagster.errors import MigrationNeeded
from fuploader_dagster.intake.supervisor import supervisor_for
from fuploader_dagster.sensors.drain_sensor import DrainTrouble
from fuploader_dagster.settings.loading import load_pipelines
from fuploader_dagster.settings.pipeline import Pipeline
from tests.drains import MARK, files, pids, publish, wait_until_stored
from tests.servers.redis import RedisServer
from tests.settings import archived_files
from tests.ticking import Ticking, new_keys

SENTENCE = "`fuploader migrate --pipeline docs`"


def configured(folder: Path, state: Mapping[str, object] | None = None) -> Path:
    """The path of a configuration of one pipeline, all of it below the folder."""
    path = folder / "fuploader.yaml"
    docs = {
        "source": {"kind": "embedded", "path": str(folder / "queue")},
        "state": state or {"kind": "sqlite", "path": str(folder / "state.sqlite")},
        "store": {"kind": "local", "path": str(folder / "objects")},
        "node_id": "box1",
        "min_free_bytes": MARK,
        "process_count": 1,
        "lease_seconds": 60,
    }
    path.write_text(
        yaml.safe_dump({"storage_root": str(folder / "data"), "pipelines": {"docs": docs}})
    )
    return path


def leave(folder: Path) -> None:
    """A directory of FUploader's."""
    path = folder / "data" / "slot_0_3" / "left.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"left")


def fuploader(configuration: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("fuploader")), *arguments]
    return subprocess.run(
        [*command, "--config", str(configuration)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=configuration.parent,
    )


def test_the_drain_sensor_starts_no_worker_until_the_migrate_and_then_goes_on_by_itself(
    tmp_path: Path,
) -> None:
    configuration = configured(tmp_path)
    leave(tmp_path)
    docs = load_pipelines(configuration)["docs"]
    contents = files(20)
    publish(docs.intake(), contents)
    sensor = Ticking(docs)
    try:
        for _ in range(2):
            with pytest.raises(DrainTrouble, match=SENTENCE):
                sensor.tick()
            assert not any(worker.process for worker in supervisor_for(docs.intake())._workers)
            assert pids(docs.intake()) == set()
        done = fuploader(configuration, "migrate", "--yes", "--pipeline", "docs")
        assert (done.returncode, "sealed 1 slot with 1 file" in done.stdout) == (0, True), done
        (adopted,) = new_keys(sensor.tick())
        assert "-s9999-" in adopted
        wait_until_stored(docs.intake(), contents)
    finally:
        supervisor_for(docs.intake()).stop()


@pytest.mark.parametrize(
    "start",
    [
        ship_pipeline,
        recover_pipeline,
        lambda docs: run_pipeline(docs, until_empty=True),
        lambda docs: drain_pipeline(docs, over()),
    ],
    ids=["ship", "recover", "run", "drain"],
)
def test_without_dagster_it_is_an_error_until_the_migrate(
    tmp_path: Path, start: Callable[[Pipeline], object]
) -> None:
    configuration = configured(tmp_path)
    leave(tmp_path)
    docs = load_pipelines(configuration)["docs"]
    with pytest.raises(MigrationNeeded, match=SENTENCE):
        start(docs)
    assert (tmp_path / "data" / "slot_0_3" / "left.json").exists()
    assert fuploader(configuration, "migrate", "--yes").returncode == 0
    start(docs)


def over() -> threading.Event:
    """A drain that is told to stop before it begins."""
    event = threading.Event()
    event.set()
    return event


@pytest.mark.parametrize("command", ["ship", "drain"])
def test_a_command_exits_with_4_and_the_sentence(tmp_path: Path, command: str) -> None:
    configuration = configured(tmp_path)
    leave(tmp_path)
    done = fuploader(configuration, command)
    assert done.returncode == 4
    assert f"pipeline docs cannot start: FUploader left {tmp_path}/data/slot_0_3" in done.stderr
    assert SENTENCE in done.stderr


def test_what_was_migrated_is_shipped_by_the_next_command(tmp_path: Path) -> None:
    configuration = configured(tmp_path)
    leave(tmp_path)
    assert fuploader(configuration, "migrate", "--yes").returncode == 0
    done = fuploader(configuration, "ship")
    assert done.returncode == 0, done.stderr
    assert archived_files(tmp_path / "objects") == {"left.json": [b"left"]}


def test_a_take_over_that_died_at_its_very_end_is_ended_by_the_next_one(tmp_path: Path) -> None:
    configuration = configured(tmp_path)
    (tmp_path / "data" / "docs" / "adopting" / "slot-9999").mkdir(parents=True)
    assert fuploader(configuration, "ship").returncode == 4
    assert fuploader(configuration, "migrate", "--yes").returncode == 0
    assert fuploader(configuration, "ship").returncode == 0


def test_keys_in_redis_that_name_nothing_here_are_shown_left_alone_and_then_no_obstacle(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    state = {"kind": "redis", "url": {"env": "LEFT_REDIS_URL"}, "key_prefix": "left-alone"}
    configuration = configured(tmp_path, state)
    with pytest.MonkeyPatch.context() as environment, redis_server.client() as client:
        environment.setenv("LEFT_REDIS_URL", redis_server.url())
        client.set("docs:meta:box1:slot:0:active_dir", "dir-000007")
        try:
            refused = fuploader(configuration, "ship")
            assert refused.returncode == 4
            assert "FUploader left keys that begin with docs:meta:box1:" in refused.stderr
            shown = fuploader(configuration, "migrate", "--dry-run")
            assert "name no directory below" in shown.stdout
            assert fuploader(configuration, "ship").returncode == 4
            migrated = fuploader(configuration, "migrate", "--yes", "--stopped")
            assert migrated.returncode == 0, migrated.stderr
            assert fuploader(configuration, "ship").returncode == 0
            assert "nothing of FUploader's is left" in fuploader(configuration, "migrate").stdout
            assert client.get("docs:meta:box1:slot:0:active_dir") == "dir-000007"
        finally:
            client.delete("docs:meta:box1:slot:0:active_dir")
