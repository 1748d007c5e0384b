"""A connection of uvicorn's, with limits for what comes before a request, and our own answers; the
head of an answer is sent together with its body.

Leans on names of `uvicorn.protocols.http.httptools_impl` that are not documented; where they are
missing, uvicorn's own behaviour stays.

What must always hold: a client that never finishes the head of its request, or sends an endless
one, loses its connection; what is no HTTP at all is answered with JSON, like every other error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fuploader_dagster.front.answers import Refusal, error_answer

HEAD_SECONDS = 30.0
"""From the start of a connection to the end of its first request's headers."""
MOST_HEAD_BYTES = 64 * 1024
MOST_GATHERED_BYTES = 64 * 1024
"""More is handed to the transport at once, which says when it has too much."""


class Gathered:
    """A transport that sends what is written in one turn of the event loop together.

    uvicorn writes the head of an answer and its body apart: two system calls and two packets, a
    tenth of what taking a message costs.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._soon = asyncio.get_running_loop().call_soon

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._pieces:
            self._soon(self._send)
        self._pieces.append(data)
        self._bytes += len(data)
        if self._bytes > MOST_GATHERED_BYTES:
            self._send()

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._pieces:
            self._transport.write(b"".join(self._pieces))
            self._pieces.clear()
            self._bytes = 0


class Connection(HttpToolsProtocol):
    """One connection."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(Gathered(transport))  # type: ignore[arg-type]  # it is used as one
        self._piece = self._bytes = 0
        """Of what was received last, and since the head began, or a little more."""
        self._in_head, self._too_large = True, False
        self._late = asyncio.get_running_loop().call_later(HEAD_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._late.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._piece = len(data)
        self._bytes += len(data)
        super().data_received(data)
        if self._in_head and self._bytes > MOST_HEAD_BYTES:
            self._answer(_too_large())

    def on_message_begin(self) -> None:
        self._in_head, self._bytes = True, self._piece
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._late.cancel()
        if self._bytes > MOST_HEAD_BYTES and _size(self.headers) > MOST_HEAD_BYTES:
            self._too_large = True
            raise ValueError("its headers are too large")  # they came in one piece
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        if self._too_large:
            self._answer(_too_large())
        else:
            self._answer(Refusal(400, "this is not an HTTP request", hint=msg))

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self._answer(
                Refusal(
                    408,
                    f"no request came within {HEAD_SECONDS:g} s",
                    hint="connect and send at once",
                )
            )

    def _answer(self, refusal: Refusal) -> None:
        """Answer in place of the application, and close."""
        if self.transport.is_closing():
            return
        answer = error_answer(refusal)
        lines = [b"HTTP/1.1 %d %s" % (refusal.status, _REASONS[refusal.status])]
        lines += [name + b": " + value for name, value in answer.raw_headers]
        lines += [b"connection: close", b"", bytes(answer.body)]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()


def _size(headers: Iterable[tuple[bytes, bytes]]) -> int:
    return sum(len(name) + len(value) for name, value in headers)


def _too_large() -> Refusal:
    return Refusal(
        431, f"the request's headers have more than {MOST_HEAD_BYTES:,} bytes", hint="send less"
    )


_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
}
