"""A commit of items that were processed: dead letters, then outcomes and results, then notices.

What must always hold:

- Letters are durable before the outcomes that count them. A letter that an attempt wrote before it
  was killed stays the only one of its item if the item ends the same way. If it ends otherwise, the
  letter is outdated, after another one is written if there is still something to do.
- An item that was sent back since is not processed. Its letter of this processing, if that was not
  counted yet, is.
- A result that is a file is looked at once more. If it has changed, its item becomes a dead letter.
  The first bytes of a slot's files are read as well, and their digests compared: a processor that
  states wrong ones is found before anything is packed. To read all of them would take as long as
  packing, which compares each.
- What those who asked are told of is durable by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fuploader_dagster import errors
from fuploader_dagster.contracts.processor import Item, Result
from fuploader_dagster.dead_letters import letters
from fuploader_dagster.delivery import notices
from fuploader_dagster.delivery.answers import CheckedAnswer, headers_of
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.outcomes import FAILED
from fuploader_dagster.slots.processed_writer import ProcessedWriter
from fuploader_dagster.slots.sealing import SealedSlot

NOTHING = CheckedAnswer(())
COMPARED_BYTES = 16 * 2**20
"""Of files of a slot whose digests are compared when they are committed."""


@dataclass(slots=True)
class Finished:
    """An item that is not in work any more."""

    item: Item
    answer: CheckedAnswer = NOTHING
    reason: str = ""
    """Why it has no results, and becomes a dead letter."""
    seconds: float = 0.0
    retries: int = 0

    def check_files(self, most_bytes: int) -> int:
        """See that the results that are files are still what they were, and compare the digests of
        at most so many bytes. Returns how many were compared."""
        compared = 0
        try:
            for result in self.answer.results:
                if isinstance(result, Result):
                    continue
                result.check()
                size = result.result.size_bytes
                if compared + size <= most_bytes:
                    result.compare()
                    compared += size
        except errors.BadItem as error:
            self.answer, self.reason = NOTHING, str(error)
        return compared

    @property
    def has_letter(self) -> bool:
        return bool(self.reason or self.answer.failures)

    @property
    def left_to_do(self) -> bytes:
        """What its dead letter holds."""
        return self.item.content if self.answer.rest is None else self.answer.rest

    def has(self, letter: letters.DeadLetter) -> bool:
        """Whether this is the letter that it gets now."""
        return self.has_letter and letter.body == self.left_to_do


class ItemCommits:
    """The commits of one slot. `layout`: where its results go."""

    def __init__(
        self, pipeline: Pipeline, slot: SealedSlot, layout: Layout, writer: ProcessedWriter
    ) -> None:
        self._pipeline = pipeline
        self._slot, self._layout = slot, layout
        self._writer = writer
        self._letters = letters.DeadLetterBox(pipeline.layout, letters.PROCESSING_WRITER)
        self._lettered: dict[int, tuple[str, letters.DeadLetter]] = {}
        """Letters that an earlier attempt wrote, with their ids, by the items' positions."""
        self._compared_bytes = 0

    def resume(self) -> None:
        """Find the letters of an earlier attempt."""
        self._lettered = letters.letters_of_processing(
            self._pipeline.layout, self._writer.processing.id
        )

    def sent_back(self, item: Item, position: int) -> Finished:
        """What becomes of an item that is processed elsewhere."""
        before = self._lettered.get(position)
        return Finished(item, reason=before[1].reason if before is not None else "")

    def store(self, taken: Sequence[Finished]) -> None:
        """Make these items durable. They are the next ones, in the order of the inputs."""
        counts: list[int] = []
        lettered: list[int] = []
        written: list[letters.DeadLetter] = []
        outdated: list[str] = []
        for position, finished in enumerate(taken, start=self._writer.figures.inputs):
            self._compared_bytes += finished.check_files(COMPARED_BYTES - self._compared_bytes)
            before = self._lettered.get(position)
            stays = before is not None and finished.has(before[1])
            if before is not None and not stays:
                outdated.append(before[0])
            if finished.has_letter and not stays:
                written.append(self._letter(finished, position))
            if not finished.reason and (finished.has_letter or before is not None):
                lettered.append(position)
            self._add(finished)
            counts.append(FAILED if finished.reason else len(finished.answer.results))
        self._letters.keep(written)
        if outdated:
            letters.note_outdated(self._pipeline.layout, outdated)
        self._writer.commit(
            counts,
            [int(finished.seconds * 1000) for finished in taken],
            sum(finished.retries for finished in taken),
            lettered=lettered,
            failures=[part for finished in taken for part in finished.answer.failures],
        )
        self.tell()

    def _add(self, finished: Finished) -> None:
        for result in finished.answer.results:
            if isinstance(result, Result):
                name = result.name or finished.item.name
                self._writer.add(name, result.content, headers_of(result))
            else:
                name = result.result.name or finished.item.name
                self._writer.add_file(name, result, headers_of(result.result))

    def tell(self) -> None:
        """Say what is durable to those who are told of tasks."""
        notices.committed(
            self._pipeline,
            self._slot,
            self._layout,
            processing=self._writer.processing.id,
            results=self._writer.figures.results,
        )

    def _letter(self, finished: Finished, position: int) -> letters.DeadLetter:
        item = letters.FailedItem(
            partition=self._slot.seal.partition,
            position=position,
            name=finished.item.name,
            processing=self._writer.processing.id,
            headers=dict(finished.item.headers),
            failures=len(finished.answer.failures),
        )
        reason = finished.reason or finished.answer.reason()
        return self._letters.item_letter(item, reason, finished.left_to_do)
