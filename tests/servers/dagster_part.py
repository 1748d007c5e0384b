"""A process of Dagster (a code server, a daemon) with everything that it starts, to be killed.

Processes are known by their session, and by a home in the folder of the test: whatever somebody
else runs on this machine is never touched.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from tests.servers.ports import answers
from tests.servers.process import ServerProcess

LOOK_SECONDS = 0.2
STOP_SECONDS = 60.0
HOMES = ("DAGSTER_HOME", "HOME", "SWIFT_CONF")
"""Variables that say to whom a process belongs; a shell of somebody who looks has none of them."""


class DagsterPart:
    """A process of Dagster, and what it started: all in a session of its own."""

    def __init__(self, name: str, arguments: list[str], folder: Path, port: int | None) -> None:
        self.process = ServerProcess(name, folder / f"{name}.log")
        self.environment: Mapping[str, str] = {}
        self._command = [sys.executable, "-m", *arguments]
        self._folder = folder
        self._port = port

    def start(self) -> None:
        port = self._port
        self.process.start(
            self._command,
            env=self.environment,
            cwd=self._folder,
            ready=lambda: port is None or answers(port),
            seconds=120,
        )

    def stop(self) -> None:
        """SIGTERM to everything, later kill -9 for what is still there: as systemd does."""
        session = self.members()
        end(session, signal.SIGTERM)
        self.process.stop(STOP_SECONDS)
        until = time.monotonic() + STOP_SECONDS
        while set(session) & set(self.members()) and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
        end(self.members())

    def kill(self) -> None:
        """kill -9 of everything, as when a container dies."""
        session = self.members()
        self.process.kill()
        end(session)

    def kill_alone(self) -> None:
        """kill -9 of this one process; what it started lives on."""
        os.kill(self.process.pid, signal.SIGKILL)

    def members(self, *words: str) -> list[int]:
        """Processes of the session whose command line has all the words."""
        folder = self.environment["DAGSTER_HOME"]
        return [
            pid
            for pid in processes_of(folder, *words)
            if pid == self.process.pid or session_of(pid) == self.process.pid
        ]


def processes_of(folder: str, *words: str) -> list[int]:
    """Processes with a home (of Dagster, Erlang, a server) below the folder, by their environment,
    whose command line has all the words."""
    marks = tuple(f"{name}={folder}".encode() for name in HOMES)
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended in this moment
            environment = (entry / "environ").read_bytes().split(b"\0")
            if not any(variable.startswith(marks) for variable in environment):
                continue
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            if command and all(word in command for word in words):
                found.append(int(entry.name))
    return sorted(found)


def processes_in(folder: Path) -> list[int]:
    """Processes that work in the folder or below, whatever they have made of their environment."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):  # it ended in this moment
            if link.readlink().is_relative_to(folder):
                found.append(int(link.parent.name))
    return found


def session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def end(pids: Iterable[int], how: signal.Signals = signal.SIGKILL) -> None:
    """Send them the signal, where they are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, how)
