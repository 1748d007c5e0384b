"""Single items are processed at once, by one processor that stays open, with the limits."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fuploader_dagster.contracts.processor import Item, ProcessorSettings, Result
from fuploader_dagster.delivery.direct import DirectProcessor, process_item
from fuploader_dagster.errors import BadItem, ConfigError, RetryItem
from tests.processors_for_tests import Script, ScriptWithFolders, most_at_once, script
from tests.settings import pipeline


def with_one(
    settings: ProcessorSettings, use: Callable[[DirectProcessor], Awaitable[None]]
) -> None:
    async def run() -> None:
        direct = DirectProcessor(settings)
        try:
            await use(direct)
        finally:
            await direct.aclose()
            await direct.aclose()

    asyncio.run(run())


def item(folder: Path | None = None, **steps: object) -> Item:
    return Item(f"{uuid.uuid4().hex}.json", script(**steps), folder=folder)


def test_answers_are_results_and_what_is_wrong_is_raised() -> None:
    async def use(direct: DirectProcessor) -> None:
        one = item(name="x", kind="text/plain")
        (result,) = (await direct.process(one)).results
        assert result == Result(f"{one.name}-0".encode(), "x", "text/plain")
        assert (await direct.process(item(results=0))).results == []
        for wrong in (item(bad="no"), item(poison="no"), item(**{"raise": "no"})):
            with pytest.raises(BadItem, match="no"):
                await direct.process(wrong)
        with pytest.raises(BadItem, match="max_result_bytes"):
            await direct.process(item(times=1000))
        with pytest.raises(RetryItem):
            await direct.process(item(retries=1))
        assert len((await direct.process(item(results=3))).results) == 3

    with_one(Script(max_result_bytes=1000), use)


def test_a_processor_with_folders_gets_that_of_the_item(tmp_path: Path) -> None:
    async def use(direct: DirectProcessor) -> None:
        answer = await direct.process(item(tmp_path, files=["a", "b"], missing=["c"]))
        assert [
            one.result.path.parent for one in answer.results if not isinstance(one, Result)
        ] == [
            tmp_path,
            tmp_path,
        ]
        assert [one.name for one in answer.failures] == ["c"]

    with_one(ScriptWithFolders(), use)


def test_more_at_once_than_the_setting_wait_and_more_than_twice_as_many_are_refused() -> None:
    async def use(direct: DirectProcessor) -> None:
        most_at_once[:] = [0, 0]
        slow = [asyncio.create_task(direct.process(item(seconds=0.2))) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(RetryItem, match="2 items are in work, and as many wait") as refused:
            await direct.process(item())
        assert refused.value.retry_after_seconds == 1
        assert all([(await one).results for one in slow])
        assert most_at_once[1] == 2
        assert (await direct.process(item())).results

    with_one(Script(concurrency=2), use)


def test_without_a_processor_there_is_nothing_to_do_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no processor"):
        asyncio.run(process_item(pipeline(tmp_path), item()))
