"""Dagster's daemon with a clock that runs ahead: what comes once a minute comes once a second.

The daemon's own loops for sensors, schedules, queued runs, their retries and their monitoring are
called in this process, each round a minute later by their clock. Everything else is as it is
installed: the repository's dagster.yaml, a code server (`dagster api grpc`), its workers, and the
runs that it starts are processes, with the machine's clock, and may be killed.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._core.test_utils import freeze_time
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._daemon.auto_run_reexecution.event_log_consumer import EventLogConsumerDaemon
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import (
    QueuedRunCoordinatorDaemon,
)
from dagster._daemon.sensor import execute_sensor_iteration
from dagster._scheduler.scheduler import launch_scheduled_runs
from dagster._time import get_current_datetime

from tests.servers.dagster_dev import REPOSITORY, at_no_hour
from tests.servers.dagster_part import DagsterPart, end, processes_of
from tests.servers.ports import LOOPBACK, free_port

ROUND_SECONDS = 60.0
PAUSE_SECONDS = 0.3

log = logging.getLogger(__name__)


class QuickDaemon:
    """Use as a context manager, which starts the code server; then `until`, or rounds by hand."""

    def __init__(
        self, folder: Path, configuration: Mapping[str, Any], *, monitoring: bool = True
    ) -> None:
        """`monitoring`: as our dagster.yaml has it; off, as in Dagster's own defaults."""
        self.folder = folder
        self._monitoring = monitoring
        port = free_port()
        server = {"host": LOOPBACK, "port": port, "location_name": "fuploader"}
        instance = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text())
        instance["run_monitoring"]["enabled"] = monitoring
        instance["storage"]["custom"]["config"]["base_dir"] = str(folder / ".dagster" / "storage")
        for name in ("local_artifact_storage", "compute_logs"):
            instance[name]["config"]["base_dir"] = str(folder / ".dagster" / name)
        files = {
            "fuploader.yaml": at_no_hour(configuration),
            "workspace.yaml": {"load_from": [{"grpc_server": server}]},
            "dagster.yaml": instance,
        }
        for name, content in files.items():
            (folder / name).write_text(yaml.safe_dump(content))
        location = ["dagster", "api", "grpc", "-m", "fuploader_dagster.code_location"]
        address = ["-h", LOOPBACK, "-p", str(port)]
        self.code_server = DagsterPart("code-server", [*location, *address], folder, port)
        self.code_server.environment = {**os.environ, "DAGSTER_HOME": str(folder)}
        self._stack = ExitStack()
        self._ahead_seconds = 0.0
        self._schedules: dict[str, Any] = {}

    def __enter__(self) -> QuickDaemon:
        with self._stack as opening:  # closed at once if anything here fails
            self.instance = opening.enter_context(dg.DagsterInstance.from_config(str(self.folder)))
            opening.callback(self._end_processes)
            self.code_server.start()
            workspace = WorkspaceFileTarget([str(self.folder / "workspace.yaml")])
            self._context = opening.enter_context(WorkspaceProcessContext(self.instance, workspace))
            self._queue = opening.enter_context(QueuedRunCoordinatorDaemon(interval_seconds=1))
            self._retries = opening.enter_context(EventLogConsumerDaemon())
            self._stack = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ask(self) -> None:
        """Sensors and schedules, a minute later than the last time, and what died is retried."""
        self._ahead_seconds += ROUND_SECONDS
        with freeze_time(time.time() + self._ahead_seconds):
            _go_through(execute_sensor_iteration(self._context, log, None, None))
            _go_through(
                launch_scheduled_runs(self._context, log, get_current_datetime(), self._schedules)
            )
        if self._monitoring:
            _go_through(execute_run_monitoring_iteration(self._context, log))
        _go_through(self._retries.run_iteration(self._context))

    def launch(self) -> None:
        """Queued runs."""
        now = time.time() + self._ahead_seconds
        _go_through(self._queue.run_iteration(self._context, fixed_iteration_time=now))

    def until(self, met: Callable[[], bool], what: str, seconds: float = 150) -> None:
        """Round after round until it is met."""
        deadline = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}\n{self._said()}"
            self.ask()
            self.launch()
            time.sleep(PAUSE_SECONDS)

    def request_context(self) -> Any:
        """What the webserver gives GraphQL for a request."""
        return self._context.create_request_context()

    def runs(self, **tags: str) -> list[dg.RunRecord]:
        """All runs with these tags, oldest first."""
        found = self.instance.get_run_records(dg.RunsFilter(tags=tags))
        return sorted(found, key=lambda record: record.storage_id)

    def statuses(self, **tags: str) -> list[str]:
        return [record.dagster_run.status.value for record in self.runs(**tags)]

    def _end_processes(self) -> None:
        self.code_server.process.kill()
        end(processes_of(str(self.folder)))

    def _said(self) -> str:
        log_file = self.code_server.process.log
        said = log_file.read_text(errors="replace")[-6000:] if log_file.exists() else ""
        return f"runs: {self.statuses()}\n{said}"


def _go_through(iteration: Iterable[Any]) -> None:
    """A loop of the daemon yields the errors that it goes on after."""
    for error in iteration:
        if error is not None:
            log.info("the daemon goes on after %s", error)
