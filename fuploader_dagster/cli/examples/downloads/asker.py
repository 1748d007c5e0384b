"""Whoever asked for the files: prints each notice that is posted to it, if it is signed."""

from __future__ import annotations

import hashlib
import hmac
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = b"replace-this"


class Asker(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        signed = f"{self.headers['X-Fuploader-Timestamp']}.".encode() + body
        wanted = f"sha256={hmac.new(SECRET, signed, hashlib.sha256).hexdigest()}"
        is_ours = hmac.compare_digest(self.headers["X-Fuploader-Signature"] or "", wanted)
        if is_ours:
            print(body.decode(), flush=True)
        self.send_response(204 if is_ours else 403)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing for each request."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", 8003), Asker).serve_forever()
