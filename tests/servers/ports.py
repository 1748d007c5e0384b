"""Free ports on the loopback address, for servers that tests start.

Ports come from below the range from which the kernel takes the ports of outgoing connections, so
that a server which was killed finds its port still free when it is started again. For the same
reason a port is locked, by a byte of a file that all tests on the machine share, until the process
ends that it was given to: several take ports at once.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

LOOPBACK = "127.0.0.1"
RANGE = range(20_000, 32_000)
_given: set[int] = set()


@cache
def _locks() -> int:
    """The file of the locks. It stays open: closing it anywhere in the process frees them all."""
    path = Path(tempfile.gettempdir()) / f"fuploader-test-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _is_taken(port: int) -> bool:
    """Whether another process has it. Takes it if none has."""
    with suppress(BlockingIOError, PermissionError):  # what a lock of another one raises
        fcntl.lockf(_locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        return False
    return True


def free_port() -> int:
    """A port on which nothing listens and which no process of a test was given."""
    for port in random.SystemRandom().sample(RANGE, len(RANGE)):
        if port in _given or _is_taken(port):
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise AssertionError(f"no free port on {LOOPBACK} between {RANGE.start} and {RANGE.stop}")


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
