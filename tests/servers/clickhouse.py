"""A private ClickHouse on loopback: its engine (chdb) behind a small HTTP front, which can break.

chdb is large, and only `make test-clickhouse` installs it, in an environment of its own within the
one of the tests. `clickhouse_front.py` says what it plays.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import ssl
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.servers.ports import LOOPBACK, free_port
from tests.servers.process import ServerProcess

PYTHON = Path(sys.prefix) / "clickhouse" / "bin" / "python"
_FRONT = Path(__file__).with_name("clickhouse_front.py")


class ClickhouseServer:
    """`start`, `kill`, `start` again: port, password and data stay the same."""

    def __init__(self, folder: Path, certificate: Path | None = None) -> None:
        """`certificate`: with its key in one PEM file; the server then speaks TLS."""
        self.port, self.password = free_port(), secrets.token_urlsafe(12)
        self._folder, self._certificate = folder, certificate
        self._process = ServerProcess("ClickHouse", folder / "console.log")

    @property
    def _scheme(self) -> str:
        return "https" if self._certificate else "http"

    @cached_property
    def _tls(self) -> ssl.SSLContext | None:
        return (
            ssl.create_default_context(cafile=str(self._certificate)) if self._certificate else None
        )

    @property
    def running(self) -> bool:
        return self._process.running

    def url(self, database: str = "default") -> str:
        return f"{self._scheme}://shop:{self.password}@{LOOPBACK}:{self.port}/{database}"

    def start(self) -> None:
        assert PYTHON.exists(), "the tests of ClickHouse need chdb: make test-clickhouse"
        self._process.start(
            [str(PYTHON), str(_FRONT), str(self.port), str(self._folder / "data"), self.password]
            + ([str(self._certificate)] if self._certificate else []),
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC"},
            cwd=self._folder,
            ready=self._answers,
        )

    def kill(self) -> None:
        self._process.kill()

    def pause(self) -> None:
        self._process.pause()

    def resume(self) -> None:
        self._process.resume()

    def wait_for_its_end(self) -> None:
        """After a fault that kills it."""
        self._process.wait()

    def play(self, kind: str | None, at: int = 0, milliseconds: float = 0.0) -> None:
        fault = {"kind": kind, "at": at, "milliseconds": milliseconds} if kind else {}
        self._ask("/fault", json.dumps(fault).encode())

    def requests(self) -> int:
        """Since the last `play`."""
        return int(json.loads(self._ask("/fault"))["requests"])

    def hit(self) -> bool:
        """Whether the fault was played; a server that does not answer is about to die of it."""
        try:
            return bool(json.loads(self._ask("/fault"))["hit"])
        except (OSError, HTTPException):
            return True

    def execute(self, *statements: str) -> None:
        """A plain client, to prepare tables."""
        for statement in statements:
            self._ask("/", statement.encode())

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """A plain client, to look at what the code under test left."""
        answer = self._ask(
            "/?" + urlencode({"output_format_json_quote_64bit_integers": 0}),
            f"{query} FORMAT JSONCompactEachRow".encode(),
        )
        return [tuple(json.loads(line)) for line in answer.splitlines()]

    def _answers(self) -> bool:
        with suppress(OSError, HTTPException):
            return self._ask("/ping") == b"Ok.\n"
        return False

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        login = base64.b64encode(f"shop:{self.password}".encode()).decode()
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{self._scheme}://{LOOPBACK}:{self.port}{path}",
            data=body,
            headers={"Authorization": f"Basic {login}", "Content-Type": "text/plain"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120, context=self._tls) as answer:  # noqa: S310
                data: bytes = answer.read()
                return data
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{error.read().decode()}\n{body!r}") from error
