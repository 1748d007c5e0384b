"""The lease: a worker drains only while a supervisor that may be switched off keeps renewing.

What must always hold: a worker leaves by itself, soon, when its supervisor stops renewing, closes
the pipe, or dies in any way (then the kernel closes the pipe). A worker never outlives its lease.

Protocol, over the pipe that a worker is started with: one line of JSON (the worker's job), then a
line `renew SECONDS` per renewal; the lease runs SECONDS from its arrival. End of file ends the
lease at once.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable


class Lease:
    """The worker's end of the pipe."""

    def __init__(self, descriptor: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.descriptor = descriptor
        self._clock = clock
        self._ends_at = 0.0
        self._buffer = b""
        self._ended = ""
        self.in_hand = False
        """Whether the worker has messages to commit before it leaves. If not, it only has to close
        connections, and a server that hangs may be cut off."""

    def read_job(self) -> bytes:
        """Wait for the first line and return it; empty if the pipe closed before its end."""
        while b"\n" not in self._buffer and not self._ended:
            select.select([self.descriptor], [], [])
            self._read()
        line, end, self._buffer = self._buffer.partition(b"\n")
        return line if end else b""

    def renew(self, seconds: float) -> None:
        """Let the lease run `seconds` from now."""
        self._ends_at = self._clock() + seconds

    def end(self, reason: str) -> None:
        """End it now, for example on SIGTERM. Safe to call from a signal handler."""
        self._ended = self._ended or reason

    def over(self) -> str:
        """Why the lease is over; empty while it runs. Cheap: called once per batch."""
        while not self._ended and select.select([self.descriptor], [], [], 0)[0]:
            self._read()
        self._take_renewals()
        if not self._ended and self._clock() >= self._ends_at:
            self._ended = "the supervisor did not renew the lease"
        return self._ended

    def wait(self, seconds: float) -> str:
        """Pause, at most until the lease ends. Returns what `over` returns."""
        until = self._clock() + seconds
        while not (reason := self.over()) and (left := until - self._clock()) > 0:
            select.select([self.descriptor], [], [], min(left, 0.2))
        return reason

    def _read(self) -> None:
        received = os.read(self.descriptor, 65536)
        if not received:
            self.end("the supervisor closed the pipe or died")
        self._buffer += received

    def _take_renewals(self) -> None:
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            word, _, seconds = line.partition(b" ")
            if word == b"renew":
                self.renew(float(seconds))


def renewal(seconds: float) -> bytes:
    """The line that renews a lease."""
    return b"renew %.3f\n" % seconds
