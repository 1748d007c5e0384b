"""The connections of all clients: an answer ends in time and comes from where we asked.

A read time-out only limits silence: a server that sends a byte now and then is never silent, and
can hold its client forever. So the head of an answer has to be complete after twice the read
time-out, and the rest of it after the additional time that the caller allows.

The clients of all three services use urllib3, whose connections are told here when they begin to
wait for an answer. `answer_within` sets how long a thread waits at most; when the time is up the
socket is shut down, the read that waits on it ends, and the caller sees `late`.

Answers that client libraries read into memory as a whole, pages and errors, are limited in size.
Ranges of objects are read by `ranges.exact_range`, which knows how much to expect.

No redirect is followed here, whatever the client library asks for: another host would get the
session token, and with a 307 the archive.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

SLOWEST_BYTES_PER_SECOND = 16 << 10
LONGEST_ANSWER_BYTES = 64 << 20
"""A page of a listing has 1,000 names of at most 1,024 bytes: a few MiB as XML."""


class Due:
    """The time that one request has for its answer."""

    def __init__(self, head_seconds: float, body_seconds: float) -> None:
        self.late = False
        self._seconds = [head_seconds, body_seconds]
        self._timers: list[threading.Timer] = []

    def wait_for_head(self, sock: Any) -> None:
        self._start(self._seconds[0], sock)

    def wait_for_body(self, sock: Any) -> None:
        self.end()
        self._start(sum(self._seconds), sock)

    def end(self) -> None:
        while self._timers:
            self._timers.pop().cancel()

    def _start(self, seconds: float, sock: Any) -> None:
        timer = threading.Timer(seconds, self._shut, [sock])
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    def _shut(self, sock: Any) -> None:
        self.late = True
        try:
            # This bypasses TLS, which would wait for the other side before it closes.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        except OSError:
            return  # it is closed already, so nobody waits for it


_current = threading.local()


@contextmanager
def answer_within(head_seconds: float, body_seconds: float) -> Iterator[Due]:
    """Each request that this thread makes meanwhile must be answered in that time."""
    due = _current.due = Due(head_seconds, body_seconds)
    try:
        yield due
    finally:
        _current.due = None
        due.end()


class _Waiting:
    """Mixed into a connection: the waiting begins when the request is sent."""

    def getresponse(self, *args: Any, **kwargs: Any) -> Any:
        due, sock = getattr(_current, "due", None), getattr(self, "sock", None)
        if due is None or not isinstance(sock, socket.socket):
            return super().getresponse(*args, **kwargs)  # type: ignore[misc]
        due.wait_for_head(sock)
        answer = super().getresponse(*args, **kwargs)  # type: ignore[misc]
        due.wait_for_body(sock)
        return answer

    def _handle_expect_response(self, message_body: Any) -> Any:
        """botocore's own: here it waits for a 100 Continue before it sends a body."""
        due, sock = getattr(_current, "due", None), getattr(self, "sock", None)
        if due is not None and isinstance(sock, socket.socket):
            due.wait_for_head(sock)
        return super()._handle_expect_response(message_body)  # type: ignore[misc]

    def _consume_headers(self, lines: Any) -> None:
        """botocore's own reads a 100 Continue's headers, and loops forever if they break off."""
        while (line := lines.readline()) not in (b"\r\n", b"\n"):
            if not line:
                raise ConnectionError("the connection ended in the middle of a 100 Continue")
        due = getattr(_current, "due", None)
        if due is not None:
            due.end()  # sending the body is not part of the waiting


class _StayingHere:
    """Mixed into a connection pool."""

    def urlopen(self, *args: Any, **kwargs: Any) -> Any:
        answer = super().urlopen(*args, **{**kwargs, "redirect": False})  # type: ignore[misc]
        answer.stream = _limited(answer)
        return answer


def _limited(answer: Any) -> Callable[..., Iterator[bytes]]:
    """The answer's `stream` with a size limit."""
    stream = answer.stream

    def limited(*args: Any, **kwargs: Any) -> Iterator[bytes]:
        size = 0
        for piece in stream(*args, **kwargs):
            size += len(piece)
            if size > LONGEST_ANSWER_BYTES:
                answer.close()
                raise HTTPError(f"the answer has more than {LONGEST_ANSWER_BYTES:,} bytes")
            yield piece

    return limited


def punctual(pools: dict[str, Any]) -> dict[str, Any]:
    """urllib3's pool classes by scheme, with these connections."""
    return {scheme: _with_waiting(pool) for scheme, pool in pools.items()}


def _with_waiting(pool: Any) -> Any:
    connection = type(f"Our{pool.ConnectionCls.__name__}", (_Waiting, pool.ConnectionCls), {})
    return type(f"Our{pool.__name__}", (_StayingHere, pool), {"ConnectionCls": connection})


POOLS = punctual({"http": HTTPConnectionPool, "https": HTTPSConnectionPool})
