"""What every processor does. Subclass `ProcessorContract`, and give it its fixture.

    class TestMyProcessor(ProcessorContract):
        @pytest.fixture
        def settings(self):
            return MyProcessor(...)

The fixture `settings` gives a processor whose work on an item depends on the item's content alone:

| content | what comes of it |
|---|---|
| `echo` and anything behind it | one result: the whole content |
| `key` | one result: the item's key |
| `header NAME` | one result: the value of that header |
| `none` | no result |
| `many N` | N results: `0`, `1`, ... |
| `bad` | `BadItem` |
| `retry` | `RetryItem` |
| `slow SECONDS` | one result, `slow`, after that time |

A processor that cannot do one of them (one result an item, say) names it in `cannot`.

One that `uses_folder` is given a folder for each item, and has two more:

| content | what comes of it |
|---|---|
| `file` and anything behind it | one `FileResult`: the whole content |
| `partial` | a `Partial`: one `FileResult`, and failures; its `rest` has only the failures |
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import stat
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest

from fuploader_dagster.contracts.processor import (
    Answer,
    FileResult,
    Item,
    Partial,
    Processor,
    ProcessorSettings,
    Result,
)
from fuploader_dagster.errors import BadItem, RetryItem

Value = TypeVar("Value")
LARGE_BYTES = 8 << 20


class ProcessorContract:
    """The tests, with one fixture to give: `settings`."""

    cannot: ClassVar[Collection[str]] = ()
    """First words of the table that the processor has nothing for."""

    @pytest.fixture
    def settings(self) -> ProcessorSettings:
        """A processor as the table says, that can take items of `LARGE_BYTES`."""
        raise NotImplementedError

    def needs(self, word: str) -> None:
        """Leave a test out, if the processor cannot do that."""
        if word in self.cannot:
            pytest.skip(f"this processor has nothing for {word!r}")

    @pytest.fixture(autouse=True)
    def _give(self, settings: ProcessorSettings, tmp_path: Path) -> None:
        self._settings = settings
        self._uses_folder = settings.processor().uses_folder
        self._folders = (tmp_path / f"item {number}" for number in itertools.count())

    def item(self, content: bytes, number: int = 0, headers: dict[str, str] | None = None) -> Item:
        """An item with that content, a name and a key of its own, and a folder if it needs one."""
        folder = next(self._folders) if self._uses_folder else None
        if folder is not None:
            folder.mkdir()
        return Item(f"item-{number}.bin", content, headers or {}, f"key of item {number}", folder)

    def outcomes(self, *bodies: bytes) -> list[Answer]:
        """The outcome of each item, at most `concurrency` of them in work at once."""

        async def run(processor: Processor) -> list[Answer]:
            places = asyncio.Semaphore(self._settings.concurrency)

            async def one(number: int, body: bytes) -> Answer:
                async with places:
                    return await alone(processor, self.item(body, number))

            return await asyncio.gather(*(one(number, body) for number, body in enumerate(bodies)))

        return opened(self._settings, run)

    def outcome_in(self, item: Item) -> Answer:
        """What a processor of its own makes of one item, again and again in the same folder."""
        return opened(self._settings, lambda processor: alone(processor, item))

    def test_one_item_gives_its_result(self) -> None:
        assert contents(self.outcomes(b"echo 1")) == [[b"echo 1"]]

    def test_many_calls_at_once_give_each_item_its_own_result(self) -> None:
        bodies = [b"echo %d" % number for number in range(500)]
        assert contents(self.outcomes(*bodies)) == [[body] for body in bodies]

    def test_outcomes_of_one_call_are_in_the_order_of_its_items(self) -> None:
        bodies = [b"echo %d" % number for number in range(self._settings.batch)]

        async def one_call(processor: Processor) -> Sequence[Answer]:
            return await processor.process([self.item(body) for body in bodies])

        assert contents(opened(self._settings, one_call)) == [[body] for body in bodies]

    def test_an_item_can_have_no_result(self) -> None:
        self.needs("none")
        assert contents(self.outcomes(b"none", b"echo 1")) == [[], [b"echo 1"]]

    def test_an_item_can_have_many_results_and_their_order_is_kept(self) -> None:
        self.needs("many")
        (results,) = contents(self.outcomes(b"many 12"))
        assert results == [b"%d" % number for number in range(12)]

    @pytest.mark.parametrize("size", [0, 1, LARGE_BYTES])
    def test_contents_of_any_size_and_all_bytes_go_and_come_whole(self, size: int) -> None:
        body = b"echo" + (bytes(range(256)) * (size // 256 + 1))[:size]
        assert contents(self.outcomes(body)) == [[body]]

    def test_an_item_has_the_same_key_when_it_is_processed_again(self) -> None:
        self.needs("key")
        first = contents(self.outcomes(b"key"))
        assert first == contents(self.outcomes(b"key")) == [[b"key of item 0"]]

    def test_headers_reach_the_processor(self) -> None:
        self.needs("header")
        headers = {"content-type": "image/png", "x-greeting": "gr\u00fc\u00df dich"}

        async def both(processor: Processor) -> list[Answer]:
            items = [self.item(b"header %b" % name.encode(), headers=headers) for name in headers]
            return [await alone(processor, item) for item in items]

        assert contents(opened(self._settings, both)) == [[v.encode()] for v in headers.values()]

    def test_a_bad_item_is_bad_alone(self) -> None:
        outcomes = self.outcomes(b"echo 0", b"bad", b"echo 2", b"bad", b"echo 4")
        assert [isinstance(outcome, BadItem) for outcome in outcomes] == [False, True] * 2 + [False]
        assert all(str(outcome) for outcome in outcomes if isinstance(outcome, BadItem))

    def test_what_may_pass_raises_retry_item_and_the_others_go_on(self) -> None:
        async def three(processor: Processor) -> list[Answer | BaseException]:
            items = [self.item(b"echo 0"), self.item(b"retry"), self.item(b"echo 2")]
            calls = (alone(processor, item) for item in items)
            return list(await asyncio.gather(*calls, return_exceptions=True))

        first, second, third = opened(self._settings, three)
        assert isinstance(second, RetryItem)
        assert [content_of(one) for one in _results(first)] == [b"echo 0"]
        assert [content_of(one) for one in _results(third)] == [b"echo 2"]

    def test_a_cancelled_call_ends_at_once_and_the_others_go_on(self) -> None:
        async def cancel_one(processor: Processor) -> Answer:
            await alone(processor, self.item(b"echo warm"))
            slow = asyncio.create_task(alone(processor, self.item(b"slow 3")))
            await asyncio.sleep(0.2)
            begun = time.monotonic()
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
            assert time.monotonic() - begun < 2.5
            return await alone(processor, self.item(b"echo after"))

        assert contents([opened(self._settings, cancel_one)]) == [[b"echo after"]]

    def test_close_can_be_repeated_and_does_not_wait_for_what_is_in_work(self) -> None:
        async def close_while_busy() -> float:
            processor = self._settings.processor()
            await processor.open()
            slow = asyncio.create_task(alone(processor, self.item(b"slow 40")))
            await asyncio.sleep(0.2)
            begun = time.monotonic()
            await processor.close()
            await processor.close()
            took = time.monotonic() - begun
            slow.cancel()
            await asyncio.gather(slow, return_exceptions=True)
            return took

        assert asyncio.run(close_while_busy()) < 30

    def test_a_processor_that_was_not_opened_can_be_closed(self) -> None:
        async def close() -> None:
            await self._settings.processor().close()

        asyncio.run(close())

    def test_two_processors_of_the_same_settings_do_not_know_each_other(self) -> None:
        async def both() -> list[Answer]:
            one, other = self._settings.processor(), self._settings.processor()
            await one.open()
            await other.open()
            await one.close()
            try:
                return [await alone(other, self.item(b"echo 1"))]
            finally:
                await other.close()

        assert contents(asyncio.run(both())) == [[b"echo 1"]]

    def test_the_version_is_the_same_for_the_same_settings(self) -> None:
        elsewhere = self._settings.model_copy(
            update={"concurrency": self._settings.concurrency + 1}
        )
        assert self._settings.version() == elsewhere.version()
        assert self._settings.describe()

    @pytest.mark.parametrize("size", [0, 1, LARGE_BYTES])
    def test_a_file_is_in_the_items_folder_and_is_what_is_stated(self, size: int) -> None:
        self.needs_folder()
        item = self.item(b"file" + (bytes(range(256)) * (size // 256 + 1))[:size])
        (file,) = _results(self.outcome_in(item))
        assert isinstance(file, FileResult)
        assert_is_there(file, item)
        assert file.path.read_bytes() == item.content

    def test_what_lies_in_the_folder_neither_stops_nor_changes_an_item(self) -> None:
        self.needs_folder()
        item = self.item(b"file 1")
        assert item.folder is not None
        (file,) = _results(self.outcome_in(item))
        assert isinstance(file, FileResult)
        for left in (b"file 1", b"file", b"fiXe 1", b"file 1 and more", b""):
            file.path.write_bytes(left)  # as a killed process, or a power cut, may leave it
            (item.folder / "left.part").write_bytes(left)
            (again,) = _results(self.outcome_in(item))
            assert isinstance(again, FileResult)
            assert_is_there(again, item)
            assert again.path.read_bytes() == b"file 1"

    def test_files_of_items_in_work_at_once_do_not_meet(self) -> None:
        self.needs_folder()
        bodies = [b"file %d" % number for number in range(50)]
        assert contents(self.outcomes(*bodies)) == [[body] for body in bodies]

    def test_an_item_can_have_results_and_failures_and_its_rest_asks_only_for_these(self) -> None:
        self.needs_folder()
        item = self.item(b"partial")
        partial = self.outcome_in(item)
        assert isinstance(partial, Partial)
        (file,) = partial.results
        assert isinstance(file, FileResult)
        assert_is_there(file, item)
        assert partial.failures
        assert all(failure.name and failure.reason for failure in partial.failures)
        assert all(json.loads(json.dumps(dict(one.detail))) is not None for one in partial.failures)
        assert partial.rest is not None
        rest = self.outcome_in(self.item(partial.rest))
        if isinstance(rest, Partial):
            assert not rest.results
            assert [one.name for one in rest.failures] == [one.name for one in partial.failures]
        else:
            assert isinstance(rest, BadItem)

    def needs_folder(self) -> None:
        """Leave a test out, if the processor's items have no folders."""
        if not self._uses_folder:
            pytest.skip("results of this processor are no files")


def assert_is_there(file: FileResult, item: Item) -> None:
    """A file is in the item's folder, reached without a link, with the size and digest stated."""
    assert item.folder is not None
    inside = file.path.relative_to(item.folder)
    assert ".." not in inside.parts
    assert file.path.resolve() == item.folder.resolve() / inside
    assert stat.S_ISREG(file.path.lstat().st_mode)
    content = file.path.read_bytes()
    assert (len(content), hashlib.sha256(content).digest()) == (file.size_bytes, file.sha256)


async def alone(processor: Processor, item: Item) -> Answer:
    """What becomes of one item."""
    (outcome,) = await processor.process([item])
    return outcome


def opened(settings: ProcessorSettings, use: Callable[[Processor], Awaitable[Value]]) -> Value:
    """What comes of using an open processor."""

    async def run() -> Value:
        processor = settings.processor()
        await processor.open()
        try:
            return await use(processor)
        finally:
            await processor.close()

    return asyncio.run(run())


def contents(outcomes: Sequence[Answer]) -> list[list[bytes]]:
    """The contents of all results; raises what is bad."""
    return [[content_of(result) for result in _results(outcome)] for outcome in outcomes]


def content_of(result: Result | FileResult) -> bytes:
    """The content of a result, whether it is in memory or a file."""
    return result.content if isinstance(result, Result) else result.path.read_bytes()


def _results(outcome: Answer | BaseException) -> Sequence[Result | FileResult]:
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome.results if isinstance(outcome, Partial) else outcome
