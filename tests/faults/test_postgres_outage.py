"""Postgres away for half a minute, and connections that are cut: daemon, code server and webserver
go on by themselves, and no message is lost or stored twice."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import requests
import yaml
from dagster._grpc.client import DagsterGrpcClient
from dagster._grpc.types import GetCurrentRunsResult
from dagster._serdes import deserialize_value

from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from tests.drains import files, publish
from tests.integration import test_failing_runs as failing
from tests.servers.dagster_dev import REPOSITORY
from tests.servers.dagster_part import DagsterPart, end, processes_of
from tests.servers.ports import LOOPBACK, free_port, wait_until
from tests.servers.postgresql import PostgresqlServer
from tests.settings import archived_files, intake

OUTAGE_SECONDS = 30.0
RUNS = "{ runsOrError { ... on Runs { results { runId status } } } }"


class Fleet:
    """Daemon, webserver and a node, with dagster.fleet.yaml as it stands."""

    def __init__(self, folder: Path, server: PostgresqlServer) -> None:
        self.folder = folder
        self.code_port, self.web_port = free_port(), free_port()
        shutil.copy(REPOSITORY / "dagster.fleet.yaml", folder / "dagster.yaml")
        location = {
            "grpc_server": {"host": LOOPBACK, "port": self.code_port, "location_name": "node"}
        }
        content = failing.configuration(folder, docs=failing.pipeline(folder, "docs"))
        for name, values in {
            "workspace.yaml": {"load_from": [location]},
            "fuploader.yaml": content,
        }.items():
            (folder / name).write_text(yaml.safe_dump(values))
        environment = {
            **os.environ,
            "DAGSTER_HOME": str(folder),
            "DAGSTER_POSTGRES_HOST": LOOPBACK,
            "DAGSTER_POSTGRES_PORT": str(server.port),
            "DAGSTER_POSTGRES_USER": "shop",
            "DAGSTER_POSTGRES_PASSWORD": server.password,
            "DAGSTER_POSTGRES_DB": "fleet",
        }
        code = ["dagster", "api", "grpc", "-m", "fuploader_dagster.code_location"]
        web = ["dagster_webserver", "-h", LOOPBACK, "-p", str(self.web_port)]
        self.parts = {
            "node": DagsterPart(
                "node", [*code, "-h", LOOPBACK, "-p", str(self.code_port)], folder, self.code_port
            ),
            "daemon": DagsterPart("daemon", ["dagster._daemon", "run"], folder, None),
            "webserver": DagsterPart("webserver", web, folder, self.web_port),
        }
        for part in self.parts.values():
            part.environment = environment

    def start(self) -> None:
        for part in self.parts.values():
            part.start()

    def pids(self) -> dict[str, int]:
        return {name: part.process.pid for name, part in self.parts.items() if part.process.running}

    def publish(self, prefix: str) -> dict[str, bytes]:
        contents = files(failing.MESSAGES, prefix=prefix)
        publish(
            intake(self.folder, source=EmbeddedQueue(path=self.folder / "queue-docs")), contents
        )
        return contents

    def stored(self) -> dict[str, list[bytes]]:
        return archived_files(self.folder / "objects-docs")

    def wait_for(self, contents: dict[str, bytes], what: str) -> None:
        wait_until(
            lambda: contents.keys() <= self.stored().keys(),
            seconds=240,
            what=what,
            diagnose=self.logs,
        )

    def statuses(self) -> Sequence[str]:
        """Of all runs, as the webserver tells them; none while it cannot."""
        address = f"http://{LOOPBACK}:{self.web_port}/graphql"
        told = requests.post(address, json={"query": RUNS}, timeout=60).json()
        runs = (told.get("data") or {}).get("runsOrError") or {}
        return [one["status"] for one in runs.get("results", [])]

    def runs_in_work(self) -> Sequence[str]:
        """Those whose processes the code server watches."""
        client = DagsterGrpcClient(host=LOOPBACK, port=self.code_port)
        found = deserialize_value(client.get_current_runs(), GetCurrentRunsResult)
        return list(found.current_runs)

    def logs(self) -> str:
        tails = [
            f"--- {name}\n{part.process.log.read_text(errors='replace')[-4000:]}"
            for name, part in self.parts.items()
        ]
        return "\n".join(tails)

    def kill(self) -> None:
        for part in self.parts.values():
            part.process.kill()
        end(processes_of(str(self.folder)))


@pytest.fixture
def fleet(tmp_path: Path, postgresql: PostgresqlServer) -> Iterator[Fleet]:
    postgresql.execute("CREATE DATABASE fleet")
    made = Fleet(tmp_path, postgresql)
    try:
        made.start()
        yield made
    finally:
        made.kill()
        if not postgresql.running:
            postgresql.start()
        postgresql.execute("DROP DATABASE fleet WITH (FORCE)")


@pytest.mark.timeout(900)
def test_all_parts_go_on_by_themselves_after_an_outage(
    fleet: Fleet, postgresql: PostgresqlServer
) -> None:
    before = fleet.publish("before")
    fleet.wait_for(before, "the way before the outage")
    pids = fleet.pids()
    assert pids.keys() == fleet.parts.keys()

    # A code server that is asked for a run's end meanwhile ends itself, and nobody starts it here.
    wait_until(
        lambda: not fleet.runs_in_work(), seconds=120, what="the last run", diagnose=fleet.logs
    )
    postgresql.stop()
    during = fleet.publish("during")
    time.sleep(OUTAGE_SECONDS)
    assert fleet.pids() == pids, fleet.logs()
    postgresql.start()
    after = fleet.publish("after")
    fleet.wait_for({**during, **after}, "the way after the outage")

    postgresql.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'fleet'"
    )
    cut = fleet.publish("cut")
    fleet.wait_for(cut, "the way after connections were cut")
    wait_until(
        lambda: fleet.statuses().count("SUCCESS") >= 3,
        seconds=120,
        what="the webserver to tell of the runs",
        diagnose=fleet.logs,
    )
    assert fleet.pids() == pids
    expected = {**before, **during, **after, **cut}
    assert fleet.stored() == {name: [content] for name, content in expected.items()}
