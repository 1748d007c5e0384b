"""ClickHouse's HTTP interface around its engine (chdb), as far as clickhouse-connect needs it.

A program of its own, for an interpreter that has chdb: `clickhouse_front.py PORT FOLDER PASSWORD`,
with a fourth argument, a certificate and its key in one PEM file, by TLS.
It imports nothing else that is not in Python. Statements run one after the other.

`POST /fault` with `{"kind", "at", "milliseconds"}` breaks the request `at`, counted from 0 since
then; `GET /fault` says how many came, and whether the fault was played:

- `request lost`: it is not executed, and the connection is closed.
- `answer lost`: it is executed, and the connection is closed.
- `comes late`: the connection is closed, and it is executed when the next INSERT came.
- `unavailable`: 503, without executing it.
- `killed before`, `killed after`: the process kills itself (SIGKILL).
- `killed during`: the same, so many milliseconds after it began to execute it.
- `code N`: ClickHouse's error N, without executing it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import ssl
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import chdb

_NOT_SETTINGS = {
    "query",
    "database",
    "default_format",
    "query_id",
    "wait_end_of_query",
    "client_protocol_version",
    "session_id",
    "compress",
    "decompress",
    "enable_http_compression",
    "http_headers_progress_interval_ms",
    "send_progress_in_http_headers",
}
_NATIVE = re.compile(r"\s+FORMAT\s+Native\s*$", re.IGNORECASE)
_LAST_FORMAT = re.compile(r"\s+FORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE)
_CODE = re.compile(r"Code: (\d+)")
SECRET_IN_ERRORS = "hunter2-of-somebody"
"""ClickHouse quotes values in its messages, so those of `code N` do."""


class Lost(Exception):
    """Close the connection without an answer."""


class Engine:
    """chdb, and the fault that is due."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.lock = threading.Lock()
        self.keeps_open = chdb.connect(folder)
        self.fault: dict[str, Any] = {}
        self.requests = 0
        self.hit = False
        self.late: list[tuple[str, dict[str, str], bytes | None, str]] = []

    def due(self) -> dict[str, Any]:
        number, self.requests = self.requests, self.requests + 1
        if not self.fault or self.hit or number != self.fault["at"]:
            return {}
        self.hit = True
        return self.fault

    def execute(
        self, statement: str, arguments: dict[str, str], body: bytes | None, compression: str
    ) -> bytes:
        connection = chdb.connect(self.folder)
        try:
            if database := arguments.get("database"):
                connection.query(f"USE {_name(database)}")
            settings = {
                name: value
                for name, value in arguments.items()
                if name not in _NOT_SETTINGS and not name.startswith("param_")
            }
            if settings:
                pairs = ", ".join(f"{name} = {_text(value)}" for name, value in settings.items())
                connection.query(f"SET {pairs}")
            parameters = {
                name[len("param_") :]: value
                for name, value in arguments.items()
                if name.startswith("param_")
            }
            if body is not None:
                return self._insert(connection, statement, body, compression)
            chosen = arguments.get("default_format", "TabSeparated")
            if match := _LAST_FORMAT.search(statement):
                chosen, statement = match[1], statement[: match.start()]
            return bytes(connection.query(statement, chosen, params=parameters).bytes())
        finally:
            connection.close()

    def _insert(self, connection: Any, statement: str, body: bytes, compression: str) -> bytes:
        with tempfile.NamedTemporaryFile(suffix=".native") as file:
            file.write(body)
            file.flush()
            source = f" FROM INFILE {_text(file.name)}"
            if compression:
                source += f" COMPRESSION {_text(compression)}"
            changed, count = _NATIVE.subn(source + " FORMAT Native", statement)
            if count != 1:
                raise ValueError("the front knows INSERTs in the format Native only")
            connection.query(changed)
        return b""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is two writes, the second of which would wait 40 ms
    engine: Engine
    password: str

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/fault":
            engine = self.engine
            self._answer(200, json.dumps({"requests": engine.requests, "hit": engine.hit}).encode())
        elif self.path.startswith("/ping"):
            self._answer(200, b"Ok.\n")
        else:
            self._run()

    def do_POST(self) -> None:
        if self.path == "/fault":
            engine = self.engine
            with engine.lock:
                engine.fault, engine.requests, engine.hit = json.loads(self._body()), 0, False
            self._answer(200, b"{}")
        else:
            self._run()

    def _run(self) -> None:
        arguments = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        body = self._body()
        _, _, login = self.headers.get("Authorization", "").partition(" ")
        if base64.b64decode(login).decode().partition(":")[2] != self.password:
            self._refuse(516, "AUTHENTICATION_FAILED")
            return
        data: bytes | None = None
        if "query" in arguments:
            statement = arguments["query"]
            data = body if statement.lstrip().upper().startswith("INSERT") and body else None
        else:  # a statement, with the data of an INSERT after it
            head, found, tail = body.partition(b" FORMAT Native\n")
            is_insert = bool(found) and head.lstrip().upper().startswith(b"INSERT")
            statement = (head + found if is_insert else body).decode()
            data = tail if is_insert else None
        with self.engine.lock:
            self._play(statement, arguments, data)

    def _play(self, statement: str, arguments: dict[str, str], data: bytes | None) -> None:
        engine, compression = self.engine, self.headers.get("Content-Encoding", "")
        fault = engine.due()
        kind = fault.get("kind", "")
        if kind == "killed before":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "request lost":
            self._lose()
            return
        if kind == "comes late":
            engine.late.append((statement, arguments, data, compression))
            self._lose()
            return
        if kind == "unavailable":
            self._answer(503, b"try again")
            return
        if kind.startswith("code "):
            self._refuse(int(kind.split()[1]), "OF_A_TEST")
            return
        if data is not None:
            for waiting in engine.late:
                engine.execute(*waiting)
            engine.late.clear()
        if kind == "killed during":
            threading.Thread(target=_die, args=(fault["milliseconds"],)).start()
        try:
            found = engine.execute(statement, arguments, data, compression)
        except Exception as error:
            code = _CODE.search(str(error))
            self._refuse(int(code[1]) if code else 1002, str(error))
            return
        if kind == "killed after":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "answer lost":
            self._lose()
            return
        self._answer(200, found)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _refuse(self, code: int, message: str) -> None:
        text = f"Code: {code}. DB::Exception: {SECRET_IN_ERRORS}: {message}"
        self._answer(500, text.encode(), {"X-ClickHouse-Exception-Code": str(code)})

    def _answer(self, status: int, body: bytes, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-ClickHouse-Timezone", "UTC")
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _lose(self) -> None:
        self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away


def _die(milliseconds: float) -> None:
    time.sleep(milliseconds / 1_000)
    os.kill(os.getpid(), signal.SIGKILL)


def _text(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _name(value: str) -> str:
    return "`" + value.replace("`", "\\`") + "`"


if __name__ == "__main__":
    port, folder, Handler.password = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    Handler.engine = Engine(folder)
    server = Server(("127.0.0.1", port), Handler)
    if len(sys.argv) > 4:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[4])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
