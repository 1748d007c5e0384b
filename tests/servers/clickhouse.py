"""A private ClickHouse on loopback: its engine (chdb) behind a small HTTP front, which can break.

chdb is large, and only `make test-clickhouse` installs it, in an environment of its own within the
one of the tests. `clickhouse_front.py` says what it plays.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
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

    def __init__(self, folder: Path) -> None:
        self.port, self.password = free_port(), secrets.token_urlsafe(12)
        self._folder = folder
        self._process = ServerProcess("ClickHouse", folder / "console.log")

    @property
    def running(self) -> bool:
        return self._process.running

    def url(self, database: str = "default") -> str:
        return f"http://shop:{self.password}@{LOOPBACK}:{self.port}/{database}"

    def start(self) -> None:
        assert PYTHON.exists(), "the tests of ClickHouse need chdb: make test-clickhouse"
        self._process.start(
            [str(PYTHON), str(_FRONT), str(self.port), str(self._folder / "data"), self.password],
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

    def played(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads(self._ask("/fault"))
        return found

    def execute(self, *statements: str) -> None:
        """A plain client, to prepare tables."""
        for statement in statements:
            self._ask("/", statement.encode())

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """A plain client, to look at what the code under test left."""
        answer = self._ask("/?" + urlencode({"output_format_json_quote_64bit_integers": 0}),
                           f"{query} FORMAT JSONCompactEachRow".encode())
        return [tuple(json.loads(line)) for line in answer.splitlines()]

    def _answers(self) -> bool:
        with suppress(OSError, HTTPException):
            return self._ask("/ping") == b"Ok.\n"
        return False

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        login = base64.b64encode(f"shop:{self.password}".encode()).decode()
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"http://{LOOPBACK}:{self.port}{path}",
            data=body,
            headers={"Authorization": f"Basic {login}", "Content-Type": "text/plain"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
                data: bytes = answer.read()
                return data
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{error.read().decode()}\n{body!r}") from error
