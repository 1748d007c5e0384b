"""Redeliveries: a message that the queue delivers again is stored once, or is one dead letter.

What must always hold: a message that somebody else may have committed already is looked for before
it is committed, by its position in the queue if it has one (`stored_positions`), then among what is
stored (`dedup_window`) and among the dead letters (`dead_letter_dedup`), during a turn in which
nobody else can commit it (`commit_turns`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from fuploader_dagster.contracts.source import Message, MessageSource
from fuploader_dagster.dead_letters.letters import DeadLetter
from fuploader_dagster.intake.dead_letter_dedup import without_written
from fuploader_dagster.processing.decoder import File
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.slots.commit_turns import CommitTurns, Look
from fuploader_dagster.slots.dedup_window import DedupWindow
from fuploader_dagster.slots.stored_positions import StoredPositions


class Redeliveries:
    def __init__(self, pipeline: Intake, worker: int, source: MessageSource) -> None:
        layout = pipeline.layout
        self._pipeline = pipeline
        self._source = source
        self._positions = StoredPositions(layout)
        self._window = DedupWindow(layout, pipeline.dedup_window_messages)
        self._turns = CommitTurns(layout, worker, prefetch=pipeline.prefetch_count)

    def opened(self) -> AbstractContextManager[object]:
        """Around each session with the queue."""
        return self._turns

    @contextmanager
    def turn(self, batch: Sequence[Message]) -> Iterator[Look]:
        """Around a commit: which of the messages have to be looked for, with a window to do it."""
        if not self._pipeline.dedup_window_messages:
            yield "none"
            return
        redelivered = any(message.redelivered for message in batch)
        if redelivered:  # the first time takes seconds: do that before the others have to wait
            self._window.refresh()
        with self._turns.turn(len(batch), redelivered=redelivered) as look:
            if look != "none":
                self._window.refresh()
                self._positions.refresh()
            yield look

    def is_behind(self, message: Message, look: Look) -> bool:
        """Whether a message that may be done already is one, stored or a dead letter, by its
        position."""
        if look == "none" or not (message.redelivered or look == "all"):
            return False
        position = self._source.position_of(message)
        return position is not None and self._positions.hold(position)

    def is_stored(self, message: Message, file: File, look: Look) -> bool:
        """Whether a message that may be stored already is."""
        if look == "none" or not (message.redelivered or look == "all"):
            return False
        headers = file.headers if self._pipeline.headers else None
        return self._window.holds(file.name, hashlib.sha256(file.content).digest(), headers)

    def without_written(self, letters: Sequence[DeadLetter], look: Look) -> Sequence[DeadLetter]:
        """The letters that are still to be written."""
        if look == "none":
            return letters
        pipeline = self._pipeline
        return without_written(
            letters, pipeline.layout, pipeline.prefetch_count, check_all=look == "all"
        )
