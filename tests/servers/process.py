"""One server process of the tests: started in its own folder, stopped by its own process id.

The log of a server outlives it (`log`), so that a failure can be read afterwards. Nothing here
searches for processes by name: what this object did not start, it does not touch.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from tests.servers.ports import wait_until


def binary(name: str, *candidates: str, package: str) -> str:
    """Path of a server's program; a missing one fails with what to install."""
    for candidate in (*candidates, shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")):
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    raise AssertionError(f"the tests need {name}: install it (apt-get install {package})")


class ServerProcess:
    """A program that runs in the foreground, with its output in a file."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    def start(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        ready: Callable[[], bool],
        seconds: float = 120,
    ) -> None:
        """Start it and return when it is ready."""
        assert not self.running, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        def ready_or_dead() -> bool:
            assert self.running, f"{self.name} ended while it started\n{self._tail()}"
            return ready()

        try:
            wait_until(ready_or_dead, seconds=seconds, what=self.name, diagnose=self._tail)
        except BaseException:
            self.kill()
            raise

    def stop(self, seconds: float = 60) -> None:
        """Ask it to leave, wait, and kill it if it does not. May be repeated."""
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """kill -9, for it and what it started. May be repeated."""
        if self._process is None:
            return
        if self.running:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(120)

    def wait(self, seconds: float = 60) -> None:
        """Wait until it has ended by itself."""
        assert self._process is not None, f"{self.name} was not started"
        self._process.wait(seconds)

    def pause(self) -> None:
        """Freeze it: connections stay open and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else "no log"


def children_of(pid: int | Literal["self"]) -> set[int]:
    """Processes that a live one has started and that nobody has waited for yet."""
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # that thread ended in this moment
            found.update(map(int, children.read_text().split()))
    return found


def thread_states(pid: int) -> set[str]:
    """The states of its threads, as letters of /proc/PID/stat."""
    return {stat.rpartition(")")[2].split()[0] for stat in _of_threads(pid, "stat")}


def thread_names(pid: int) -> list[str]:
    return [name.rstrip("\n") for name in _of_threads(pid, "comm")]


def _of_threads(pid: int, name: str) -> list[str]:
    found: list[str] = []
    for file in Path(f"/proc/{pid}/task").glob(f"*/{name}"):
        with suppress(FileNotFoundError, ProcessLookupError):  # that thread ended in this moment
            found.append(file.read_text())
    return found
