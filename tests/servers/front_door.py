"""The HTTP front door in a thread of the tests: uvicorn itself, on a port of its own."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from fuploader_dagster.front.app import Front
from fuploader_dagster.settings.pipeline import Pipeline
from tests.servers.ports import LOOPBACK, free_port, wait_until

TOKEN = "0123456789abcdef-token"


@dataclass
class Answered:
    """What a request was answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class FrontDoor:
    """A front door that listens."""

    port: int

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        token: str | None = TOKEN,
    ) -> Answered:
        """One request; `path` is sent as it is. Raises what `http.client` raises."""
        login = {"authorization": f"Bearer {token}"} if token else {}
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=60)
        with closing(connection):
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in {**login, **(headers or {})}.items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answered(answer.status, names, answer.read())

    def raw(self, request: bytes) -> socket.socket:
        """A connection on which these bytes were sent."""
        connection = socket.create_connection((LOOPBACK, self.port), timeout=60)
        connection.sendall(request)
        return connection


@contextmanager
def front_door(
    *pipelines: Pipeline, environment: Mapping[str, str] | None = None
) -> Iterator[FrontDoor]:
    """The front door of these pipelines, inside the block."""
    tokens = {"FUPLOADER_SERVE_TOKEN": TOKEN} if environment is None else environment
    front = Front({one.name: one for one in pipelines}, tokens)
    port = free_port()
    settings = uvicorn.Config(
        front, LOOPBACK, port, lifespan="on", log_config=None, timeout_graceful_shutdown=60
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(
            lambda: server.started, seconds=60, what="the front door", diagnose=lambda: str(thread)
        )
        yield FrontDoor(port)
    finally:
        server.should_exit = True
        thread.join(timeout=120)
        assert not thread.is_alive()
