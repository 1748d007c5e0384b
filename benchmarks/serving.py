"""`fuploader serve` under load, and a bare echo of Starlette in its place."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from benchmarks.contenders import REPOSITORY
from benchmarks.ground import RABBITMQ_VARIABLE, Ground
from benchmarks.processes import Program
from tests.servers.ports import answers, free_port, wait_until
from tests.servers.queue_fixtures import channel, new_queue

CONNECTIONS = 64
SECONDS = 5
_BODY_BYTES = 925
"""About what `_POSTS` sends."""
_TOKEN = "a-token-of-the-benchmark"  # noqa: S105
_POSTS = """
local start = '{"text": "' .. string.rep("x", 900) .. '", "rec": '
local number = 0
wrk.method = "POST"
wrk.headers["Authorization"] = "Bearer %s"
request = function()
  number = number + 1
  return wrk.format(nil, nil, nil, start .. number .. "}")
end
"""


@dataclass(frozen=True)
class Taken:
    """What a server took, as fast as it could."""

    requests_per_second: float


@dataclass(frozen=True)
class Paced:
    """How long answers took at a steady rate."""

    median_ms: float
    p99_ms: float


Queue = Literal["rabbitmq", "embedded"]


def taken(ground: Ground, how: Literal["ours", "echo"], queue: Queue) -> Taken:
    """What a server takes at `CONNECTIONS` connections, each with one request at a time."""
    with ground.folder() as folder, _server(ground, folder, how, queue) as port:
        script = folder / "posts.lua"
        script.write_text(_POSTS % _TOKEN)
        said = subprocess.run(
            [
                *("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}", "-s", str(script)),
                f"http://127.0.0.1:{port}/docs/messages",
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    if "Non-2xx" in said:
        raise RuntimeError(f"not all requests were taken:\n{said}")
    (rate,) = re.findall(r"Requests/sec:\s+([\d.]+)", said)
    return Taken(float(rate))


def broker_alone(ground: Ground) -> Taken:
    """What RabbitMQ confirms, with as many messages unconfirmed as there are connections."""
    name = new_queue(ground.rabbitmq)
    settings = {
        "url": ground.rabbitmq.url,
        "queue": name,
        "unconfirmed": CONNECTIONS,
        "seconds": SECONDS,
        "body_bytes": _BODY_BYTES,
    }
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.programs.bare_publisher"],
        cwd=REPOSITORY,
        env={**os.environ, "BENCH_SETTINGS": json.dumps(settings)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    with channel(ground.rabbitmq) as open_channel:
        open_channel.queue_delete(name)
    return Taken(json.loads(said)["per_second"])


def paced(ground: Ground, rate: int, status: int, *, max_backlog: int = 0) -> Paced:
    """How long answers of this status take."""
    with (
        ground.folder() as folder,
        _server(ground, folder, "ours", "rabbitmq", max_backlog=max_backlog) as port,
    ):
        arguments = [str(port), str(rate), str(SECONDS), _TOKEN]
        said = subprocess.run(
            [sys.executable, "-m", "benchmarks.programs.paced_posts", *arguments],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    found = json.loads(said)
    if set(found["statuses"]) != {str(status)}:
        raise RuntimeError(f"not all answers were {status}: {found['statuses']}")
    seconds = found["seconds"]
    return Paced(
        1000 * seconds[len(seconds) // 2],
        1000 * seconds[min(len(seconds) - 1, len(seconds) * 99 // 100)],
    )


@contextmanager
def _server(
    ground: Ground, folder: Path, how: str, queue: Queue, *, max_backlog: int = 0
) -> Iterator[int]:
    """The port of one that runs, with one process. With `max_backlog` the queue has more."""
    port = free_port()
    if how == "echo":
        command = [
            *(sys.executable, "-m", "uvicorn", "benchmarks.programs.echo:app"),
            *("--app-dir", str(REPOSITORY), "--port", str(port)),
            *("--no-access-log", "--log-level", "warning"),
        ]
    else:
        _configure(ground, folder, queue, max_backlog)
        command = [sys.executable, "-m", "fuploader_dagster.cli.app", "serve", "--workers", "1"]
        command += ["--port", str(port)]
    log = folder / "server.log"
    environment = {"FUPLOADER_SERVE_TOKEN": _TOKEN}
    with Program(command, env=environment, cwd=folder, log=log) as program:
        wait_until(
            lambda: program.check() is None and answers(port),
            seconds=60,
            what=how,
            diagnose=program.tail,
        )
        yield port


def _configure(ground: Ground, folder: Path, queue: Queue, max_backlog: int) -> None:
    source = {"kind": "embedded", "path": str(folder / "queue")}
    if queue == "rabbitmq":
        name = new_queue(ground.rabbitmq)
        if max_backlog:
            with channel(ground.rabbitmq) as open_channel:
                for _ in range(max_backlog + 1):
                    open_channel.basic_publish("", name, b"{}")
        source = {"kind": "rabbitmq", "queue": name, "url": {"env": RABBITMQ_VARIABLE}}
    pipeline = {
        "source": source,
        "state": {"kind": "sqlite", "path": str(folder / "state.sqlite")},
        "store": {"kind": "local", "path": str(folder / "objects")},
        "message_format": "json",
        "serve": {"max_backlog": max_backlog},
    }
    configuration = {"storage_root": str(folder / "data"), "pipelines": {"docs": pipeline}}
    (folder / "fuploader.yaml").write_text(yaml.safe_dump(configuration))
