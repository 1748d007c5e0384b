"""Dead letters of a sink are stored again, in just that sink.

What must always hold: each letter is a delivery of its own, whose id is made of the letter's. So it
is stored once, whatever dies, and whichever letters are chosen together. A letter that still has no
rows stays where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

from fuploader_dagster.contracts.processor import Item
from fuploader_dagster.contracts.sink import Delivery, ItemRows, RejectedItem, Sink
from fuploader_dagster.dead_letters.letters import DeadLetter, FailedItem, note_requeued, sink_of
from fuploader_dagster.delivery.item_rows import RowsOf, rows_of
from fuploader_dagster.delivery.unforeseen import told_without_text
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.errors import BadItem, ConfigError
from fuploader_dagster.settings.pipeline import Pipeline

LETTER_MARK = "letter:"
NOTED_AT_ONCE = 100


@dataclass
class StoredLetters:
    """What became of the letters."""

    letters: int = 0
    """Stored; they count as sent back."""
    rows: int = 0
    refused: list[tuple[str, BadItem]] = field(default_factory=list)
    """Ids of those that still have no rows. They stay here."""


def store_letters(
    batches: Iterable[Sequence[tuple[str, DeadLetter]]], pipeline: Pipeline
) -> StoredLetters:
    """Store the items of these letters, each in the sink that has no rows of it. Before the next
    batch is asked for, those of the last one that were stored count as sent back (`sending_back`).

    Raises `ConfigError` if there is no such sink, and what storing raises; those that were stored
    by then count as sent back.
    """
    done = StoredLetters()
    with ExitStack() as opened:
        sinks: dict[str, _Storing] = {}
        for letters in batches:
            for name in sorted({sink_of(letter) for _, letter in letters}):
                if name not in sinks:
                    sink = opened.enter_context(closing(_open(name, pipeline)))
                    sinks[name] = _Storing(pipeline, name, sink, done)
                chosen = [pair for pair in letters if sink_of(pair[1]) == name]
                for start in range(0, len(chosen), NOTED_AT_ONCE):
                    sinks[name].store(chosen[start : start + NOTED_AT_ONCE])
    return done


def _open(name: str, pipeline: Pipeline) -> Sink:
    if name not in pipeline.sinks:
        raise ConfigError(
            f"pipeline {pipeline.name} has no sink {name!r} (setting `sinks`), which the letters "
            f"are of",
            hint="leave --stage away to send them back to the queue as messages",
        )
    return pipeline.sinks[name].sink()


class _Storing:
    """Stores letters in one sink."""

    def __init__(self, pipeline: Pipeline, name: str, sink: Sink, done: StoredLetters) -> None:
        self._pipeline = pipeline
        self._name = name
        self._sink = sink
        self._rows = rows_of(pipeline.sinks[name])
        self._done = done

    def store(self, letters: Sequence[tuple[str, DeadLetter]]) -> None:
        """Store these, and note together that they were."""
        stored: list[str] = []
        try:
            for letter_id, letter in letters:
                assert letter.item is not None  # noqa: S101 - or it would be of no sink
                try:
                    self._done.rows += self._store_one(letter_id, letter.item, letter.body)
                except BadItem as error:
                    self._done.refused.append((letter_id, error))
                else:
                    stored.append(letter_id)
        finally:
            if stored:
                note_requeued(self._pipeline.layout, stored)
                self._done.letters += len(stored)

    def _store_one(self, letter_id: str, item: FailedItem, content: bytes) -> int:
        partition = f"{LETTER_MARK}{letter_id}"
        delivery = Delivery(pipeline=self._pipeline.name, sink=self._name, partition=partition)
        with told_without_text(self._name):
            answer = self._sink.store(delivery, _made(item, content, self._rows), _refuse)
        reached(CrashPoint.LETTER_STORED)
        return answer.rows


def _made(item: FailedItem, content: bytes, rows: RowsOf) -> Iterator[ItemRows]:
    key = f"{item.partition}-{item.position}"
    yield ItemRows(item.position, rows(Item(item.name, content, item.headers, key)))


def _refuse(rejected: Sequence[RejectedItem]) -> None:
    for one in rejected:
        raise BadItem(one.reason)
