"""A processor that works for no item: noted on disk, for runs, ticks and commands.

    {root}/processor-trouble.json    since when, how often it was tried, the last error
    {root}/processor-answered        touched when the processor works for an item

What must always hold: while the note is there, no new run is asked for but one after each of its
growing pauses, which tries again. The first item that is processed removes the note, and the slots
that failed meanwhile are due.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from fuploader_dagster.delivery.failures import is_due
from fuploader_dagster.delivery.trouble_note import TriedNote, end_note, note_attempt, read_note
from fuploader_dagster.disk.layout import Layout, PartitionKey
from fuploader_dagster.disk.own_files import file_mode
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.sealing import SEAL_NAME

ANSWERS_NOTED_EVERY_SECONDS = 1.0


class ProcessorTrouble(TriedNote, frozen=True, kw_only=True):
    """A processor that works for no item."""

    what = "nothing can be processed since"


def find_processor_trouble(layout: Layout) -> ProcessorTrouble | None:
    """The trouble that is known, or None."""
    return read_note(layout.processor_trouble, ProcessorTrouble)


def note_processor_trouble(layout: Layout, error: str) -> None:
    """Note that a run could not process anything; trouble that was noted before goes on."""
    note_attempt(layout.processor_trouble, ProcessorTrouble, error)


def processor_trouble_of(pipeline: Pipeline) -> ProcessorTrouble | None:
    """The trouble that holds slots of this pipeline back, or None."""
    return None if pipeline.process is None else find_processor_trouble(pipeline.layout)


def held_back(partitions: Sequence[str], pipeline: Pipeline, now: float) -> tuple[list[str], str]:
    """Which of these partitions a run may be asked for now, and what the others wait for.

    While the processor works for no item: those that need it no more, and, when another attempt is
    due, as many others as one run takes.
    """
    trouble = processor_trouble_of(pipeline)
    if trouble is None or pipeline.process is None:
        return list(partitions), ""
    ready: list[str] = []
    others: list[str] = []
    for key in partitions:
        (ready if _is_processed(key, pipeline.layout) else others).append(key)
    is_tried = is_due(trouble.attempts, trouble.seen_at, pipeline, now)
    tried = others[: pipeline.process.partitions_per_run] if is_tried else []
    return sorted([*ready, *tried]), str(trouble)


def is_ready_for_rows(partition: str, pipeline: Pipeline) -> bool:
    """Whether a slot on this disk is processed, if it has to be."""
    return pipeline.process is None or _is_processed(partition, pipeline.layout)


def _is_processed(partition: str, layout: Layout) -> bool:
    key = PartitionKey.parse(partition)
    return key is not None and (layout.processed(key.slot, key.number) / SEAL_NAME).exists()


def end_processor_trouble(layout: Layout) -> None:
    """The processor works. May be repeated."""
    end_note(layout.processor_trouble, find_processor_trouble(layout), "process", layout)


class Answers:
    """Notes that the processor works, and knows whether it did."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._noted_at = 0.0
        self._last = 0.0

    def note(self) -> None:
        """It worked for an item just now."""
        self._last = time.monotonic()
        if self._last - self._noted_at < ANSWERS_NOTED_EVERY_SECONDS:
            return
        self.note_end()
        self._noted_at = self._last
        path = self._layout.processor_answered
        path.touch(file_mode(path.parent))

    def note_end(self) -> None:
        """It works for what it did not work for: if there was trouble, it is over."""
        if self._layout.processor_trouble.exists():
            end_processor_trouble(self._layout)

    def since(self, monotonic: float) -> bool:
        """Whether it worked for an item of this step after that moment."""
        return self._last > monotonic

    def between_runs(self, failed_at: float) -> bool:
        """Whether it worked for any item of the pipeline after a run that failed at that time."""
        path = self._layout.processor_answered
        return path.exists() and path.stat().st_mtime > failed_at
