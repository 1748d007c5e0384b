"""Requests share publishes, and none is left behind by a thread that went to sleep."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from queue import Queue

import pytest

from fuploader_dagster.front.items import Item
from fuploader_dagster.front.publishing import Publishing
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.settings.serve import Serve
from tests.servers.ports import wait_until
from tests.settings import pipeline

LIMIT_SECONDS = 120


@contextmanager
def publishing(folder: Path, max_backlog: int = 0, remember_ids: int = 0) -> Iterator[Publishing]:
    """Called in an event loop."""
    settings = pipeline(
        folder,
        source=EmbeddedQueue(path=folder / "queue"),
        serve=Serve(remember_ids=remember_ids, max_backlog=max_backlog),
    )
    one = Publishing(settings)
    one.start()
    with closing(one):
        yield one


def item(number: int) -> Item:
    return Item(str(number), b"%d" % number, {"message_id": str(number)})


def in_queue(folder: Path) -> list[bytes]:
    with closing(EmbeddedQueue(path=folder / "queue").source(prefetch=10_000)) as queue:
        queue.open()
        found: list[bytes] = []
        while batch := queue.receive(10_000, 0.5):
            found += [one.body for one in batch]
    return found


@pytest.mark.parametrize("max_backlog", [0, 1_000_000])
def test_a_request_at_any_moment_is_published(tmp_path: Path, max_backlog: int) -> None:
    """Bursts and pauses as long as a publish, so that the thread sleeps before some only."""
    chance = random.Random(23)

    async def send_all() -> int:
        sent = 0
        with publishing(tmp_path, max_backlog) as one:
            for _ in range(100):
                burst = range(sent, sent + chance.choice([1, 1, 1, 3]))
                sent = burst.stop
                tasks = [one.publish([item(number)], None, b"") for number in burst]
                await asyncio.wait_for(asyncio.gather(*tasks), LIMIT_SECONDS)
                if chance.random() < 0.2:
                    await asyncio.sleep(chance.random() * 0.004)
        return sent

    sent = asyncio.run(send_all())
    assert sorted(in_queue(tmp_path), key=int) == [b"%d" % number for number in range(sent)]


def test_a_request_that_comes_while_the_thread_goes_to_sleep_is_published(tmp_path: Path) -> None:
    """It had looked and found nothing, and nobody rings for one that is awake."""

    async def send_both() -> None:
        loop = asyncio.get_running_loop()
        late: Queue[Future[None]] = Queue()
        published: list[int] = []
        with publishing(tmp_path) as one:
            sleep = one._sleep

            def sleep_after_one_more(most_seconds: float | None) -> None:
                if not published:
                    published.append(2)
                    late.put(
                        asyncio.run_coroutine_threadsafe(one.publish([item(2)], None, b""), loop)
                    )
                    wait_until(
                        lambda: bool(one._requests),
                        seconds=60,
                        what="the request",
                        diagnose=lambda: "the event loop does not take it",
                    )
                sleep(most_seconds)

            one._sleep = sleep_after_one_more  # type: ignore[method-assign]
            await asyncio.wait_for(one.publish([item(1)], None, b""), LIMIT_SECONDS)
            other = asyncio.wrap_future(await asyncio.to_thread(late.get, timeout=60))
            await asyncio.wait_for(other, LIMIT_SECONDS)

    asyncio.run(send_both())
    assert sorted(in_queue(tmp_path)) == [b"1", b"2"]


def test_what_arrives_together_is_published_together_and_in_order(tmp_path: Path) -> None:
    async def send_all() -> list[int]:
        groups: list[int] = []
        with publishing(tmp_path) as one:
            finish = one._finish

            def counted(group, outcomes):  # type: ignore[no-untyped-def]
                groups.append(len(group))
                finish(group, outcomes)

            one._finish = counted  # type: ignore[method-assign]
            tasks = [one.publish([item(number)], None, b"") for number in range(500)]
            await asyncio.wait_for(asyncio.gather(*tasks), LIMIT_SECONDS)
        return groups

    groups = asyncio.run(send_all())
    assert sum(groups) == 500
    assert len(groups) < 100, groups
    assert in_queue(tmp_path) == [b"%d" % number for number in range(500)]


def test_the_end_publishes_what_waits(tmp_path: Path) -> None:
    async def send_all() -> None:
        with publishing(tmp_path) as one:
            tasks = [
                asyncio.ensure_future(one.publish([item(number)], None, b""))
                for number in range(100)
            ]
            await asyncio.sleep(0)  # all of them have begun
        await asyncio.wait_for(asyncio.gather(*tasks), LIMIT_SECONDS)

    asyncio.run(send_all())
    assert len(in_queue(tmp_path)) == 100


def test_what_cannot_be_remembered_is_published_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def send() -> None:
        with publishing(tmp_path, remember_ids=10) as one:
            await asyncio.wait_for(one.publish([item(1)], None, b""), LIMIT_SECONDS)

    where = pipeline(tmp_path).layout.published
    where.mkdir(parents=True)
    asyncio.run(send())
    assert in_queue(tmp_path) == [b"1"]
    assert f"{where} should be a file, but is a folder" in caplog.text
