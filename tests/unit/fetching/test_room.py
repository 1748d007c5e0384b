"""What takes different amounts of room is in work at once only as far as it fits."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from fuploader_dagster.contracts.processor import Answer, Item
from fuploader_dagster.fetching import processor
from fuploader_dagster.fetching.processor import FetchProcessor
from fuploader_dagster.fetching.room import Room
from fuploader_dagster.fetching.settings import Fetch
from tests.servers.http_handler import Call, HttpHandlerServer
from tests.servers.ports import LOOPBACK


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@given(
    works=st.lists(
        st.tuples(st.integers(0, 15), st.integers(0, 5), st.booleans()), min_size=1, max_size=30
    )
)
def test_no_more_is_taken_than_there_is_and_all_get_their_turn(
    works: list[tuple[int, int, bool]],
) -> None:
    """Each work has a size, takes some turns of the loop, and may be given up; the last one takes
    all of the room when the others have ended."""
    works = [*works, (10, 0, False)]
    size, in_work, order = 10, Counter[int](), list[int]()

    async def one(number: int) -> None:
        async with room.taken(works[number][0]):
            order.append(number)
            in_work[number] = works[number][0]
            assert in_work.total() <= size or len(+in_work) == 1
            try:
                await turns(works[number][1])
            finally:
                del in_work[number]

    async def run() -> None:
        nonlocal room
        room = Room(size)
        tasks = [asyncio.create_task(one(number)) for number in range(len(works) - 1)]
        await turns(3)
        for task, (_, _, given_up) in zip(tasks, works[:-1], strict=True):
            if given_up:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        everything = asyncio.create_task(one(len(works) - 1))
        await turns(5)
        assert everything.done(), "not all of it was given back"
        assert not any(task.exception() for task in tasks if not task.cancelled())

    room = Room(size)
    asyncio.run(run())
    assert order == sorted(order)
    assert {n for n, (_, _, given_up) in enumerate(works) if not given_up} <= set(order)


def test_tasks_of_many_addresses_are_not_all_in_work_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "ADDRESSES_IN_WORK", 10)
    running: Counter[str] = Counter()
    most = 0

    async def answer(call: Call) -> web.Response:
        nonlocal most
        task = call.request.path.split("/")[1]
        running[task] += 1
        most = max(most, len(+running))
        await turns(50)
        running[task] -= 1
        return await call.reply(200, b"x")

    def item(number: int, base: str) -> Item:
        folder = tmp_path / str(number)
        folder.mkdir()
        lines = "".join(f"{base}/{number}/{file}\n" for file in range(10))
        return Item(str(number), lines.encode(), folder=folder)

    async def run(base: str) -> list[Answer]:
        fetching = FetchProcessor(Fetch(allow_hosts=[LOOPBACK], per_host=64))
        await fetching.open()
        try:
            calls = [fetching.process([item(number, base)]) for number in range(5)]
            return [answer for answers in await asyncio.gather(*calls) for answer in answers]
        finally:
            await fetching.close()

    with HttpHandlerServer() as origin:
        origin.answer = answer
        answers = asyncio.run(run(f"http://{LOOPBACK}:{origin.port}"))
    assert [len(one) for one in answers if isinstance(one, list)] == [10] * 5
    assert most == 1
