"""What is noted about the notices of tasks, for each notifier in a folder of its own.

    notices/{key}/{partition}.end       a task that is over, and was not told to the end
    notices/{key}/{partition}.told      how much was told of a task, until it is forgotten
    notices/{key}/trouble.json          since when nobody can be told, and how often that was tried
    notices/{key}/given-up.json         how many tasks were given up, and the last reason

What must always hold: `.end` is durable before the local data of its slot goes, and has all that
can still be told. It goes when everything is told, or given up. `.told` outlives the slot, so
nothing is told again; losing it means only that notices are repeated, with the same ids.

The key is a digest of how the notifier describes itself: whoever is told at another place is told
from the beginning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from fuploader_dagster.contracts.notifier import NotifierSettings
from fuploader_dagster.delivery.task_notices import Task, Told
from fuploader_dagster.delivery.trouble_note import TriedNote, note_attempt, read_note
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import (
    create_durably,
    make_dirs,
    remove_file,
    write_durably,
    write_for_readers,
)
from fuploader_dagster.disk.layout import Layout, PartitionKey
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.disk.temporaries import whole_files
from fuploader_dagster.errors import UNREADABLE_JSON, ForeignFile
from fuploader_dagster.settings.pipeline import Pipeline

_END = ".end"
_TOLD = ".told"
_T = TypeVar("_T")


class NotifierTrouble(TriedNote, frozen=True, kw_only=True):
    """Nobody can be told."""

    what = "notices could not be sent since"


class GivenUp(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks whose notices were given up."""

    tasks: int = 0
    at: float = 0.0
    """The last time, in seconds since 1970."""
    reason: str = ""


@dataclass(frozen=True)
class NoticeFiles:
    """The notes about one notifier."""

    layout: Layout
    key: str

    @classmethod
    def of(cls, layout: Layout, settings: NotifierSettings) -> NoticeFiles:
        name = f"{type(settings).__qualname__} {settings.describe()}"
        return cls(layout, hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:12])

    @property
    def folder(self) -> Path:
        return self.layout.notices / self.key

    def lock(self) -> FileLock:
        """Held while notices of a task are sent."""
        return FileLock(self.layout.locks / f"notices-{self.key}.lock")

    def ends(self) -> list[str]:
        """Tasks that are over and not told to the end, oldest first."""
        return [path.name.removesuffix(_END) for path in whole_files(self.folder, f"*{_END}")]

    def end(self, partition: str) -> Task | None:
        return _read(self.folder / f"{partition}{_END}", Task)

    def keep_end(self, task: Task) -> None:
        """Note that a task is over, durably, unless that was told. May be repeated."""
        if self.told(task.partition).ended:
            return
        make_dirs(self.folder)
        if create_durably(self.folder / f"{task.partition}{_END}", msgspec.json.encode(task)):
            reached(CrashPoint.TASK_ENDED)

    def told(self, partition: str) -> Told:
        return _read(self.folder / f"{partition}{_TOLD}", Told) or Told()

    def note_told(self, partition: str, told: Told) -> None:
        make_dirs(self.folder)
        write_for_readers(self.folder / f"{partition}{_TOLD}", msgspec.json.encode(told))
        reached(CrashPoint.NOTICE_NOTED)

    def close(self, partition: str) -> None:
        """Everything is told. May be repeated."""
        remove_file(self.folder / f"{partition}{_END}")
        reached(CrashPoint.NOTICES_CLOSED)
        self._forget(partition)

    def sweep(self) -> None:
        """Forget tasks that are told, or that have become nothing, once their slots are gone."""
        for path in whole_files(self.folder, f"*{_TOLD}"):
            self._forget(path.name.removesuffix(_TOLD))

    def _forget(self, partition: str) -> None:
        key = PartitionKey.parse(partition)
        if key is None or self.layout.sealed(key.slot, key.number).exists():
            return
        if not (self.folder / f"{partition}{_END}").exists():  # written before the slot goes
            (self.folder / f"{partition}{_TOLD}").unlink(missing_ok=True)

    @property
    def trouble(self) -> NotifierTrouble | None:
        return read_note(self.folder / "trouble.json", NotifierTrouble)

    def note_trouble(self, error: str) -> None:
        note_attempt(self.folder / "trouble.json", NotifierTrouble, error)

    def end_trouble(self) -> None:
        (self.folder / "trouble.json").unlink(missing_ok=True)

    @property
    def given_up(self) -> GivenUp:
        return _read(self.folder / "given-up.json", GivenUp) or GivenUp()

    def note_given_up(self, tasks: int, reason: str, now: float) -> None:
        made = GivenUp(tasks=self.given_up.tasks + tasks, at=now, reason=reason[:500])
        write_durably(self.folder / "given-up.json", msgspec.json.encode(made))


def all_notice_files(pipeline: Pipeline) -> Iterator[tuple[NotifierSettings, NoticeFiles]]:
    """Who is told of a pipeline's tasks, each with its notes."""
    for settings in pipeline.notify:
        yield settings, NoticeFiles.of(pipeline.layout, settings)


def _read(path: Path, kind: type[_T]) -> _T | None:
    with suppress(OSError, ForeignFile, *UNREADABLE_JSON):
        return msgspec.json.decode(read_own(path), type=kind)
    return None
