"""Rows in all sinks of a pipeline, for whoever ships without Dagster.

What must always hold: trouble with one sink stops neither the uploads nor the other sinks. Rows are
stored before a slot is uploaded, so that no archive has to be fetched back; what could not be
stored then is owed, and tried again afterwards, when it is due.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from fuploader_dagster.delivery.attempts import Failed
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.owed_rows import OwedRows, due, look_at, stored_here
from fuploader_dagster.delivery.rows import store_partitions
from fuploader_dagster.delivery.sink_notes import SinkNotes, all_sinks, kept_for_sinks
from fuploader_dagster.settings.pipeline import Pipeline

log = logging.getLogger(__name__)


class AllRows:
    """Stores rows, and counts them. `patient`: what failed waits until its next attempt is due."""

    def __init__(self, pipeline: Pipeline, *, patient: bool) -> None:
        self._pipeline = pipeline
        self._patient = patient
        self._open = ArchiveFinder({pipeline.name: pipeline}).open
        self.stored = 0
        """Rows that sinks confirmed."""
        self.failures: list[str] = []
        """A sentence for each partition and sink that did not get through."""

    def of(self, partitions: Sequence[str]) -> None:
        """Store the rows of slots on this disk, which are processed if they have to be."""
        for notes in all_sinks(self._pipeline):
            found = look_at(notes, ())
            there = OwedRows(partitions, failures=found.failures, trouble=found.trouble)
            self._store(notes, there)

    def of_owed(self) -> None:
        """Store what is owed for slots that are stored, here or not."""
        kept = kept_for_sinks(self._pipeline, stored_here(self._pipeline))
        for notes in all_sinks(self._pipeline):
            required = self._pipeline.sinks[notes.sink].required
            found = look_at(notes, kept if required else ())
            for partition in found.settled:
                notes.settle(partition)
            self._store(notes, found)

    def _store(self, notes: SinkNotes, found: OwedRows) -> None:
        partitions = found.owed
        if self._patient:
            partitions = due(found, self._pipeline, busy=(), now=time.time())
        if not partitions:
            return
        stored = notes.receipts.find(partitions)
        for outcome in store_partitions(partitions, self._pipeline, notes.sink, self._open):
            if isinstance(outcome, Failed):
                said = f"rows of {outcome.partition} in sink {notes.sink}: {outcome.error}"
                log.log(logging.ERROR if outcome.attempted else logging.DEBUG, "%s", said)
                self.failures.append(said)
            elif outcome.rows is not None and outcome.partition not in stored:
                self.stored += outcome.rows.rows
