"""compose.yaml works: its services of our image, with its commands, environment and configuration.

The servers beside them are those of the tests, at other addresses.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from tests.deployment import Installation, Part
from tests.servers.dagster_part import end, processes_of
from tests.servers.ports import LOOPBACK, answers, free_port, wait_until
from tests.servers.postgresql import PostgresqlServer
from tests.servers.process import ServerProcess
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.servers.swift import SwiftServer

MESSAGES = 300
OVER_HTTP = "over-http.json"


@pytest.fixture
def installed(
    tmp_path: Path,
    rabbitmq: RabbitMQServer,
    redis_server: RedisServer,
    postgresql: PostgresqlServer,
    swift: SwiftServer,
) -> Iterator[Installation]:
    """With the logins of .env, which the servers know, and with the servers' addresses."""
    password = secrets.token_hex(12)
    rabbitmq.ctl("add_user", "fuploader", password)
    rabbitmq.ctl("set_permissions", "fuploader", ".*", ".*", ".*")
    postgresql.execute(
        f"CREATE ROLE dagster LOGIN PASSWORD '{password}'", "CREATE DATABASE dagster OWNER dagster"
    )
    passwords = {
        "RABBITMQ_PASSWORD": password,
        "REDIS_PASSWORD": redis_server.password,
        "POSTGRES_PASSWORD": password,
        "S3_ACCESS_KEY_ID": swift.access_key,
        "S3_SECRET_ACCESS_KEY": swift.secret_key,
        "SERVE_TOKEN": password,
    }
    code_port, web_port, serve_port = free_port(), free_port(), free_port()
    addresses = {
        "rabbitmq:5672": f"{LOOPBACK}:{rabbitmq.port}",
        "redis:6379": f"{LOOPBACK}:{redis_server.port}",
        "http://s3:8333": swift.endpoint,
        "postgres": LOOPBACK,
        "5432": str(postgresql.port),
        "node1": LOOPBACK,
        "4000": str(code_port),
        "3000": str(web_port),
        "127.0.0.1:3000": f"{LOOPBACK}:{web_port}",
        "8080": str(serve_port),
        "127.0.0.1:8080": f"{LOOPBACK}:{serve_port}",
    }
    yield Installation(tmp_path, passwords, addresses)
    postgresql.execute("DROP DATABASE dagster WITH (FORCE)", "DROP ROLE dagster")
    with suppress(AssertionError):  # if nothing declared it
        rabbitmq.ctl("delete_queue", "documents")
    rabbitmq.ctl("delete_user", "fuploader")


class Running:
    """Parts that were started, each with its log."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[str, ServerProcess] = {}

    def start(self, name: str, part: Part, ready: Callable[[], bool]) -> None:
        process = ServerProcess(name, self._folder / f"{name}.log")
        self._processes[name] = process
        home = Path(part.environment["HOME"])
        process.start(part.command, env=part.environment, cwd=home, ready=ready, seconds=240)

    def stop(self, name: str, seconds: float) -> None:
        """SIGTERM to its main process alone, which has to be gone in time."""
        process = self._processes[name]
        os.kill(process.pid, signal.SIGTERM)
        process.wait(seconds)

    def logs(self) -> str:
        tails = [
            f"--- {name}\n{one.log.read_text(errors='replace')[-3000:]}"
            for name, one in self._processes.items()
        ]
        return "\n".join(tails)

    def kill(self) -> None:
        for process in self._processes.values():
            process.kill()
        end(processes_of(str(self._folder)))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    parts = Running(tmp_path)
    yield parts
    parts.kill()


@pytest.mark.timeout(900)
def test_messages_reach_the_bucket_and_each_part_is_healthy_and_stops_in_its_time(
    installed: Installation, running: Running, swift: SwiftServer
) -> None:
    before = installed.configuration()
    bucket = installed.part("bucket")
    for _ in range(2):
        done = bucket.run()
        assert done.returncode == 0, done.stderr
    name = bucket.environment["S3_BUCKET"]

    node, daemon, web = (installed.part(one) for one in ("node1", "daemon", "webserver"))
    door = installed.part("serve")
    running.start("node1", node, lambda: answers(port_of(node)))
    running.start("daemon", daemon, lambda: True)
    running.start("webserver", web, lambda: answers(port_of(web)))
    running.start("serve", door, lambda: answers(port_of(door)))

    messages = installed.history / "messages.jsonl"
    lines = [{"file_name": f"{n}.json", "payload": {"n": n}} for n in range(MESSAGES)]
    messages.write_text("".join(json.dumps(line) + "\n" for line in lines))
    succeeds(node, "fuploader", "publish", str(messages))
    answer = requests.post(
        f"http://{LOOPBACK}:{port_of(door)}/documents/messages",
        json={"file_name": OVER_HTTP, "payload": {"n": MESSAGES}},
        headers={"Authorization": f"Bearer {door.environment['FUPLOADER_SERVE_TOKEN']}"},
        timeout=120,
    )
    assert (answer.status_code, answer.json()) == (202, {"ids": [OVER_HTTP]})

    def drained() -> bool:
        status = json.loads(succeeds(node, "fuploader", "status", "--json"))
        return bool(status[0]["stored_messages"] > MESSAGES)

    wait_until(drained, seconds=240, what="the drain", diagnose=running.logs)
    succeeds(node, "fuploader", "seal")

    def keys() -> list[str]:
        listed = swift.client().list_objects_v2(Bucket=name).get("Contents", [])
        return [one["Key"] for one in listed]

    wait_until(lambda: bool(keys()), seconds=300, what="the archive", diagnose=running.logs)
    (key,) = keys()
    members = succeeds(node, "fuploader", "ls", f"s3://{name}/{key}")
    assert all(name in members for name in [OVER_HTTP, *(f"{n}.json" for n in range(MESSAGES))])

    for one in (node, daemon, web, door):
        succeeds(one, *one.health_check)

    running.stop("serve", door.stop_seconds)
    running.stop("node1", node.stop_seconds)
    assert processes_of(str(installed.history), "fuploader_dagster.intake.worker") == []
    assert node.run(*node.health_check).returncode != 0
    running.stop("daemon", daemon.stop_seconds)
    running.stop("webserver", web.stop_seconds)
    assert installed.configuration() == before, "it is mounted read-only"


def port_of(part: Part) -> int:
    return int(part.command[part.command.index("--port") + 1])


def succeeds(part: Part, *command: str) -> str:
    done = part.run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
