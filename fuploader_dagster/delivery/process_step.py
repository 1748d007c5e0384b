"""What all slots of a processing step share: the processor, its places, and whether it works.

What must always hold: the processor is made, its version is computed and it is opened only once a
slot needs it. Most steps that pack or upload find everything processed.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Any

from fuploader_dagster.contracts.processor import Item, Processor
from fuploader_dagster.delivery.processor_trouble import Answers, note_processor_trouble
from fuploader_dagster.delivery.sent_items import SentItems
from fuploader_dagster.errors import ConfigError, ProcessorUnavailable
from fuploader_dagster.settings.pipeline import Pipeline

RARE_COLLECTIONS = (50_000, 20, 100)
"""Items in work are many objects without cycles, which Python would look through all the time."""

ItemsDone = Callable[[str, int, int, int], object]
"""Gets a partition, how many of its items are done, how many there are, and how many failed."""


async def cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


class Step:
    """One processor, and what all slots of a step share."""

    def __init__(self, pipeline: Pipeline, progress: ItemsDone | None) -> None:
        if pipeline.process is None:
            raise ConfigError(f"pipeline {pipeline.name} has no processor (setting `process`)")
        self.pipeline = pipeline
        self.settings = pipeline.process
        self.progress = progress or (lambda *_: None)
        self.answers = Answers(pipeline.layout)
        self.sent_items = SentItems(pipeline.layout)
        self.places = asyncio.Semaphore(self.settings.concurrency)
        self.turn = asyncio.Lock()
        """Held by the one slot that hands out items."""
        self.bytes_in_hand = 0
        """Contents and results that are not committed, of all slots."""
        self.unavailable: ProcessorUnavailable | None = None
        self._waits_for_all = asyncio.Lock()
        self._collections: tuple[int, int, int] | None = None
        """Python's thresholds from before the processor was opened."""

    @cached_property
    def processor(self) -> Processor:
        return self.settings.processor()

    @cached_property
    def version(self) -> str:
        return self.settings.version()

    async def open(self) -> None:
        """Open the processor, when it is first needed. The caller has the turn."""
        if self._collections is None:
            await self.processor.open()
            self._collections = gc.get_threshold()
            gc.set_threshold(*RARE_COLLECTIONS)

    async def aclose(self) -> None:
        if self._collections is not None:
            gc.set_threshold(*self._collections)
        if "processor" in vars(self):  # it was needed
            await self.processor.close()

    def note_unavailable(self, error: ProcessorUnavailable) -> None:
        if self.unavailable is None:
            self.unavailable = error
            note_processor_trouble(self.pipeline.layout, str(error))

    async def attempt(self, items: Sequence[Item], *, alone: bool) -> Sequence[Any]:
        """One call of the processor. The caller has one place, which is free afterwards.

        `alone`: nothing else is in work meanwhile.
        """
        held = 1
        try:
            if alone:
                self.places.release()  # or two that wait for all places wait for each other
                held = 0
                async with self._waits_for_all:
                    while held < self.settings.concurrency:
                        await self.places.acquire()
                        held += 1
                    return await self.processor.process(items)
            return await self.processor.process(items)
        finally:
            for _ in range(held):
                self.places.release()
