"""Free ports on the loopback address, for servers that tests start.

Ports come from below the range from which the kernel takes the ports of outgoing connections, so
that a server which was killed finds its port still free when it is started again. Several test
runs on one machine start at random places of the range.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable

LOOPBACK = "127.0.0.1"
_RANGE = range(20_000, 32_000)
_given: set[int] = set()


def free_port() -> int:
    """A port on which nothing listens and which this process did not give out before."""
    for port in random.SystemRandom().sample(_RANGE, len(_RANGE)):
        if port in _given:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise AssertionError(f"no free port on {LOOPBACK} between {_RANGE.start} and {_RANGE.stop}")


def answers(port: int) -> bool:
    """Whether somebody accepts connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0


def wait_until(
    ready: Callable[[], bool], *, seconds: float, what: str, diagnose: Callable[[], str]
) -> None:
    """Return when `ready()` holds; an `AssertionError` with the diagnosis after the time."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} was not ready within {seconds:g} s\n{diagnose()}")
        time.sleep(0.05)
