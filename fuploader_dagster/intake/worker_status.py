"""What each worker is doing: small files for ticks, `fuploader status` and people.

`workers/{worker}-{16 hex digits}.json`, replaced in one step about once a second, and beside it a
`.lock` that the worker holds as long as it lives: a process number says nothing about a worker in
another container. For display only: no decision about data depends on these files.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from fuploader_dagster.disk.durable import write_for_readers
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.disk.temporaries import is_held, remove_unless_held, whole_files
from fuploader_dagster.errors import UNREADABLE_JSON, DiskFailed, ForeignFile, FuploaderError

log = logging.getLogger(__name__)

WRITE_INTERVAL_SECONDS = 1.0
SILENT_SECONDS = 60.0
"""A draining worker that has not written for this long may hang. In the worst case, it writes once
per batch."""

Doing = Literal["starting", "draining", "held", "paused", "trouble", "leaving"]
"""`held`: somebody has paused the intake. `paused`: the disk has no room."""


class WorkerStatus(msgspec.Struct, kw_only=True):
    """What one worker wrote about itself at `updated_at` (seconds since 1970)."""

    worker: int
    pid: int
    pid_namespace: int
    """Where `pid` means something: see `pid_namespace()`."""
    doing: Doing
    updated_at: float
    updated_monotonic: float = 0.0
    """The same moment in `time.monotonic`, which all processes of a machine share and which never
    goes back."""
    reads: str = ""
    """What of the queue it reads, where the queue gives each worker a part of it."""
    problem: str = ""
    problem_since: float = 0.0
    messages: int = 0
    stored_bytes: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    last_dead_reason: str = ""
    sealed: int = 0
    messages_per_second: float = 0.0

    def drains(self, at: float) -> bool:
        """Whether it takes messages at this time: one that is silent may hang."""
        return self.doing == "draining" and at - self.updated_at <= SILENT_SECONDS

    def silent_seconds(self) -> float:
        """How long ago it wrote this; only valid on the same machine."""
        return time.monotonic() - self.updated_monotonic


class StatusReport:
    """The status file of one worker. Change `status` freely; `write` writes it."""

    def __init__(
        self,
        layout: Layout,
        worker: int,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._path = layout.workers / f"{worker}-{secrets.token_hex(8)}.json"
        self._alive = FileLock(self._path.with_suffix(".lock"))
        self._written_at = -math.inf
        self._written_messages = 0
        self.status = WorkerStatus(
            worker=worker,
            pid=os.getpid(),
            pid_namespace=pid_namespace(),
            doing="starting",
            updated_at=clock(),
            updated_monotonic=monotonic(),
        )
        self._alive.wait()  # nobody else knows the name, but a reader may be testing the lock

    def doing(self, doing: Doing, problem: FuploaderError | None = None) -> None:
        """Change what the worker is doing and write the file now."""
        self.status.doing = doing
        if problem is None:
            self.status.problem, self.status.problem_since = "", 0.0
        else:
            self.status.problem = str(problem)
            self.status.problem_since = self.status.problem_since or self._clock()
        self.write(now=True)

    def write(self, *, now: bool = False) -> None:
        """Write the file, at most once a second unless `now`."""
        elapsed = self._monotonic() - self._written_at
        if not now and elapsed < WRITE_INTERVAL_SECONDS:
            return
        if elapsed >= WRITE_INTERVAL_SECONDS:
            handled = self.status.messages - self._written_messages
            self.status.messages_per_second = handled / elapsed
            self._written_at, self._written_messages = self._monotonic(), self.status.messages
        self.status.updated_at = self._clock()
        self.status.updated_monotonic = self._monotonic()
        try:
            self._stay_alive()
            write_for_readers(self._path, msgspec.json.encode(self.status))
        except (OSError, FuploaderError) as error:  # a full disk is no reason to end the worker
            log.warning("the status file %s could not be written: %s", self._path, error)

    def _stay_alive(self) -> None:
        """Lock a new file if ours was removed: readers take a worker without a lock for dead."""
        try:
            self._alive.check()
        except DiskFailed:
            self._alive.release()
            self._alive.wait()

    def remove(self) -> None:
        """Remove the file: the worker leaves in good order."""
        with suppress(OSError):  # readers remove the file of a dead worker themselves
            self._path.unlink(missing_ok=True)
            self._alive.path.unlink(missing_ok=True)
        self._alive.release()


def read_statuses(layout: Layout) -> list[WorkerStatus]:
    """The statuses of all workers that are alive; files of dead ones are removed."""
    found = []
    for path in whole_files(layout.workers, "*.json"):
        status = _read(path)
        if status is None:
            continue
        if is_held(path.with_suffix(".lock")):
            found.append(status)
        else:
            path.unlink(missing_ok=True)
            remove_unless_held(path.with_suffix(".lock"))
    return found


def _read(path: Path) -> WorkerStatus | None:
    try:
        return msgspec.json.decode(read_own(path), type=WorkerStatus)
    except FileNotFoundError:
        return None  # its worker has just left
    except (ForeignFile, *UNREADABLE_JSON) as error:  # another version, or a power cut
        log.debug("skipped %s: %s", path, error)
        return None


def pid_namespace() -> int:
    """The kernel's number of this process's PID namespace; containers have their own. 0 where the
    kernel has no such thing."""
    with suppress(OSError):
        return Path("/proc/self/ns/pid").stat().st_ino
    return 0
