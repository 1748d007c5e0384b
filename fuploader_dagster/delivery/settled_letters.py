"""Dead letters that are settled: what they are about was stored by another attempt.

What must always hold: a letter is settled exactly while something else gives its item's results or
rows, or has a letter of its own about it. Whoever sends a settled letter back gives the item twice.

Nothing is noted about it. The receipts say which delivery or processing a partition has now, and a
letter of any other is settled: one from before a redo, or one of a redo that has not ended. If that
redo ends after all, its letters wait again. So is a letter of a slot that was damaged before it was
stored, if the slot's replacement has the item.

Whoever sends letters asks while nobody works on their partitions (`sending_back`).
"""

from __future__ import annotations

from collections.abc import Iterable

from fuploader_dagster.contracts.sink import Delivery
from fuploader_dagster.dead_letters.letters import DeadLetter, FailedItem, sink_of
from fuploader_dagster.delivery.mended import LISTED_NAMES, Mended, find_mended
from fuploader_dagster.delivery.sink_notes import SinkNotes
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.processed import processing_here
from fuploader_dagster.slots.receipts import Receipt, RowsReceipt, find_receipts


def settled(letters: Iterable[tuple[str, DeadLetter]], pipeline: Pipeline) -> dict[str, str]:
    """Ids of those of these letters that are settled, each with a sentence that says why."""
    by_stage: dict[str, list[tuple[str, FailedItem]]] = {}
    for letter_id, letter in letters:
        if letter.item is not None:
            by_stage.setdefault(sink_of(letter), []).append((letter_id, letter.item))
    said: dict[str, str] = {}
    for sink, items in by_stage.items():
        partitions = {item.partition for _, item in items}
        if sink:
            rows = SinkNotes(pipeline.layout, sink).receipts.find(partitions)
            for letter_id, item in items:
                said[letter_id] = _has_rows(item, rows.get(item.partition), pipeline.name, sink)
        else:
            archives = find_receipts(pipeline.layout, partitions)
            for letter_id, item in items:
                archive = archives.get(item.partition)
                said[letter_id] = _has_results(item, archive, pipeline.layout)
    return {letter_id: sentence for letter_id, sentence in said.items() if sentence}


def _has_rows(item: FailedItem, receipt: RowsReceipt | None, pipeline: str, sink: str) -> str:
    if receipt is None:
        return ""
    stored = Delivery(pipeline, sink, item.partition, receipt.redo)
    if item.processing == stored.id:
        return ""
    redo = item.processing.removeprefix(f"{item.partition}#")
    if redo.isdecimal() and int(redo) > receipt.redo:
        return (
            f"redo {redo} of sink {sink} has not stored {item.partition} yet: until it does, the "
            f"item has what was stored before"
        )
    return f"{item.partition} was stored again since, by redo {receipt.redo} of sink {sink}"


def _has_results(item: FailedItem, receipt: Receipt | None, layout: Layout) -> str:
    if receipt is None:
        if mended := find_mended(layout, item.partition):
            return _is_in_replacement(item, mended)
        now = processing_here(item.partition, layout)
        return f"{item.partition} is processed again" if now not in ("", item.processing) else ""
    if receipt.processing in ("", item.processing):
        return ""
    return f"another processing of {item.partition} counts, whose results are in {receipt.address}"


def _is_in_replacement(item: FailedItem, mended: Mended) -> str:
    may_be_lost = item.name in mended.lost or len(mended.lost) >= LISTED_NAMES
    if not mended.stored_as or may_be_lost:
        return ""
    return f"{item.partition} was damaged, and its messages are processed as {mended.stored_as}"
