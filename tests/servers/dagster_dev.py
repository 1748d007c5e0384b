"""A project folder with `fuploader dev` running in it: daemon, UI, code server, workers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import requests
import yaml

from tests.servers.ports import free_port

REPOSITORY = Path(__file__).parents[2]
START_SECONDS = 180.0
WAIT_SECONDS = 180.0


class DagsterDev:
    """One `fuploader dev`, in a process group of its own, so that Ctrl-C can be played."""

    def __init__(
        self, folder: Path, configuration: Mapping[str, Any] | None, environment: Mapping[str, str]
    ) -> None:
        """Without a configuration the folder is a project already."""
        self.folder = folder
        self.port = free_port()
        self.log = folder / "dev.log"
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"},
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None
        if configuration is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("workspace.yaml", "dagster.yaml"):
            shutil.copy(REPOSITORY / name, folder / name)
        (folder / "fuploader.yaml").write_text(yaml.safe_dump(at_no_hour(configuration)))

    def start(self, *, samples: int | None = 0) -> None:
        """Start it and wait until the UI answers and the code location is loaded.

        `samples`: None leaves it to the command how many there are.
        """
        fuploader = Path(sys.executable).with_name("fuploader")
        wanted = [] if samples is None else ["--samples", str(samples)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(fuploader), "dev", *wanted, "--port", str(self.port)],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wait_for(self._loaded, "the UI to answer", START_SECONDS)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def group(self) -> int:
        """The process group of everything it started."""
        if self._process is None:
            raise AssertionError("it is not running")
        return self._process.pid

    def stop(self, seconds: float = 90.0) -> None:
        """Ctrl-C: SIGINT to the whole group. Fails if anything of it is still there afterwards."""
        process, self._process = self._process, None
        if process is None:
            return
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(seconds)
            deadline = time.monotonic() + seconds
            while (left := group_members(process.pid)) and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            if group_members(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
        assert not left, f"left behind after Ctrl-C: {left}"

    def kill(self) -> None:
        """kill -9 of what is left of it. May be repeated."""
        process, self._process = self._process, None
        if process is not None:
            for member in group_members(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(int(member.split()[0]), signal.SIGKILL)
            process.wait(120)

    def wait_for(self, met: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
        """Poll until `met`; on time-out fail with the end of the log."""
        deadline = time.monotonic() + seconds
        while not met():
            if self._process is None or self._process.poll() is not None:
                raise AssertionError(f"it ended while waiting for {what}:\n{self._tail()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds:.0f} s for {what}:\n{self._tail()}")
            time.sleep(0.5)

    def query(self, text: str, **variables: Any) -> dict[str, Any]:
        """Ask the webserver's GraphQL."""
        answer = requests.post(
            f"http://127.0.0.1:{self.port}/graphql",
            json={"query": text, "variables": variables},
            timeout=120,
        ).json()
        assert "errors" not in answer, answer
        data: dict[str, Any] = answer["data"]
        return data

    def runs(self) -> list[dict[str, Any]]:
        """Id, status and tags of all runs, newest first."""
        data = self.query(
            "{ runsOrError { ... on Runs { results { runId status jobName"
            " tags { key value } } } } }"
        )
        results: list[dict[str, Any]] = data["runsOrError"]["results"]
        return results

    def materialized(self, *asset: str) -> list[str]:
        """Partitions of an asset that are materialised."""
        data = self.query(
            "query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {"
            " assetPartitionStatuses { ... on DefaultPartitionStatuses {"
            " materializedPartitions } } } } }",
            key={"path": list(asset)},
        )
        statuses = data["assetNodeOrError"]["assetPartitionStatuses"]
        partitions: list[str] = statuses["materializedPartitions"]
        return partitions

    def _loaded(self) -> bool:
        try:
            data = self.query(
                "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus"
                " locationOrLoadError { __typename } } } } }"
            )
        except requests.ConnectionError:
            return False
        entries = data["workspaceOrError"]["locationEntries"]
        return bool(entries) and all(
            entry["loadStatus"] == "LOADED"
            and (entry["locationOrLoadError"] or {}).get("__typename") == "RepositoryLocation"
            for entry in entries
        )

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]


def at_no_hour(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The same, and the scrub's hour is half a year away: a test that counts runs would count the
    scrub's as well if it were run in the minutes before."""
    month = (datetime.now(timezone.utc).month + 5) % 12 + 1
    pipelines = {
        name: {"scrub_cron": f"0 0 1 {month} *", **pipeline}
        for name, pipeline in configuration["pipelines"].items()
    }
    return {**configuration, "pipelines": pipelines}


def group_members(group: int) -> list[str]:
    """Command lines of the processes of a process group or session, zombies left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = stat.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z" and group in (int(fields[2]), int(fields[3])):
            found.append(f"{stat.parent.name} {command}")
    return found
