"""A slot whose items are processed.

What must always hold (`process` has the rest):

- Results are taken and committed in the order of the inputs, whatever order they are ready in.
- Each item that was begun ends with its results or with a reason, or with both, or the slot ends
  with an error that blames no item.
- An item that was sent back from its dead letter is not processed here (`sent_items`).
- Where results can be files, committing them holds up no other item: a thread does it.
- Memory does not grow with the slot. Between the first item in work and the last one that was begun
  are at most `WINDOW` times `concurrency` items. All that is not committed, of all slots of the
  step together, has about `MOST_BYTES` before another item is begun: contents, and results also
  while they wait for those of an item before them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from fuploader_dagster import errors
from fuploader_dagster.contracts.functions import raised
from fuploader_dagster.contracts.processor import Item, StoredResult
from fuploader_dagster.delivery.answers import checked
from fuploader_dagster.delivery.failures import find_failure
from fuploader_dagster.delivery.item_commit import NOTHING, Finished, ItemCommits
from fuploader_dagster.delivery.process_step import Step, cancel
from fuploader_dagster.disk.header_text import from_text
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.trouble import FULL, disk_trouble
from fuploader_dagster.slots.formats import contents
from fuploader_dagster.slots.index import IndexEntry
from fuploader_dagster.slots.processed import ProcessedSlot
from fuploader_dagster.slots.processed_writer import ProcessedWriter
from fuploader_dagster.slots.sealing import SealedSlot

log = logging.getLogger(__name__)

WINDOW = 4
MOST_BYTES = 24 * 2**20
COMMIT_BYTES = 8 * 2**20
COMMIT_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0

OF_THE_DISK = (*FULL, errno.EFBIG, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE)
"""What a processor raises because of the disk that its folders are on, not because of an item."""

NOTHING_IS_LOST = "nothing became a dead letter; the slots are asked for again"


class SlotInWork:
    """One slot whose items are processed."""

    def __init__(
        self,
        step: Step,
        slot: SealedSlot,
        layout: Layout,
        before: Mapping[str, StoredResult] | None = None,
    ) -> None:
        """`before`: results of the slot that are stored, if it is processed again."""
        self._step = step
        self._before = before if step.processor.uses_folder else None
        self._slot = slot
        self._writer = ProcessedWriter(
            slot,
            layout,
            step.settings.describe(),
            step.version,
            uses_folders=step.processor.uses_folder,
        )
        self._waiting: deque[asyncio.Task[list[Finished]]] = deque()
        """Of each batch that was begun and not taken yet, in the order of the inputs."""
        self._unused_places = 0
        """Of the step's places, those that were taken for items which have not begun to run."""
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self._commits = ItemCommits(step.pipeline, slot, layout, self._writer)
        self._elsewhere: frozenset[str] = frozenset()
        """Names of items that were sent back."""
        failure = find_failure(step.pipeline.layout, slot.seal.partition)
        self._failed_before = failure.failed_at if failure is not None else math.inf
        self._in_hand = 0
        """Begun and not taken."""
        self._bytes_in_hand = 0
        """Of the step's, how many are of this slot."""
        self._taken: list[Finished] = []
        """Results that are not committed."""
        self._taken_bytes = 0
        self._committed_at = time.monotonic()

    async def processed(self) -> ProcessedSlot:
        with self._writer as writer:
            if writer.resumed:
                log.info(
                    "%s: %d of %d items were done before",
                    self._slot.partition,
                    writer.figures.inputs,
                    self._slot.seal.messages,
                )
                self._commits.resume()
            try:
                await self._work()
            finally:
                await cancel(self._waiting)
                self._hold(-self._bytes_in_hand)
                for _ in range(self._unused_places):  # of items that were cancelled before they ran
                    self._step.places.release()
            processed = writer.seal()
            if math.isfinite(self._failed_before):  # perhaps nobody had to be asked this time
                self._step.answers.note_end()
            return processed

    async def _work(self) -> None:
        async with self._step.turn:
            await self._step.open()
            self._commits.tell()
            self._elsewhere = self._step.sent_items.names(self._slot.seal.partition)
            if self._elsewhere:
                log.info(
                    "%s: items whose dead letters were sent back are left out: %d",
                    self._slot.partition,
                    len(self._elsewhere),
                )
            for position, items in self._batches():
                while not self._has_room():
                    await self._change()
                if self._step.unavailable is not None:
                    raise self._step.unavailable
                if items[0].name in self._elsewhere:
                    self._begin(items, partial(self._left_out, items[0], position))
                else:
                    await self._step.places.acquire()
                    self._unused_places += 1
                    self._begin(items, partial(self._in_its_place, items))
                await self._take()
        while self._waiting:
            await self._change()
        await self._commit()

    def _batches(self) -> Iterator[tuple[int, list[Item]]]:
        """What is not done yet, read from the slot as it is needed, with the position of the first.

        An item that was sent back is alone.
        """
        first = position = self._writer.figures.inputs
        processing = self._writer.processing.id
        batch: list[Item] = []
        folders = self._writer.folders
        for entry, content in self._not_done(position):
            headers = from_text(entry.headers)
            key = f"{processing}-{position}"
            left_out = entry.name in self._elsewhere
            if batch and left_out:
                yield first, batch
                batch, first = [], position
            folder = folders.make(position) if folders is not None and not left_out else None
            batch.append(Item(entry.name, content, headers, key, folder, self._before))
            position += 1
            if left_out or len(batch) == self._step.settings.batch:
                yield first, batch
                batch, first = [], position
        if batch:
            yield first, batch

    def _not_done(self, done: int) -> Iterator[tuple[IndexEntry, bytes]]:
        """The messages behind the first ones, and their contents."""
        for committed in self._slot.entries_by_commit():
            entries = committed[done:]
            done = max(0, done - len(committed))
            yield from zip(entries, contents(self._slot, entries), strict=True)

    def _has_room(self) -> bool:
        settings = self._step.settings
        if not self._in_hand:
            return True
        most = WINDOW * settings.concurrency * settings.batch
        return self._in_hand < most and self._step.bytes_in_hand < MOST_BYTES

    def _hold(self, size_bytes: int) -> None:
        self._bytes_in_hand += size_bytes
        self._step.bytes_in_hand += size_bytes

    def _begin(self, items: list[Item], work: Callable[[], Awaitable[list[Finished]]]) -> None:
        self._in_hand += len(items)
        self._hold(sum(len(item.content) for item in items))
        task = asyncio.create_task(self._held(work))
        task.add_done_callback(self._ended)
        self._waiting.append(task)

    async def _held(self, work: Callable[[], Awaitable[list[Finished]]]) -> list[Finished]:
        finished = await work()
        self._hold(sum(one.answer.size_bytes for one in finished))
        return finished

    def _ended(self, task: asyncio.Task[list[Finished]]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = self._error or error
        self._changed.set()

    async def _change(self) -> None:
        """Wait until something has ended, and take what is next in order."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), COMMIT_SECONDS)
        self._changed.clear()
        await self._take()

    async def _take(self) -> None:
        """Take what has ended, in the order of the inputs, and commit it when that is due.

        Raises what ended an item for which nothing can be done, after what came before it is
        committed.
        """
        while self._waiting and self._waiting[0].done() and self._waiting[0].exception() is None:
            for finished in self._waiting.popleft().result():
                self._taken.append(finished)
                self._in_hand -= 1
                self._taken_bytes += finished.answer.size_bytes + len(finished.item.content)
        if self._error is not None:
            await self._commit()
            raise self._error
        if (
            len(self._taken) >= self._step.pipeline.commit_messages
            or self._taken_bytes >= COMMIT_BYTES
            or time.monotonic() - self._committed_at >= COMMIT_SECONDS
        ):
            await self._commit()

    async def _commit(self) -> None:
        """Make what was taken durable, and forget it."""
        if self._taken:
            if self._writer.folders is None:
                self._commits.store(self._taken)
            else:
                await _in_thread(partial(self._commits.store, self._taken))
            self._hold(-self._taken_bytes)
            self._taken, self._taken_bytes = [], 0
            figures = self._writer.figures
            self._step.progress(
                self._slot.seal.partition, figures.inputs, self._slot.seal.messages, figures.failed
            )
        self._committed_at = time.monotonic()

    async def _left_out(self, item: Item, position: int) -> list[Finished]:
        return [self._commits.sent_back(item, position)]

    async def _in_its_place(self, items: Sequence[Item]) -> list[Finished]:
        self._unused_places -= 1  # from here on the attempt gives it back
        return await self._finish(items)

    async def _finish(self, items: Sequence[Item], *, has_place: bool = True) -> list[Finished]:
        """Process a batch until each item has its results or a reason.

        Raises `ProcessorUnavailable` if the processor works for no item, and what it raises if it
        cannot go on.
        """
        began = time.monotonic()
        retries, alone = 0, False
        while True:
            if not has_place:
                await self._step.places.acquire()
            has_place = False
            started = time.monotonic()
            try:
                answers = await self._step.attempt(items, alone=alone)
            except errors.RetryItem as error:
                if retries < self._step.settings.max_retries:
                    alone = error.shared and retries + 1 == self._step.settings.max_retries
                    await asyncio.sleep(self._pause(error, retries))
                    retries += 1
                    continue
                if not self._works(began):
                    raise errors.ProcessorUnavailable(
                        f"{self._step.settings.describe()} works for no item: {error.message}",
                        hint=error.hint or NOTHING_IS_LOST,
                    ) from error
                reason = f"after {retries + 1} attempts: {error}"
            except errors.BadItem as error:
                self._note([error])
                reason = str(error)
            except errors.FuploaderError:
                raise
            except Exception as error:  # noqa: BLE001  the dead letter says it; the others go on
                _raise_if_of_the_disk(error, items[0])
                reason = f"the processor raised {raised(error)}"
            else:
                self._note(answers)
                seconds = time.monotonic() - started
                if len(answers) == len(items):
                    return [
                        self._checked(item, answer, seconds, retries)
                        for item, answer in zip(items, answers, strict=True)
                    ]
                reason = f"the processor gave {len(answers)} answers for {len(items)} items"
            if len(items) == 1:
                seconds = time.monotonic() - started
                return [Finished(items[0], NOTHING, reason, seconds, retries)]
            return [one for item in items for one in await self._finish([item], has_place=False)]

    def _note(self, answers: Sequence[Any]) -> None:
        """Note that the processor works, if one of these answers shows it."""
        if any(getattr(answer, "answered", True) for answer in answers):
            self._step.answers.note()

    def _pause(self, error: errors.RetryItem, retries: int) -> float:
        if error.retry_after_seconds is not None:
            return min(error.retry_after_seconds, LONGEST_RETRY_SECONDS)
        pause = self._step.settings.retry_delay_seconds * 2.0 ** min(retries, 30)
        return min(pause, LONGEST_RETRY_SECONDS) * random.uniform(0.5, 1.0)  # noqa: S311

    def _works(self, began: float) -> bool:
        """Whether the processor worked for another item since then, or since this slot failed."""
        answers = self._step.answers
        return answers.since(began) or answers.between_runs(self._failed_before)

    def _checked(self, item: Item, answer: Any, seconds: float, retries: int) -> Finished:
        try:
            found = checked(answer, item, self._step.settings.max_result_bytes)
        except errors.BadItem as error:
            return Finished(item, NOTHING, str(error), seconds, retries)
        return Finished(item, found, "", seconds, retries)


def _raise_if_of_the_disk(error: Exception, item: Item) -> None:
    if item.folder is not None and isinstance(error, OSError) and error.errno in OF_THE_DISK:
        raise disk_trouble(error, item.folder) from error


async def _in_thread(work: Callable[[], None]) -> None:
    """Do this in a thread. Cancelled, it still ends first: it uses files that are closed then."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
