"""An HTTP proxy that does to requests what networks and overloaded services do, by script.

It stands in front of one object store on a free port of 127.0.0.1, passes requests on unchanged
(the Host header too, so that signatures stay valid), counts them by operation, and plays a
scripted fault on the requests that the script names. `hits` says which faults were really played.

Operations, the same for S3, COS and OSS: `put head get delete list`, and of uploads in parts
`begin part complete abort parts uploads`.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

from tests.servers.quiet_http import QuietHTTPServer

CHUNK_BYTES = 1 << 16

ANSWERS = {
    "500": (500, "InternalError", {}),
    "503": (503, "SlowDown", {}),
    "429": (429, "TooManyRequests", {"Retry-After": "1"}),
    "403": (403, "AccessDenied", {}),
    "skewed": (403, "RequestTimeTooSkewed", {}),
}
"""Faults that are an answer which the server never gave."""

DIGEST_HEADERS = ("etag", "x-cos-hash-crc64ecma", "x-oss-hash-crc64ecma")


@dataclass
class Fault:
    """What happens to the next `times` requests of an operation, after the first `skip` of them.

    kind: one of `ANSWERS`, or
    reset_before     the connection is reset before the body is read
    reset_after      ... after the body was read; the server never saw the request
    answer_lost      the server did it, and the connection is reset instead of its answer
    truncated        half of the body reaches the server, then both connections break
    damaged          one byte of the body is changed on its way to the server
    truncated_answer half of the answer's body comes back
    damaged_answer   one byte of the answer's body is changed on its way back
    wrong_digest     the answer's digest headers are changed
    trickle          the answer comes a few bytes at a time
    hang             the request is read and never answered
    """

    kind: str
    operation: str
    times: int = 1
    skip: int = 0


class FaultyProxy:
    """`start`, send requests to `endpoint`, `play` faults, ask `counts` and `hits`, `stop`."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.counts: Counter[str] = Counter()
        self.forwarded: Counter[str] = Counter()
        """Requests that reached the server whole."""
        self.hits: Counter[tuple[str, str]] = Counter()
        self.last_headers: dict[str, str] = {}
        """Of the latest request, names in lower case."""
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.port: int = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.stopping = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def play(self, *faults: Fault) -> None:
        """Add faults to the script and forget what was counted so far."""
        with self._lock:
            self._faults = list(faults)
            self.counts.clear()
            self.forwarded.clear()
            self.hits.clear()

    def next_fault(self, operation: str) -> Fault | None:
        """Count a request and take the fault that is due for it, if there is one."""
        with self._lock:
            self.counts[operation] += 1
            for fault in self._faults:
                if fault.operation != operation or fault.times == 0:
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                self.hits[fault.kind, operation] += 1
                return fault
        return None

    def count_forwarded(self, operation: str) -> None:
        with self._lock:
            self.forwarded[operation] += 1


def operation_of(method: str, target: str) -> str:
    """Which operation a request is, by method and query as all three services have them."""
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    if "uploads" in query:
        return "begin" if method == "POST" else "uploads"
    if "uploadId" in query:
        return {"PUT": "part", "POST": "complete", "DELETE": "abort", "GET": "parts"}[method]
    listing = "list-type" in query or "prefix" in query or "delimiter" in query
    if method == "GET" and listing:
        return "list"
    return method.lower()


class _Server(QuietHTTPServer):
    proxy: FaultyProxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_one_request(self) -> None:
        with contextlib.suppress(OSError):  # the other side may leave at any time
            super().handle_one_request()
            return
        self.close_connection = True

    def parse_request(self) -> bool:
        """All methods are handled alike: `do_any`."""
        if not super().parse_request():
            return False
        if self.path.startswith("http://"):  # asked as a forward proxy
            parts = urlsplit(self.path)
            self.path = parts.path + (f"?{parts.query}" if parts.query else "")
        setattr(self, f"do_{self.command}", self._do_any)
        return True

    def _do_any(self) -> None:
        proxy = self.server.proxy
        proxy.last_headers = {name.lower(): value for name, value in self.headers.items()}
        operation = operation_of(self.command, self.path)
        fault = proxy.next_fault(operation)
        kind = fault.kind if fault else ""
        size = int(self.headers.get("Content-Length") or 0)
        if kind == "reset_before":
            self._reset()
            return
        if kind in ANSWERS or kind in ("reset_after", "hang"):
            for _ in self._body(size):
                pass
            if kind in ANSWERS:
                self._answer_for_the_server(*ANSWERS[kind])
            elif kind == "hang":
                proxy.stopping.wait(30)
                self._reset()
            else:
                self._reset()
            return
        self._forward(operation, kind, size)

    def _forward(self, operation: str, kind: str, size: int) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.proxy.upstream_port)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    upstream.putheader(name, value)
            upstream.endheaders()
            self._send_body(upstream, kind, size)
            if kind == "truncated":
                self._reset()
                return
            answer = upstream.getresponse()
            body = b"" if self.command == "HEAD" else answer.read()
            self.server.proxy.count_forwarded(operation)
            if kind == "answer_lost":
                self._reset()
            else:
                self._pass_back(answer, body, kind)
        finally:
            upstream.close()

    def _send_body(self, upstream: http.client.HTTPConnection, kind: str, size: int) -> None:
        sent = 0
        for chunk in self._body(size):
            data = chunk
            if kind == "damaged" and sent == 0:
                data = bytes([data[0] ^ 1]) + data[1:]
            if kind == "truncated" and sent + len(data) > size // 2:
                upstream.send(data[: size // 2 - sent])
                return
            upstream.send(data)
            sent += len(data)

    def _body(self, size: int) -> Iterator[bytes]:
        while size > 0:
            chunk = self.rfile.read(min(size, CHUNK_BYTES))
            if not chunk:
                raise ConnectionError("the client left")
            size -= len(chunk)
            yield chunk

    def _pass_back(self, answer: http.client.HTTPResponse, body: bytes, kind: str) -> None:
        lines = [f"HTTP/1.1 {answer.status} {answer.reason}"]
        length = str(len(body))
        for name, value in answer.getheaders():
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() in ("transfer-encoding", "connection", "content-length"):
                continue
            elif kind == "wrong_digest" and name.lower() in DIGEST_HEADERS:
                lines.append(f"{name}: {_changed(value)}")
            else:
                lines.append(f"{name}: {value}")
        lines.append(f"Content-Length: {length}")
        if kind == "damaged_answer":
            body = bytes([body[0] ^ 1]) + body[1:]
        data = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body
        if kind == "truncated_answer":
            self.wfile.write(data[: len(data) - len(body) // 2 - 1])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif kind == "trickle":
            for start in range(0, len(data), 64):
                self.wfile.write(data[start : start + 64])
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.wfile.write(data)

    def _answer_for_the_server(self, status: int, code: str, headers: dict[str, str]) -> None:
        body = f"<Error><Code>{code}</Code><Message>scripted</Message></Error>".encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        """Close with RST, which is what a crashed peer or a firewall looks like."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The server closes its own handle; rfile and wfile hold the socket open until then.
        self.rfile.close()
        self.wfile.close()
        self.connection.close()
        self.close_connection = True

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: object) -> None:
        """Quiet: `counts` and `hits` are the record."""


def _changed(digest: str) -> str:
    """Another digest of the same form."""
    for index, character in enumerate(digest):
        if character in "0123456789abcdef":
            other = "1" if character != "1" else "2"
            return digest[:index] + other + digest[index + 1 :]
    return digest
