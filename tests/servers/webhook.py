"""A small web server that takes what is posted to it, as a chat tool's webhook does."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from tests.servers.ports import LOOPBACK


class Webhook:
    """Use as a context manager; `url` has a secret in it, `posted` is what it took.

    `status` is what it answers; with another one than 200 to 299 it takes nothing. Redirects lead
    to `elsewhere`, which counts what follows them.
    """

    secret = "token-that-nobody-may-see"

    def __init__(self) -> None:
        hook = self
        self.posted: list[dict[str, Any]] = []
        self.asked = 0
        self.followed = 0
        self.status = 204

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.startswith("/elsewhere"):
                    hook.followed += 1
                    self._answer(204)
                    return
                hook.asked += 1
                if hook.status in range(200, 300):
                    hook.posted.append(body)
                self._answer(hook.status)

            def do_GET(self) -> None:  # what a redirect makes of a POST
                hook.followed += 1
                self._answer(204)

            def _answer(self, status: int) -> None:
                said = b"" if status == 204 else f"no hook {hook.secret}".encode()
                self.send_response(status, hook.secret)
                if status in range(300, 400):
                    self.send_header("Location", f"/elsewhere?{hook.secret}")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = HTTPServer((LOOPBACK, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://{LOOPBACK}:{self._server.server_port}/hook?token={self.secret}"

    def __enter__(self) -> Webhook:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
