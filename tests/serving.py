"""`fuploader serve` as a process, and its requests, for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import requests
import yaml

from fuploader_dagster.contracts.source import Message, SourceSettings
from fuploader_dagster.settings.loading import load_pipelines
from fuploader_dagster.settings.pipeline import Pipeline
from tests.servers.ports import LOOPBACK, answers, free_port, wait_until
from tests.settings import embedded_parts

TOKEN = "a-token-for-everything"
COMMAND = [sys.executable, "-m", "fuploader_dagster.cli.app"]

FLAT = [
    {"rec_id": number, "task_for": "tom", "function_type": "f", "data": f"text {number}"}
    for number in range(1, 4)
]


class Server:
    """A running server of one configuration."""

    def __init__(self, folder: Path, port: int, scheme: str = "http") -> None:
        self.folder = folder
        self.port = port
        self.url = f"{scheme}://{LOOPBACK}:{port}"
        self.log = folder / "serve.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pipeline(self) -> Pipeline:
        return load_pipelines(self.folder / "fuploader.yaml")["docs"]

    def ask(
        self, method: str, path: str, *, token: str | None = TOKEN, **more: Any
    ) -> requests.Response:
        headers = {**more.pop("headers", {})}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return requests.request(method, self.url + path, headers=headers, timeout=60, **more)

    def publish(self, body: bytes, kind: str = "", **more: Any) -> requests.Response:
        """POST /docs/messages; `kind`: the content type."""
        headers = {**({"Content-Type": kind} if kind else {}), **more.pop("headers", {})}
        return self.ask("POST", "/docs/messages", data=body, headers=headers, **more)

    def publish_json(self, value: Any, **more: Any) -> requests.Response:
        return self.publish(json.dumps(value).encode(), "application/json", **more)


@contextmanager
def serving(
    folder: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    scheme: str = "http",
    **settings: Any,
) -> Iterator[Server]:
    """A server of the pipeline `docs`, with an embedded queue unless the settings say otherwise."""
    write_configuration(folder, **settings)
    server = Server(folder, free_port(), scheme)
    with server.log.open("ab") as log:
        server.process = subprocess.Popen(
            [*COMMAND, "serve", "--port", str(server.port), *arguments],
            cwd=folder,
            env={**os.environ, "FUPLOADER_SERVE_TOKEN": TOKEN, **(environment or {})},
            stdout=log,
            stderr=log,
        )
    process = server.process
    try:
        wait_until(
            lambda: process.poll() is not None or _ready(server),
            seconds=60,
            what="fuploader serve",
            diagnose=server.log.read_text,
        )
        assert process.poll() is None, server.log.read_text()
        yield server
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


def write_configuration(folder: Path, **settings: Any) -> None:
    pipeline = {
        **embedded_parts(folder),
        "message_format": "json",
        "name_fields": ["rec_id"],
        "serve": True,
        "min_free_bytes": 1024,
        **settings,
    }
    configuration = {"storage_root": str(folder / "data"), "pipelines": {"docs": pipeline}}
    folder.mkdir(exist_ok=True)
    (folder / "fuploader.yaml").write_text(yaml.safe_dump(configuration))


def _ready(server: Server) -> bool:
    if not answers(server.port):
        return False
    if server.url.startswith("https"):
        return True
    return server.ask("GET", "/health/live", token=None).status_code == 200


def taken(source: SourceSettings) -> list[Message]:
    """All messages of a queue; they go back to it."""
    found: list[Message] = []
    with closing(source.source(prefetch=50_000)) as queue:
        queue.open()
        while batch := queue.receive(10_000, 1.0):
            found += batch
    return found


def bodies(source: SourceSettings) -> list[bytes]:
    return [one.body for one in taken(source)]


def assert_in_words(body: bytes) -> None:
    said = json.loads(body)
    assert said["error"] and "hint" in said
    assert "Traceback" not in said["error"] and "\n" not in said["error"] + said["hint"]
