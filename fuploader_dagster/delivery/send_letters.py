"""What commands and jobs do with dead letters: send them back, to the queue or to the stage that
failed, write their bodies into files, discard them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from fuploader_dagster.archives.restore_folder import Refused, RestoreFolder
from fuploader_dagster.contracts.source import MessagePublisher
from fuploader_dagster.dead_letters.letters import (
    as_message,
    note_discarded,
    numbered_dead_letters,
    requeue,
    requeued_ids,
    sink_of,
)
from fuploader_dagster.delivery.reprocess import process_again
from fuploader_dagster.delivery.sending_back import Numbered, SendingBack
from fuploader_dagster.delivery.stored_letters import store_letters
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.locks import FileLock, waited_for
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.sealing import SealedSlot


@dataclass
class Sent:
    """What became of the letters."""

    messages: int = 0
    """Confirmed by the queue."""
    slots: list[SealedSlot] = field(default_factory=list)
    """Whose files will be processed again; they have to be handed to the drain sensor."""
    rows: int = 0
    """Stored in sinks."""
    files: int = 0
    """Whose rows were stored."""
    refused: dict[str, str] = field(default_factory=dict)
    """Ids of letters that stay, because the queue or the sink refuses them, or a process works on
    their partition; each with the reason."""
    settled: dict[str, str] = field(default_factory=dict)
    """Ids of letters that need not be sent, each with the reason."""


def waiting_letters(layout: Layout, ids: Sequence[str] = ()) -> list[Numbered]:
    """The letters with these ids; without any, all that nobody has sent back or discarded."""
    if not ids:
        gone = requeued_ids(layout)
        return [pair for pair in numbered_dead_letters(layout) if pair[0] not in gone]
    wanted = set(ids)
    found = [pair for pair in numbered_dead_letters(layout) if pair[0] in wanted]
    if missing := wanted - {letter_id for letter_id, _ in found}:
        raise ConfigError(
            f"there is no dead letter {', '.join(sorted(missing))}",
            hint="`fuploader dead-letters list --all` shows the ids",
        )
    return found


def send_back(pipeline: Pipeline, ids: Sequence[str], *, stage: bool) -> Sent:
    """Send letters to the queue, or with `stage` do again what failed; all that wait if no ids are
    given. Raises `ConfigError` if the pipeline has nothing that a letter could be sent to."""
    layout, done = pipeline.layout, Sent()
    with waited_for(FileLock(layout.letters_lock("requeue"))):  # or two of us send the same
        letters = waiting_letters(layout, ids)
        if not stage:
            _to_the_queue(letters, pipeline, done)
            return done
        if not ids:
            letters = [pair for pair in letters if pair[1].item is not None]
        of_sinks = SendingBack([pair for pair in letters if sink_of(pair[1])], pipeline)
        others = SendingBack([pair for pair in letters if not sink_of(pair[1])], pipeline)
        if others or not of_sinks:
            done.slots = process_again(others.batches(), pipeline)
        if of_sinks:
            stored = store_letters(of_sinks.batches(), pipeline)
            done.rows, done.files = stored.rows, stored.letters
            done.refused |= {letter_id: str(error) for letter_id, error in stored.refused}
        for sending in (others, of_sinks):
            done.settled |= sending.settled
            done.refused |= sending.busy
    return done


def export(letters: Iterable[Numbered], folder: Path) -> tuple[int, list[str]]:
    """Write each raw body into a file of its own in the folder; existing files are not touched.
    Returns how many were written, and a sentence for each that was not."""
    written, refused = 0, []
    with RestoreFolder(folder) as target:
        for letter_id, letter in letters:
            try:
                written += target.write(letter_id.replace(":", "-"), [memoryview(letter.body)])
            except Refused as error:
                refused.append(error.message)
    return written, refused


def discard(layout: Layout, ids: Sequence[str]) -> int:
    """Have these letters wait no more; all that wait if no ids are given. Nothing is removed: they
    stay in their files, and `list --all` shows them. Returns how many."""
    with waited_for(FileLock(layout.letters_lock("requeue"))):
        gone = requeued_ids(layout)
        chosen = [key for key, _ in waiting_letters(layout, ids) if key not in gone]
        if chosen:
            note_discarded(layout, chosen)
    return len(chosen)


def _to_the_queue(letters: Sequence[Numbered], pipeline: Pipeline, done: Sent) -> None:
    sending = SendingBack(letters, pipeline)
    with ExitStack() as opened:
        publisher: MessagePublisher | None = None
        for batch in sending.batches():
            publisher = publisher or opened.enter_context(closing(pipeline.source.publisher()))
            messages = [(key, as_message(one, pipeline.message_format)) for key, one in batch]
            sent = requeue(pipeline.layout, messages, publisher)
            done.messages += sent.sent
            done.refused |= {letter_id: str(error) for letter_id, error in sent.refused}
    done.settled |= sending.settled
    done.refused |= sending.busy
