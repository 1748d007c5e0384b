"""Failures: which slots could not be processed, packed or uploaded, and when to try them again.

Each is noted in `archives/{partition}.failure.json`, until the slot gets through; in the folder of
a sink, if its rows could not be stored there. Losing a note loses only the count: the slot is tried
again sooner.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import make_dirs, write_durably
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.disk.temporaries import whole_files
from fuploader_dagster.errors import UNREADABLE_JSON, ForeignFile
from fuploader_dagster.settings.pipeline import Pipeline

FAILURE_SUFFIX = ".failure.json"
MAX_ERROR_CHARACTERS = 2000

Stage = Literal["process", "pack", "upload", "store rows"]


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """How a slot last failed. `failed_at` is seconds since 1970."""

    partition: str
    stage: Stage
    attempts: int
    failed_at: float
    error: str


@dataclass(frozen=True)
class FailureNotes:
    """The failures that are noted in one folder."""

    folder: Path

    def note(self, partition: str, *, stage: Stage, error: str, now: float) -> Failure:
        """Count a failure of the slot."""
        before = self.find(partition)
        failure = Failure(
            partition=partition,
            stage=stage,
            attempts=before.attempts + 1 if before else 1,
            failed_at=now,
            error=error[:MAX_ERROR_CHARACTERS],
        )
        make_dirs(self.folder)
        self._write(failure)
        reached(CrashPoint.FAILURE_NOTED)
        return failure

    def find(self, partition: str) -> Failure | None:
        """How the slot last failed, or None if it did not."""
        return _read(self._path(partition))

    def all(self) -> Iterator[Failure]:
        """The slots that failed and have not got through since."""
        for path in whole_files(self.folder, f"*{FAILURE_SUFFIX}"):
            failure = _read(path)
            if failure is not None:
                yield failure

    def forgive_since(self, stage: Stage, since: float) -> None:
        """Start counting again what failed in this stage since then: what caused it is over."""
        for failure in list(self.all()):
            if failure.stage == stage and failure.failed_at >= since:
                self._write(msgspec.structs.replace(failure, attempts=1))

    def clear(self, partition: str) -> None:
        """The slot got through."""
        self._path(partition).unlink(missing_ok=True)

    def _write(self, failure: Failure) -> None:
        write_durably(self._path(failure.partition), msgspec.json.encode(failure))

    def _path(self, partition: str) -> Path:
        return self.folder / f"{partition}{FAILURE_SUFFIX}"


def note_failure(
    layout: Layout, partition: str, *, stage: Stage, error: str, now: float
) -> Failure:
    """Count a failure of a slot that is to be shipped."""
    return FailureNotes(layout.archives).note(partition, stage=stage, error=error, now=now)


def find_failure(layout: Layout, partition: str) -> Failure | None:
    """How a slot that is to be shipped last failed, or None if it did not."""
    return FailureNotes(layout.archives).find(partition)


def all_failures(layout: Layout) -> Iterator[Failure]:
    """The slots that failed to be shipped and have not got through since."""
    return FailureNotes(layout.archives).all()


def clear_failure(layout: Layout, partition: str) -> None:
    """The slot was shipped."""
    FailureNotes(layout.archives).clear(partition)


def is_due(attempts: int, failed_at: float, pipeline: Pipeline, now: float) -> bool:
    """Whether it is time to try again, as the pipeline's settings say."""
    return now >= due_at(
        attempts,
        failed_at,
        base_seconds=pipeline.recovery_base_seconds,
        cap_seconds=pipeline.recovery_cap_seconds,
        now=now,
    )


def due_at(
    attempts: int, failed_at: float, *, base_seconds: float, cap_seconds: float, now: float
) -> float:
    """When to try again: the pause doubles with each attempt, up to the cap.

    At once if it failed in the future: the clock was set back, and nobody knows how long ago it
    was. The next attempt counts from the right time.
    """
    if failed_at > now:
        return now
    pause = base_seconds * 2.0 ** min(attempts - 1, 30)
    return failed_at + min(pause, cap_seconds)


def _read(path: Path) -> Failure | None:
    try:
        return msgspec.json.decode(read_own(path), type=Failure)
    except (FileNotFoundError, ForeignFile, *UNREADABLE_JSON):
        return None
