"""A pipeline's processor for items that come one by one: for trials and direct requests.

What must always hold: an item gets one attempt, with the limits of the pipeline's settings, and its
answer is checked as one of a slot is; nothing is stored, and nothing becomes a dead letter. The
processor is opened for the first item and kept. It belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from fuploader_dagster import errors
from fuploader_dagster.contracts.functions import raised
from fuploader_dagster.contracts.processor import Item, Processor, ProcessorSettings
from fuploader_dagster.delivery.answers import CheckedAnswer, checked
from fuploader_dagster.settings.pipeline import Pipeline


class DirectProcessor:
    """A processor, in one event loop."""

    def __init__(self, settings: ProcessorSettings) -> None:
        self._settings = settings
        self._places = asyncio.Semaphore(self._settings.concurrency)
        self._waiting = 0
        self._opening = asyncio.Lock()
        self._processor: Processor | None = None

    async def process(self, item: Item) -> CheckedAnswer:
        """What comes out of the item.

        A processor that uses a folder gets the item's; another one none. Raises `BadItem`;
        `RetryItem` for what may pass, also if as many items wait for a place as there are places;
        and what the processor cannot go on with.
        """
        if self._waiting >= self._settings.concurrency:
            raise errors.RetryItem(
                f"{self._settings.concurrency} items are in work, and as many wait",
                hint="send fewer at once, or raise `concurrency` of the processor",
                retry_after_seconds=1,
            )
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        try:
            return await self._answer(item)
        finally:
            self._places.release()

    async def _answer(self, item: Item) -> CheckedAnswer:
        processor = await self._opened()
        if not processor.uses_folder:
            item = replace(item, folder=None)
        try:
            (answer,) = await processor.process([item])
        except errors.FuploaderError:
            raise
        except Exception as error:
            raise errors.BadItem(f"the processor raised {raised(error)}") from error
        return checked(answer, item, self._settings.max_result_bytes)

    async def _opened(self) -> Processor:
        async with self._opening:
            if self._processor is None:
                processor = self._settings.processor()
                try:
                    await processor.open()
                except BaseException:
                    await processor.close()
                    raise
                self._processor = processor
            return self._processor

    async def aclose(self) -> None:
        """Let go of the processor. May be repeated."""
        if self._processor is not None:
            await self._processor.close()
            self._processor = None


async def process_item(pipeline: Pipeline, item: Item) -> CheckedAnswer:
    """What comes out of one item. Raises `ConfigError` if the pipeline has no processor; otherwise
    as `DirectProcessor.process`."""
    if pipeline.process is None:
        raise errors.ConfigError(f"pipeline {pipeline.name} has no processor (setting `process`)")
    direct = DirectProcessor(pipeline.process)
    try:
        return await direct.process(item)
    finally:
        await direct.aclose()
