"""Items that could not be processed are sent to processing again, as a sealed slot of their own.

What must always hold: the items are durable in the new slot before their dead letters count as sent
back. After a crash in between they are sent twice; none is ever skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fuploader_dagster.dead_letters.letters import DeadLetter, note_requeued
from fuploader_dagster.disk.header_text import to_text
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.owned_slots import owned_for_a_while
from fuploader_dagster.slots.sealing import SealedSlot
from fuploader_dagster.slots.slot import SlotOwner

REQUEUED_SLOT = 9997
"""No worker has this number."""


def process_again(
    batches: Iterable[Sequence[tuple[str, DeadLetter]]], pipeline: Pipeline
) -> list[SealedSlot]:
    """Seal these letters' items as a slot, or several (`split_by`), to be processed. Before the
    next batch is asked for, those of the last one count as sent back.

    Raises `ConfigError` if the pipeline has no processor, or a letter is not about an item, and
    `SlotInUse` while another process does the same, here or with a copy of the storage root, and
    `StateUnavailable` or `StateRefused` without the state store.
    """
    if pipeline.process is None:
        raise ConfigError(
            f"pipeline {pipeline.name} has no processor (setting `process`)",
            hint="leave --stage away to send messages back to the queue",
        )
    with (
        pipeline.state.opened(pipeline=pipeline.name, node=pipeline.node) as state,
        owned_for_a_while(pipeline, REQUEUED_SLOT, state, keeps_headers=True) as slot,
    ):
        for letters in batches:
            _add(letters, slot, pipeline)
        return slot.seal_divided("requeued")


def _add(letters: Sequence[tuple[str, DeadLetter]], slot: SlotOwner, pipeline: Pipeline) -> None:
    """Take their items into the slot, durably; then they count as sent back."""
    for letter_id, letter in letters:
        if letter.item is None:
            raise ConfigError(
                f"dead letter {letter_id} never became a file, so it cannot be processed",
                hint="leave --stage away to send it back to the queue",
            )
        slot.add(letter.item.name, letter.body, to_text(letter.item.headers))
    slot.commit()
    note_requeued(pipeline.layout, [letter_id for letter_id, _ in letters])
