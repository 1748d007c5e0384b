"""The supervisor: keeps a pipeline's workers running as long as somebody renews its lease.

What must always hold: workers run only within the lease. `renew` (a sensor tick, or the loop of
`fuploader drain`) is short and returns at once. A thread replaces workers that left (their quota is
used up, or they died) without waiting for the next renewal; one that dies again and again is
replaced after growing pauses. When the lease runs out, or this process dies, the pipes close and
the workers leave by themselves.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fuploader_dagster.config import Intake
from fuploader_dagster.drain import pause_seconds
from fuploader_dagster.lease import renewal
from fuploader_dagster.loading import dump_intake
from fuploader_dagster.worker import Job
from fuploader_dagster.worker_status import WorkerStatus, read_statuses

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.2
STEADY_SECONDS = 30.0
"""A worker that ran this long and dies starts counting its deaths anew."""


@dataclass
class _Worker:
    """One worker's place: its process now, and how the last ones ended."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    deaths: int = 0
    last_exit: int = 0
    start_after: float = 0.0


class Supervisor:
    """The workers of one pipeline, children of this process. Thread-safe."""

    def __init__(self, settings: Intake) -> None:
        self.settings = settings
        self._workers = [_Worker(number) for number in range(settings.process_count)]
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ends_at = 0.0
        self._thread: threading.Thread | None = None

    def renew(self) -> None:
        """Let the workers run for another `lease_seconds`, and start those that are missing."""
        with self._lock:
            self._ends_at = time.monotonic() + self.settings.lease_seconds
            for worker in self._workers:
                self._tend(worker)
                self._send(worker, renewal(self.settings.lease_seconds))
            if self._thread is None or not self._thread.is_alive():
                name = f"workers of {self.settings.name}"
                self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
                self._thread.start()

    def stop(self, timeout_seconds: float = 30.0) -> None:
        """Tell the workers to leave and wait for them. May be repeated."""
        with self._lock:
            self._ends_at = 0.0
            processes = [worker.process for worker in self._workers if worker.process]
            for worker in self._workers:
                self._let_go(worker)
        self._wake.set()
        until = time.monotonic() + timeout_seconds
        for process in processes:
            process.wait(max(0.1, until - time.monotonic()))

    def statuses(self) -> list[WorkerStatus]:
        """What the workers of this supervisor say they are doing."""
        pids = {worker.process.pid for worker in self._workers if worker.process}
        return [s for s in read_statuses(self.settings.layout) if s.pid in pids]

    def problems(self) -> list[str]:
        """Sentences for a person: what keeps workers from draining, if anything does."""
        found = [
            f"worker {status.worker}: {status.problem}"
            for status in self.statuses()
            if status.problem
        ]
        found += [
            f"worker {worker.number} ended {worker.deaths} times in a row, last with "
            f"{_exit_in_words(worker.last_exit)}: see the log of this code server"
            for worker in self._workers
            if worker.deaths
        ]
        return found

    def _watch(self) -> None:
        while True:
            self._wake.wait(WATCH_SECONDS)
            with self._lock:
                if time.monotonic() >= self._ends_at:
                    for worker in self._workers:
                        self._let_go(worker)
                    self._thread = None
                    return
                for worker in self._workers:
                    self._tend(worker)

    def _tend(self, worker: _Worker) -> None:
        """Note how a worker ended, and start the next one when it is time."""
        now = time.monotonic()
        if worker.process is not None and (code := worker.process.poll()) is not None:
            worker.process = None
            if code == 0:
                worker.deaths = 0
            else:
                steady = now - worker.started_at > STEADY_SECONDS
                worker.deaths = 1 if steady else worker.deaths + 1
                worker.last_exit = code
                worker.start_after = now + pause_seconds(worker.deaths, 0.5)
                log.error(
                    "worker %d of %s ended with %s; what it had not acknowledged comes again",
                    worker.number,
                    self.settings.name,
                    _exit_in_words(code),
                )
        if worker.process is None and now >= worker.start_after:
            self._start(worker)

    def _start(self, worker: _Worker) -> None:
        job = Job(
            worker=worker.number,
            lease_seconds=max(0.0, self._ends_at - time.monotonic()),
            sys_path=[path or str(Path.cwd()) for path in sys.path],
            intake=msgspec.Raw(dump_intake(self.settings)),
        )
        worker.process = subprocess.Popen(
            [sys.executable, "-m", "fuploader_dagster.worker"], stdin=subprocess.PIPE, bufsize=0
        )
        worker.started_at = time.monotonic()
        self._send(worker, msgspec.json.encode(job) + b"\n")

    def _send(self, worker: _Worker, line: bytes) -> None:
        if worker.process is None or worker.process.stdin is None:
            return
        try:
            worker.process.stdin.write(line)
        except BrokenPipeError:
            log.debug("worker %d left before it was told something", worker.number)

    def _let_go(self, worker: _Worker) -> None:
        if worker.process is not None:
            if worker.process.stdin is not None:
                worker.process.stdin.close()
                worker.process.stdin = None
            worker.process.poll()


_supervisors: dict[Path, Supervisor] = {}
_supervisors_lock = threading.Lock()


def supervisor_for(settings: Intake) -> Supervisor:
    """The supervisor of a pipeline in this process, the same one at every tick.

    If the settings changed, the old workers leave first: the new ones need their slots.
    """
    with _supervisors_lock:
        supervisor = _supervisors.get(settings.layout.root)
        if supervisor is None or supervisor.settings != settings:
            if supervisor is not None:
                supervisor.stop()
            supervisor = _supervisors[settings.layout.root] = Supervisor(settings)
        return supervisor


def _exit_in_words(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
