"""Who may drain, under `dagster dev`: off means off, death means off, and a reload is no gap."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.servers.dagster_dev import DagsterDev, group_members
from tests.servers.ports import wait_until
from tests.settings import embedded_parts

SELECTOR = {
    "repositoryLocationName": "fuploader",
    "repositoryName": "__repository__",
    "sensorName": "docs_drain",
}
WAIT_SECONDS = 120.0


@pytest.fixture(scope="module")
def location(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterDev]:
    """An idle pipeline on embedded parts; one for all these tests, as starting it takes long."""
    configuration = {
        "storage_root": "data",
        "pipelines": {"docs": embedded_parts()},
    }
    dev = DagsterDev(tmp_path_factory.mktemp("switching"), configuration, {})
    dev.start()
    try:
        yield dev
    finally:
        dev.stop()


@pytest.fixture
def dev(location: DagsterDev) -> DagsterDev:
    """The location, with one worker running; started again where a test had to end it."""
    if not location.running:
        location.start()
    location.wait_for(lambda: len(workers(location)) == 1, "a worker")
    return location


def workers(dev: DagsterDev) -> set[int]:
    """Process ids of the live workers."""
    found = set()
    for member in group_members(dev.group):
        pid, _, command = member.partition(" ")
        if "fuploader_dagster.intake.worker" in command:
            found.add(int(pid))
    return found


def processes(dev: DagsterDev, *words: str) -> list[int]:
    """Process ids of the session whose command line has all the words."""
    members = (member.partition(" ") for member in group_members(dev.group))
    return [int(pid) for pid, _, command in members if all(word in command for word in words)]


def until(met: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    """Wait for something; `dagster dev` itself may end."""
    wait_until(lambda: bool(met()), seconds=seconds, what="what was waited for", diagnose=str)


@pytest.mark.timeout(240)
def test_switching_the_sensor_off_stops_the_drain_and_on_starts_it(
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
    until(lambda: not workers(dev))
    started = dev.query(
        "mutation($s: SensorSelector!) { startSensor(sensorSelector: $s) { __typename } }",
        s=SELECTOR,
    )
    assert started["startSensor"]["__typename"] == "Sensor"
    until(lambda: len(workers(dev)) == 1)


@pytest.mark.timeout(240)
def test_a_reload_of_the_code_location_replaces_the_worker_and_never_doubles_it(
    dev: DagsterDev,
) -> None:
    before = workers(dev)
    dev.query(
        'mutation { reloadRepositoryLocation(repositoryLocationName: "fuploader") { __typename } }'
    )
    until(lambda: workers(dev) and not workers(dev) & before)
    folder = dev.folder / "data" / "docs" / "workers"
    until(lambda: any(_draining(path) for path in folder.glob("*.json")))
    until(lambda: len(workers(dev)) == 1)


def _draining(path: Path) -> bool:
    try:
        return bool(msgspec.json.decode(path.read_bytes())["doing"] == "draining")
    except FileNotFoundError:
        return False


@pytest.mark.timeout(240)
def test_the_death_of_the_daemon_ends_the_worker(dev: DagsterDev) -> None:
    (daemon,) = processes(dev, "dagster._daemon", "run")
    os.kill(daemon, signal.SIGSTOP)  # a dead one would take `dagster dev` with it
    try:
        until(lambda: not workers(dev))
    finally:
        os.kill(daemon, signal.SIGCONT)


@pytest.mark.timeout(240)
def test_the_death_of_the_code_server_ends_the_worker(dev: DagsterDev) -> None:
    for pid in processes(dev, "dagster", "api", "grpc"):
        os.kill(pid, signal.SIGKILL)
    for pid in processes(dev, "code-server", "start"):
        os.kill(pid, signal.SIGKILL)
    try:
        until(lambda: not workers(dev))
    finally:
        dev.kill()  # it starts no new code server
