"""An HTTP server that answers whatever a test tells it to: no service at all, or a broken one.

    server.answer = lambda request: request.reply(200, b"<html>please log in</html>")

`requests` are those that came, as (method, path), `headers` and `bodies` theirs.
"""

from __future__ import annotations

import contextlib
import ssl
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.servers.quiet_http import QuietHTTPServer


def make_certificate(folder: Path) -> Path:
    """One that nobody vouches for, with its key in the same PEM file."""
    file = folder / "tls.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command.split(), *names, "-keyout", str(file), "-out", str(folder / "cert.pem")],
        check=True,
        capture_output=True,
    )
    file.write_text(file.read_text() + (folder / "cert.pem").read_text())
    return file


class OddRequest(BaseHTTPRequestHandler):
    """A request that waits for its answer."""

    protocol_version = "HTTP/1.1"
    server: _Server
    body = b""

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A whole answer; `Content_Type="..."` becomes a header of that name."""
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply_raw(self, data: bytes) -> None:
        """These bytes, and the end of the connection."""
        self.close_connection = True
        self.wfile.write(data)

    def trickle(self, start: bytes, again: bytes) -> None:
        """The start, then for ever `again`, never silent for long; ends when the client leaves."""
        self.close_connection = True
        self.wfile.write(start)
        while not self.server.odd.stopping.wait(0.1):
            self.wfile.write(again)

    def handle_expect_100(self) -> bool:
        """What a client gets that asks before it sends a body."""
        if self.server.odd.expected is None:
            return super().handle_expect_100()
        self.server.odd.expected(self)
        return False

    def _do(self) -> None:
        odd = self.server.odd
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        odd.requests.append((self.command, self.path))
        odd.headers.append({name.lower(): value for name, value in self.headers.items()})
        odd.bodies.append(body)
        self.body = body
        odd.answer(self)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _do  # noqa: N815 - http.server's names

    def handle_one_request(self) -> None:
        with contextlib.suppress(OSError):  # clients that have enough leave
            super().handle_one_request()
            return
        self.close_connection = True

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: object) -> None:
        """Quiet: `requests` is the record."""


class OddServer:
    """Use as a context manager."""

    def __init__(self, certificate: Path | None = None) -> None:
        """Over TLS if it gets a PEM file with a certificate for 127.0.0.1 and its key."""
        self.answer: Callable[[OddRequest], None] = lambda request: request.reply(404)
        self.expected: Callable[[OddRequest], None] | None = None
        """Instead of `100 Continue`."""
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.stopping = threading.Event()
        self._server = _Server(("127.0.0.1", 0), OddRequest)
        self._server.odd = self
        self.port: int = self._server.server_address[1]
        self.endpoint = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def __enter__(self) -> OddServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(QuietHTTPServer):
    odd: OddServer
