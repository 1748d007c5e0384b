"""Who may drain, under `dagster dev`: off means off, death means off, and a reload is no gap."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.servers.dagster_dev import DagsterDev, group_members

SELECTOR = {
    "repositoryLocationName": "fuploader",
    "repositoryName": "__repository__",
    "sensorName": "docs_drain",
}
OFF_SECONDS = 10.0


@pytest.fixture(scope="module")
def location(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterDev]:
    """An idle pipeline on embedded parts; one for all these tests, as starting it takes long."""
    configuration = {
        "storage_root": "data",
        "pipelines": {
            "docs": {
                "source": {"kind": "embedded", "path": "queue"},
                "state": {"kind": "sqlite", "path": "state.sqlite"},
                "store": {"kind": "local", "path": "objects"},
            }
        },
    }
    dev = DagsterDev(tmp_path_factory.mktemp("switching"), configuration, {})
    dev.start()
    try:
        yield dev
    finally:
        dev.stop()


@pytest.fixture
def dev(location: DagsterDev) -> DagsterDev:
    """The location, with one worker running."""
    location.wait_for(lambda: len(workers(location)) == 1, "a worker", 60)
    return location


def workers(dev: DagsterDev) -> set[int]:
    """Process ids of the live workers."""
    found = set()
    for member in group_members(dev.group):
        pid, _, command = member.partition(" ")
        if "fuploader_dagster.worker" in command:
            found.add(int(pid))
    return found


def processes(dev: DagsterDev, *words: str) -> list[int]:
    """Process ids of the session whose command line has all the words."""
    members = (member.partition(" ") for member in group_members(dev.group))
    return [int(pid) for pid, _, command in members if all(word in command for word in words)]


def seconds_until(met: object, limit: float) -> float:
    """How long it takes until `met()`; fails after `limit`."""
    assert callable(met)
    started = time.monotonic()
    while not met():
        assert time.monotonic() - started < limit, f"not within {limit} s"
        time.sleep(0.1)
    return time.monotonic() - started


@pytest.mark.timeout(240)
def test_switching_the_sensor_off_stops_the_drain_within_ten_seconds_and_on_starts_it(
    dev: DagsterDev,
) -> None:
    state = dev.query(
        "query($s: SensorSelector!) { sensorOrError(sensorSelector: $s) { ... on Sensor {"
        " sensorState { id } } } }",
        s=SELECTOR,
    )["sensorOrError"]["sensorState"]
    stopped = dev.query(
        "mutation($id: String!) { stopSensor(id: $id) { __typename } }", id=state["id"]
    )
    assert stopped["stopSensor"]["__typename"] == "StopSensorMutationResult"
    seconds_until(lambda: not workers(dev), OFF_SECONDS)
    started = dev.query(
        "mutation($s: SensorSelector!) { startSensor(sensorSelector: $s) { __typename } }",
        s=SELECTOR,
    )
    assert started["startSensor"]["__typename"] == "Sensor"
    seconds_until(lambda: len(workers(dev)) == 1, 20)


@pytest.mark.timeout(240)
def test_a_reload_of_the_code_location_replaces_the_worker_and_never_doubles_it(
    dev: DagsterDev,
) -> None:
    before = workers(dev)
    dev.query(
        'mutation { reloadRepositoryLocation(repositoryLocationName: "fuploader") { __typename } }'
    )
    seconds_until(lambda: workers(dev) and not workers(dev) & before, 30)
    folder = dev.folder / "data" / "docs" / "workers"
    seconds_until(lambda: any(_draining(path) for path in folder.glob("*.json")), 15)
    assert len(workers(dev)) == 1


def _draining(path: Path) -> bool:
    try:
        return bool(msgspec.json.decode(path.read_bytes())["doing"] == "draining")
    except FileNotFoundError:
        return False


@pytest.mark.timeout(240)
def test_the_death_of_the_daemon_ends_the_worker_within_its_lease(dev: DagsterDev) -> None:
    (daemon,) = processes(dev, "dagster._daemon", "run")
    os.kill(daemon, signal.SIGSTOP)  # a dead one would take `dagster dev` with it
    try:
        seconds_until(lambda: not workers(dev), OFF_SECONDS)
    finally:
        os.kill(daemon, signal.SIGCONT)


@pytest.mark.timeout(240)
def test_the_death_of_the_code_server_ends_the_worker(dev: DagsterDev) -> None:
    # The last of these tests: `dagster dev` starts no new code server.
    for pid in processes(dev, "dagster", "api", "grpc"):
        os.kill(pid, signal.SIGKILL)
    for pid in processes(dev, "code-server", "start"):
        os.kill(pid, signal.SIGKILL)
    seconds_until(lambda: not workers(dev), 5)
