"""Those who ask for tasks and are told of them: a client of Redis, as the one in PHP was, and a web
server that checks signatures."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import redis

from tests.servers.ports import LOOPBACK
from tests.servers.quiet_http import QuietHTTPServer


def popped(client: redis.Redis, task: str, *, until: str = "", seconds: int = 240) -> list[str]:
    """What the asker of a task pops from its list, oldest first: what is there, or `until` a word
    comes."""
    key, found = f"batch_download_resp_{task}", list[str]()
    deadline = time.monotonic() + seconds
    while until:
        answer: Any = client.brpop([key], timeout=1)  # a client waits no longer for any answer
        if answer is None:
            assert time.monotonic() < deadline, f"{task} heard {found}, and then nothing"
            continue
        found.append(answer[1])
        if found[-1] == until:
            return found
    while (word := client.rpop(key)) is not None:
        found.append(str(word))
    return found


class SignedWebhook:
    """Use as a context manager; `taken` is what it took. `status` is what it answers; with another
    one than 200 to 299 it takes nothing. It takes nothing with a wrong signature either."""

    secret = "secret-of-the-webhook"

    def __init__(self) -> None:
        hook = self
        self.taken: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.status = 204
        self.asked = self.followed = 0

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path.startswith("/elsewhere"):
                    hook.followed += 1
                hook.asked += 1
                status = hook.status if hook.is_signed(self.headers, body) else 401
                if status in range(200, 300):
                    hook.taken.append(json.loads(body))
                    hook.ids.append(self.headers["X-Fuploader-Id"])
                self.send_response(status)
                if status in range(300, 400):
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._handler = Handler
        self._server: QuietHTTPServer | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/hook?token=token-that-nobody-may-see"

    def is_signed(self, headers: Any, body: bytes) -> bool:
        signed = f"{headers['X-Fuploader-Timestamp']}.".encode() + body
        digest = hmac.new(self.secret.encode(), signed, hashlib.sha256).hexdigest()
        return bool(headers["X-Fuploader-Signature"] == f"sha256={digest}")

    def start(self) -> None:
        """The port stays the same."""
        self._server = QuietHTTPServer((LOOPBACK, self.port), self._handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> SignedWebhook:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
