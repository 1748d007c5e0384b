"""What is noted about a pipeline's sinks: receipts, rows that are owed, failures, trouble.

    sinks/{name}/YYYYMMDDTHH.jsonl          receipts: what the sink confirmed
    sinks/{name}/{partition}.owed           the slot's rows are still to be stored
    sinks/{name}/{partition}.letters        an attempt that has not ended wrote dead letters
    sinks/{name}/{partition}.failure.json   how often that failed, and why
    sinks/{name}/trouble.json               since when the sink takes nothing

What must always hold:

- Before the local data of a slot goes, each sink has a receipt of it, or a durable note that its
  rows are owed. A `required` sink keeps the local data until it has the receipt.
- A sink owes nothing for slots that were gone when it was added, until somebody asks for them.
- The first partition that is stored ends the trouble.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fuploader_dagster.delivery.failures import FailureNotes
from fuploader_dagster.delivery.trouble_note import TriedNote, note_attempt, read_note
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import create_durably, make_dirs, remove_file
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.temporaries import whole_files
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import ReceiptFiles, RowsReceipt, rows_receipts

OWED_SUFFIX = ".owed"
LETTERS_SUFFIX = ".letters"


class SinkTrouble(TriedNote, frozen=True, kw_only=True):
    """A sink that takes nothing."""

    what = "no rows could be stored since"


@dataclass(frozen=True)
class SinkNotes:
    """The notes about one sink."""

    layout: Layout
    sink: str

    @property
    def folder(self) -> Path:
        return self.layout.sink(self.sink)

    @cached_property
    def receipts(self) -> ReceiptFiles[RowsReceipt]:
        return rows_receipts(self.layout, self.sink)

    @cached_property
    def failures(self) -> FailureNotes:
        return FailureNotes(self.folder)

    def receipt(self, partition: str) -> RowsReceipt | None:
        return self.receipts.find([partition]).get(partition)

    def owed(self) -> list[str]:
        """Partitions whose rows are noted as owed, oldest first."""
        found = whole_files(self.folder, f"*{OWED_SUFFIX}")
        return [path.name.removesuffix(OWED_SUFFIX) for path in found]

    def is_owed(self, partition: str) -> bool:
        return self._owed(partition).exists()

    def owe(self, partition: str) -> None:
        """Note that the rows of a partition are still to be stored. May be repeated."""
        make_dirs(self.folder)
        if create_durably(self._owed(partition), b""):
            reached(CrashPoint.OWED_NOTED)

    def has_letters(self, partition: str) -> bool:
        """Whether an attempt that has not ended may have written dead letters."""
        return self._letters(partition).exists()

    def note_letters(self, partition: str) -> None:
        """Note it, before the first one is written. May be repeated."""
        make_dirs(self.folder)
        create_durably(self._letters(partition), b"")

    def settle(self, partition: str) -> None:
        """Nothing is owed for the partition any more. May be repeated."""
        self.failures.clear(partition)
        self._letters(partition).unlink(missing_ok=True)
        if self._owed(partition).exists():
            remove_file(self._owed(partition))
            reached(CrashPoint.OWED_CLEARED)

    @property
    def trouble(self) -> SinkTrouble | None:
        """Why the sink takes nothing; None if it does, as far as is known."""
        return read_note(self._trouble, SinkTrouble)

    def note_trouble(self, error: str) -> None:
        note_attempt(self._trouble, SinkTrouble, error)

    def end_trouble(self) -> None:
        """The sink took something. May be repeated."""
        self._trouble.unlink(missing_ok=True)

    @property
    def _trouble(self) -> Path:
        return self.folder / "trouble.json"

    def _letters(self, partition: str) -> Path:
        return self.folder / f"{partition}{LETTERS_SUFFIX}"

    def _owed(self, partition: str) -> Path:
        return self.folder / f"{partition}{OWED_SUFFIX}"


def all_sinks(pipeline: Pipeline) -> list[SinkNotes]:
    """The notes about each sink of a pipeline."""
    return [SinkNotes(pipeline.layout, name) for name in pipeline.sinks]


def keep_or_owe(pipeline: Pipeline, partition: str) -> bool:
    """Whether the local data of a stored slot has to stay, for a required sink; before it goes, it
    is noted which sinks are owed its rows."""
    lacking = [notes for notes in all_sinks(pipeline) if notes.receipt(partition) is None]
    for notes in lacking:
        notes.owe(partition)
    return any(pipeline.sinks[notes.sink].required for notes in lacking)


def kept_for_sinks(pipeline: Pipeline, partitions: Collection[str]) -> set[str]:
    """Those of these stored partitions whose local data waits for a required sink."""
    kept: set[str] = set()
    for notes in all_sinks(pipeline):
        if pipeline.sinks[notes.sink].required:
            kept |= set(partitions) - notes.receipts.find(partitions).keys()
    return kept
