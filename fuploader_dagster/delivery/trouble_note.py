"""Trouble that holds all slots of a pipeline up, noted on disk for runs, ticks and commands.

What must always hold: trouble that was noted before goes on, with the time since when. When it
ends, the slots that failed meanwhile are due: they do not wait out pauses that grew while nothing
could have helped.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import ClassVar, TypeVar

import msgspec

from fuploader_dagster.delivery.failures import FailureNotes, Stage
from fuploader_dagster.disk.durable import make_dirs, write_durably
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.errors import UNREADABLE_JSON, ForeignFile


class TroubleNote(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the note. Times are seconds since 1970."""

    what: ClassVar[str]
    """What does not work, up to the time since when."""
    since: float
    seen_at: float
    error: str

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, tz=timezone.utc)
        return f"{self.what} {since:%Y-%m-%d %H:%M:%S} UTC: {self.error}"


class TriedNote(TroubleNote, frozen=True, kw_only=True):
    """Trouble that runs try to end, one after each of its growing pauses."""

    attempts: int


_Note = TypeVar("_Note", bound=TroubleNote)
_Tried = TypeVar("_Tried", bound=TriedNote)


def read_note(path: Path, kind: type[_Note]) -> _Note | None:
    """The trouble that is noted; None if there is none, or if the note cannot be read."""
    try:
        return msgspec.json.decode(read_own(path), type=kind)
    except (OSError, ForeignFile, *UNREADABLE_JSON):
        return None


def keep_note(path: Path, trouble: TroubleNote) -> None:
    make_dirs(path.parent)
    write_durably(path, msgspec.json.encode(trouble))


def note_attempt(path: Path, kind: type[_Tried], error: str) -> None:
    """Note that a run tried and met the trouble; what was noted before goes on."""
    now, before = time.time(), read_note(path, kind)
    keep_note(
        path,
        kind(
            since=before.since if before else now,
            seen_at=now,
            attempts=before.attempts + 1 if before else 1,
            error=error,
        ),
    )


def end_note(path: Path, trouble: TroubleNote | None, stage: Stage, layout: Layout) -> None:
    """Remove the note of this trouble, which made slots fail in this stage. May be repeated."""
    path.unlink(missing_ok=True)
    if trouble is not None:
        FailureNotes(layout.archives).forgive_since(stage, trouble.since)
