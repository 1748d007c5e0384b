"""What is known on this node about a partition: its archive, its sinks, its failures.

What must always hold: all of it is read from notes and receipts, which other processes may be
writing; nothing is locked or changed.
"""

from __future__ import annotations

from functools import cached_property

from fuploader_dagster.delivery.failures import find_failure
from fuploader_dagster.delivery.pack import Packed, find_packed
from fuploader_dagster.delivery.sink_notes import SinkNotes, all_sinks
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.errors import DamagedResults, ForeignFile, OtherFormat
from fuploader_dagster.lookup.found import AtSink, State, Trouble
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.outcomes import lines_and_ends
from fuploader_dagster.slots.processed import (
    OUTCOMES_NAME,
    PROCESSING_NAME,
    Processing,
    find_processed,
    is_of,
    read_noted,
)
from fuploader_dagster.slots.receipts import Receipt, find_receipt
from fuploader_dagster.slots.sealing import SealedSlot, find_sealed


class KnownPartition:
    """Looks each thing up once, when it is first asked for."""

    def __init__(self, pipeline: Pipeline, partition: str) -> None:
        self.pipeline = pipeline
        self.partition = partition
        self._outcomes: dict[int, int] | None = None
        """Number of results by the positions of the items; of a slot on this disk."""

    @property
    def node(self) -> str:
        key = PartitionKey.parse(self.partition)
        return key.node if key is not None else self.pipeline.node

    @property
    def sealed_at(self) -> str | None:
        key = PartitionKey.parse(self.partition)
        return key.sealed_at.isoformat(timespec="milliseconds") if key is not None else None

    @property
    def is_ours(self) -> bool:
        """Whether this node made it, and so has the notes about it."""
        return self.node == self.pipeline.node

    @cached_property
    def receipt(self) -> Receipt | None:
        return find_receipt(self.pipeline.layout, self.partition)

    @cached_property
    def packed(self) -> Packed | None:
        return find_packed(self.pipeline.layout, self.partition)

    @property
    def is_redone(self) -> bool:
        """Whether its stored messages are being processed again."""
        return (self.pipeline.layout.redo / self.partition).is_dir()

    def state(self, sealed: SealedSlot) -> State:
        """How far a sealed slot on this disk is."""
        if self.receipt is not None:
            return "stored"
        if self.packed is not None:
            return "packed"
        try:
            done = find_processed(sealed, self.pipeline.layout)
        except (DamagedResults, OtherFormat):  # the next run makes them again, or says so
            done = None
        return "sealed" if done is None else "processed"

    def results_of(self, sealed: SealedSlot, position: int) -> int | None:
        """How many results an item of a slot on this disk has, -1 if it became a dead letter; None
        if it was not processed yet."""
        if self._outcomes is None:
            self._outcomes = self._read_outcomes(sealed)
        return self._outcomes.get(position)

    def _read_outcomes(self, sealed: SealedSlot) -> dict[int, int]:
        directory = self.pipeline.layout.processed(sealed.seal.slot, sealed.seal.number)
        try:
            processing = read_noted(directory / PROCESSING_NAME, Processing)
            if processing is None or not is_of(processing, sealed):
                return {}
            content = read_own(directory / OUTCOMES_NAME)
        except (FileNotFoundError, ForeignFile, DamagedResults):
            return {}
        counts = [count for line, _ in lines_and_ends(content) for count in line.results]
        return dict(enumerate(counts))

    @cached_property
    def trouble(self) -> Trouble | None:
        """Why it is not further, if an attempt failed."""
        failure = find_failure(self.pipeline.layout, self.partition)
        if failure is None or self.receipt is not None:
            return None
        return Trouble(stage=failure.stage, attempts=failure.attempts, error=failure.error)

    @cached_property
    def sinks(self) -> dict[str, AtSink]:
        """What each sink has of it; of a partition of another node nothing is known here."""
        if not self.is_ours:
            return {}
        return {notes.sink: self._at(notes) for notes in all_sinks(self.pipeline)}

    def _at(self, notes: SinkNotes) -> AtSink:
        receipt = notes.receipt(self.partition)
        if receipt is not None:
            return AtSink(state="stored", stored_at=receipt.stored_at)
        failure = notes.failures.find(self.partition)
        attempts = failure.attempts if failure is not None else 0
        error = failure.error if failure is not None else ""
        if not error and notes.trouble is not None:
            error = notes.trouble.error
        if notes.is_owed(self.partition):
            return AtSink(state="owed", attempts=attempts, error=error)
        if find_sealed(self.pipeline.layout, self.partition) is not None:
            return AtSink(state="waiting", attempts=attempts, error=error)
        return AtSink(state="not asked")
