"""A program under measurement: started in a session of its own, its CPU and memory read in /proc.

The session tells which processes belong to it, the children of its children included.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_STOP_SECONDS = 60.0


class Program:
    """Use as a context manager: it is stopped at the end, whatever happens."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **env},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def session(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raise if it ended by itself."""
        code = self._process.poll()
        if code is not None:
            raise RuntimeError(f"it ended with exit code {code}:\n{self.tail()}")

    def wait(self, seconds: float) -> None:
        """Wait for its own end, which must be a good one."""
        code = self._process.wait(seconds)
        if code:
            raise RuntimeError(f"it ended with exit code {code}:\n{self.tail()}")

    def stop(self) -> None:
        """SIGTERM to the one that was started, then kill what is left of the session."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pid in members(self.session):
            os.kill(pid, signal.SIGKILL)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


def members(session: int) -> list[int]:
    """Live processes of a session."""
    return [pid for pid, fields in _all() if fields[0] != "Z" and int(fields[3]) == session]


def cpu_seconds(session: int) -> float:
    """CPU time of a session's live processes and of the children they have waited for."""
    return sum(
        sum(int(ticks) for ticks in fields[11:15]) / _TICKS
        for _, fields in _all()
        if int(fields[3]) == session
    )


def peak_bytes(session: int) -> int:
    """The highest resident memory of one worker: a process that the first one of the session
    started, or that one itself where it works alone."""
    return max(_status(pid, "VmHWM") for pid in _workers(session))


def resident_bytes(session: int) -> int:
    """Resident memory now, of the same process as `peak_bytes`."""
    return max(_status(pid, "VmRSS") for pid in _workers(session))


def _workers(session: int) -> list[int]:
    every = members(session)
    return [pid for pid in every if pid != session] or every


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _all() -> Iterator[tuple[int, list[str]]]:
    """Process ids and the fields of /proc/PID/stat from the state on."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            yield int(entry.name), stat.rpartition(")")[2].split()
