"""The pipeline as an operator installs it, with a process manager that starts again what ended.

Everything lies in one folder: servers with their data, the project (configuration, Dagster's
history, the slots), logs. Nothing outside of it is touched, and only processes that were started
here are killed.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from fuploader_dagster.disk.layout import Layout
from tests.servers.dagster_dev import REPOSITORY
from tests.servers.dagster_part import DagsterPart, end, processes_of
from tests.servers.ports import LOOPBACK, free_port
from tests.servers.redis import RedisServer
from tests.servers.swift import SwiftServer
from tests.soak import handlers, parser
from tests.soak.plan import LIMITED, PLAIN
from tests.soak.queues import QUEUES

WORKERS = {PLAIN: 2, LIMITED: 1}
"""Of each pipeline, if the queue's server can do that."""
PROCESS = {"kind": "functions", "module": "handlers", "workers": 1, "partitions_per_run": 64}
WATCH_SECONDS = 0.2


class Kept:
    """One part under the process manager: started again whenever it is not running."""

    def __init__(
        self, name: str, *, start: Callable[[], None], running: Callable[[], bool]
    ) -> None:
        self.name = name
        self.surprises = 0
        """How often it ended although nobody had killed it."""
        self.problem: BaseException | None = None
        self._start = start
        self._running = running
        self._down = threading.Lock()
        self._down_until = 0.0
        self._expected = True
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"keeper of {name}", daemon=True)

    def begin(self) -> None:
        self._start()
        self._expected = False
        self._thread.start()

    def bring_down(self, how: Callable[[], None], seconds: float) -> None:
        """End it, and let it be started again after so long."""
        with self._down:
            self._expected = True
            how()
            self._down_until = time.monotonic() + seconds

    @property
    def up(self) -> bool:
        """Whether it answers, and is not about to be started again."""
        if self.problem is not None:
            raise self.problem
        return not self._expected and self._running()

    def let_go(self) -> None:
        """From now on it is not started again; it may be starting just now."""
        self._over.set()

    def end(self) -> None:
        self.let_go()
        if self._thread.ident is not None:
            self._thread.join()

    def _keep(self) -> None:
        try:
            while not self._over.wait(WATCH_SECONDS):
                with self._down:
                    if self._running() or time.monotonic() < self._down_until:
                        continue
                    self.surprises += not self._expected
                    self._expected = True
                    self._start()
                    self._expected = False
        except BaseException as error:
            self.problem = error


class Installation:
    """All parts. Use as a context manager. `pipelines`: the names of those that run."""

    def __init__(
        self,
        folder: Path,
        *,
        pipelines: Sequence[str] = (PLAIN,),
        process: bool = False,
        source: str = "rabbitmq",
        **settings: Any,
    ) -> None:
        """`process`: whether the pipeline without a parser has functions that process its files;
        `source`: one of `QUEUES`."""
        self.folder = folder
        project = folder / "project"
        for name in ("queue", "redis", "s3", "project"):
            (folder / name).mkdir(parents=True)
        self.layouts = {name: Layout(project / "data" / name) for name in pipelines}
        self.queues = QUEUES[source](folder / "queue")
        self.queue = self.queues.server
        self.redis = RedisServer(folder / "redis")
        self.s3 = SwiftServer(folder / "s3")
        self.bucket = ""
        self._settings = settings
        self._process = {"process": PROCESS} if process else {}
        self._configured = False
        self._port = free_port()
        location = ["dagster", "api", "grpc", "-m", "fuploader_dagster.code_location"]
        address = ["-h", LOOPBACK, "-p", str(self._port)]
        self.code_server = DagsterPart("code-server", [*location, *address], project, self._port)
        self.daemon = DagsterPart("daemon", ["dagster._daemon", "run"], project, None)
        self.kept = {
            "queue": Kept(
                self.queues.name, start=self.queue.start, running=lambda: self.queue.running
            ),
            "redis": Kept("Redis", start=self.redis.start, running=lambda: self.redis.running),
            "s3": Kept("S3", start=self.s3.start, running=lambda: self.s3.running),
            "code_server": Kept(
                "code server",
                start=self.code_server.start,
                running=lambda: self.code_server.process.running,
            ),
            "daemon": Kept(
                "daemon", start=self.daemon.start, running=lambda: self.daemon.process.running
            ),
        }

    def __enter__(self) -> Installation:
        try:
            for name in ("queue", "redis", "s3"):
                self.kept[name].begin()
            self.bucket = self.s3.fresh_bucket()
            self.queues.declare(list(self.layouts))
            self._configure()
            for name in ("code_server", "daemon"):
                self.kept[name].begin()
        except BaseException:
            self._end_at_once()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._end_at_once()
            return
        for part in self.kept.values():
            part.end()
        if self._configured:
            self.daemon.stop()
            self.code_server.stop()
            end(self.processes())
        for server in (self.s3, self.redis, self.queue):
            server.stop()

    def _end_at_once(self) -> None:
        """kill -9 of everything that was started for this folder: somebody is waiting.

        Also of what was just starting, which its keeper takes for a failure then.
        """
        for part in self.kept.values():
            part.let_go()
        for _ in range(2):  # what is not there yet at the first time is there at the second
            for server in (self.s3, self.redis, self.queue):
                server.kill()
            while found := processes_of(str(self.folder)):
                end(found)
                time.sleep(WATCH_SECONDS)
            for part in self.kept.values():
                part.end()

    @property
    def layout(self) -> Layout:
        """Of the only pipeline, or the first."""
        return next(iter(self.layouts.values()))

    def places(self) -> list[tuple[Layout, int]]:
        """The slots of all pipelines."""
        return [
            (layout, slot)
            for name, layout in self.layouts.items()
            for slot in range(self._workers(name))
        ]

    def _workers(self, name: str) -> int:
        return min(WORKERS[name], self.queues.most_workers)

    def processes(self, *words: str) -> list[int]:
        """All processes of Dagster here, and workers, whoever started them."""
        return processes_of(str(self.folder / "project"), *words)

    def up(self) -> bool:
        return all(part.up for part in self.kept.values())

    def _configure(self) -> None:
        """fuploader.yaml, workspace.yaml, and the repository's own dagster.yaml.

        Only that a run which never began is noticed sooner: else a short soak would be mostly that.
        """
        project = self.folder / "project"
        parts: dict[str, Any] = {
            "state": {"kind": "redis", "url": {"env": "REDIS_URL"}},
            "store": {
                "kind": "s3",
                "bucket": self.bucket,
                "endpoint_url": self.s3.endpoint,
                "region": self.s3.region,
                "access_key_id": self.s3.access_key,
                "secret_access_key": {"env": "S3_SECRET"},
            },
            **self._settings,
        }
        own = {PLAIN: self._process, LIMITED: {"parser": "strategies:parse"}}
        pipelines = {
            name: {
                **parts,
                "process_count": self._workers(name),
                "source": self.queues.source(name),
                **own[name],
            }
            for name in self.layouts
        }
        configuration = {"storage_root": "data", "pipelines": pipelines}
        shutil.copy(parser.__file__, project / "strategies.py")
        shutil.copy(handlers.__file__, project / "handlers.py")
        (project / "fuploader.yaml").write_text(yaml.safe_dump(configuration))
        server = {"host": LOOPBACK, "port": self._port, "location_name": "fuploader"}
        workspace = {"load_from": [{"grpc_server": server}]}
        (project / "workspace.yaml").write_text(yaml.safe_dump(workspace))
        instance = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text())
        instance["run_monitoring"].update(start_timeout_seconds=120, poll_interval_seconds=10)
        (project / "dagster.yaml").write_text(yaml.safe_dump(instance))
        environment = {
            **os.environ,
            "DAGSTER_HOME": str(project),
            **self.queues.variables(),
            "REDIS_URL": self.redis.url(),
            "S3_SECRET": self.s3.secret_key,
        }
        self.code_server.environment = self.daemon.environment = environment
        self._configured = True
