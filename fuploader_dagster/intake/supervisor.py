"""The supervisor: keeps a pipeline's workers running as long as its lease is renewed.

What must always hold: workers run only within the lease. `renew` (a sensor tick, or the loop of
`fuploader drain`) is short and returns at once. A thread restarts workers that exited (their quota
was used up, or they died) without waiting for the next renewal. A worker that dies repeatedly is
restarted after growing pauses, unless a redelivered message may be the cause (`poison` counts
those). When the lease runs out, or this process dies, the pipes close and the workers leave by
themselves; one that does not is killed, so that its slots become free. A process that
ends in order waits for its workers: in a container they are killed once the main process is gone.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fuploader_dagster.disk.own_files import closed_after
from fuploader_dagster.intake import worker_status
from fuploader_dagster.intake.lease import renewal
from fuploader_dagster.intake.pauses import growing_pause
from fuploader_dagster.intake.worker import LEAVING_SECONDS, MAX_LAST_WORDS, Job, in_a_sentence
from fuploader_dagster.processing.poison import was_handling
from fuploader_dagster.settings.loading import dump_intake
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.subprocesses import environment, exit_in_words, import_path

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.2
STEADY_SECONDS = 30.0
"""After a worker ran this long, its earlier deaths no longer count."""


@dataclass
class _Worker:
    """One worker's place: its process now, and how the last ones ended."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    last_words: int = -1
    """The descriptor from which to read what the process died of."""
    started_at: float = 0.0
    let_go_at: float = 0.0
    """When its pipe was closed; 0 while it should drain."""
    deaths: int = 0
    died_of: str = ""
    start_after: float = 0.0


class Supervisor:
    """The workers of one pipeline, children of this process. Thread-safe."""

    def __init__(self, pipeline: Intake, *, despite_pause: bool = False) -> None:
        self.pipeline = pipeline
        self._despite_pause = despite_pause
        self._workers = [_Worker(number) for number in range(pipeline.process_count)]
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ends_at = 0.0
        self._thread: threading.Thread | None = None

    def renew(self) -> None:
        """Let the workers run for another `lease_seconds`, and start those that are missing."""
        with self._lock:
            self._ends_at = time.monotonic() + self.pipeline.lease_seconds
            for worker in self._workers:
                self._tend(worker, wanted=True)
                self._send(worker, renewal(self.pipeline.lease_seconds))
            if self._thread is None or not self._thread.is_alive():
                name = f"workers of {self.pipeline.name}"
                self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
                self._thread.start()

    def let_go(self) -> None:
        """Tell the workers to leave, and return at once. May be repeated."""
        with self._lock:
            self._ends_at = 0.0
            for worker in self._workers:
                self._tend(worker, wanted=False)
        self._wake.set()

    def stop(self, timeout_seconds: float = LEAVING_SECONDS) -> None:
        """Tell the workers to leave, wait for them, kill those that do not. May be repeated."""
        with self._lock:
            processes = [worker.process for worker in self._workers if worker.process]
        self.let_go()
        until = time.monotonic() + timeout_seconds
        for process in processes:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def statuses(self) -> list[worker_status.WorkerStatus]:
        pids = {worker.process.pid for worker in self._workers if worker.process}
        here = worker_status.pid_namespace()
        return [
            status
            for status in worker_status.read_statuses(self.pipeline.layout)
            if status.pid in pids and status.pid_namespace == here
        ]

    def problems(self) -> list[str]:
        """What keeps workers from draining, in sentences; empty if nothing does."""
        statuses = {status.worker: status for status in self.statuses()}
        with self._lock:
            found = [_problem_of(worker, statuses.get(worker.number)) for worker in self._workers]
        return [sentence for sentence in found if sentence]

    def _watch(self) -> None:
        """While the lease runs, restart workers that exited. When it ends, shut them all down."""
        while True:
            self._wake.wait(WATCH_SECONDS)
            self._wake.clear()
            with self._lock:
                wanted = time.monotonic() < self._ends_at
                for worker in self._workers:
                    self._tend(worker, wanted=wanted)
                if not wanted and not any(worker.process for worker in self._workers):
                    self._thread = None
                    return

    def _tend(self, worker: _Worker, *, wanted: bool) -> None:
        """Note how a worker ended; start it, let it go or kill it, whichever is due."""
        now = time.monotonic()
        self._note_end(worker, now)
        if worker.process is None:
            if wanted and now >= worker.start_after:
                self._start(worker, now)
        elif worker.let_go_at:
            if now - worker.let_go_at > LEAVING_SECONDS:
                log.error(
                    "worker %d did not leave within %.0f s and is killed",
                    worker.number,
                    LEAVING_SECONDS,
                )
                worker.process.kill()
        elif not wanted and worker.process.stdin is not None:
            worker.process.stdin.close()
            worker.let_go_at = now
        elif now - worker.started_at > STEADY_SECONDS:
            worker.deaths = 0

    def _note_end(self, worker: _Worker, now: float) -> None:
        if worker.process is None or (code := worker.process.poll()) is None:
            return
        if worker.process.stdin is not None:
            worker.process.stdin.close()
        worker.process = None
        last_words = _read_and_close(worker.last_words)
        if code == 0:
            worker.deaths = 0
        else:
            self._note_death(worker, last_words or _died_of(code), now)

    def _note_death(self, worker: _Worker, died_of: str, now: float) -> None:
        worker.deaths += 1
        worker.died_of = died_of
        # Deaths that a message causes are counted with the message: no need for a longer pause.
        suspected = was_handling(self.pipeline.layout, worker.number)
        worker.start_after = now + growing_pause(1 if suspected else worker.deaths, 0.5)
        log.error(
            "worker %d of %s ended; the queue delivers again what it had not acknowledged: %s",
            worker.number,
            self.pipeline.name,
            died_of,
        )

    def _start(self, worker: _Worker, now: float) -> None:
        worker.last_words, last_words = os.pipe()
        job = Job(
            worker=worker.number,
            lease_seconds=max(0.0, self._ends_at - now),
            sys_path=import_path(),
            last_words=last_words,
            intake=msgspec.Raw(dump_intake(self.pipeline)),
            despite_pause=self._despite_pause,
        )
        try:
            worker.process = subprocess.Popen(
                [sys.executable, "-m", "fuploader_dagster.intake.worker"],
                stdin=subprocess.PIPE,
                bufsize=0,
                pass_fds=[last_words],
                env=environment(),
            )
        except OSError as error:  # no memory or too many processes: that may pass
            os.close(worker.last_words)
            self._note_death(worker, f"it could not be started: {in_a_sentence(error)}", now)
            return
        finally:
            os.close(last_words)
        worker.started_at, worker.let_go_at = now, 0.0
        self._send(worker, msgspec.json.encode(job) + b"\n")
        if worker.process.stdin is not None:
            # A worker that hangs reads nothing: no tick may wait for it.
            os.set_blocking(worker.process.stdin.fileno(), False)

    def _send(self, worker: _Worker, line: bytes) -> None:
        if worker.process is None or worker.process.stdin is None or worker.let_go_at:
            return
        try:
            worker.process.stdin.write(line)
        except BrokenPipeError:
            log.debug("worker %d exited before it read its renewal", worker.number)


_supervisors: dict[Path, Supervisor] = {}
_supervisors_lock = threading.Lock()


def supervisor_for(pipeline: Intake) -> Supervisor:
    """The supervisor of a pipeline in this process, the same one at every tick.

    If the settings changed, the old workers are let go; new ones wait for their slots.
    """
    with _supervisors_lock:
        supervisor = _supervisors.get(pipeline.layout.root)
        if supervisor is None or supervisor.pipeline != pipeline:
            if supervisor is not None:
                supervisor.let_go()
            supervisor = _supervisors[pipeline.layout.root] = Supervisor(pipeline)
        return supervisor


@atexit.register
def stop_all() -> None:
    """Have the workers of all pipelines leave, and wait for them."""
    for supervisor in _supervisors.values():
        supervisor.let_go()
    for supervisor in _supervisors.values():
        supervisor.stop()


def _problem_of(worker: _Worker, status: worker_status.WorkerStatus | None) -> str:
    """What keeps a worker from draining, in a sentence; empty if nothing does."""
    draining = status is not None and status.doing in ("draining", "held")
    if status is not None and status.problem:
        return f"worker {worker.number}: {status.problem}"
    if worker.deaths > 1 or (worker.deaths and not draining):
        return f"worker {worker.number} ended {worker.deaths} times in a row: {worker.died_of}"
    if draining and status and (silent := status.silent_seconds()) > worker_status.SILENT_SECONDS:
        return (
            f"worker {worker.number} (process {status.pid}) has not written its status for "
            f"{silent:.0f} s: does it hang in a message parser, or does the disk not answer?"
        )
    return ""


def _died_of(code: int) -> str:
    if code == -signal.SIGALRM:
        return "a parser or name generator took longer than parser_timeout_seconds for one message"
    if code == -signal.SIGKILL:  # the log has nothing of it
        return exit_in_words(code)
    return f"{exit_in_words(code)}; see the log of this code server"


def _read_and_close(descriptor: int) -> str:
    """What was written into a pipe so far; a child of the writer may still have it open."""
    os.set_blocking(descriptor, False)
    with closed_after(descriptor), suppress(BlockingIOError):
        return os.read(descriptor, MAX_LAST_WORDS).decode("utf-8", "replace")
    return ""
