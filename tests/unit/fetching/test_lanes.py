"""Who may download now."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise

import pytest

from fuploader_dagster.fetching.lanes import Lanes


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_places_are_limited_in_all_and_for_a_host() -> None:
    async def run() -> tuple[int, Counter[str]]:
        lanes = Lanes(5, 2)
        running: Counter[str] = Counter()
        most: Counter[str] = Counter()
        most_of_all = 0

        async def one(host: str) -> None:
            nonlocal most_of_all
            async with lanes.place(host):
                running[host] += 1
                most[host] = max(most[host], running[host])
                most_of_all = max(most_of_all, running.total())
                await asyncio.sleep(0)
                running[host] -= 1

        await asyncio.gather(*(one(host) for host in "aaaaabbbbbcccccddddd"))
        return most_of_all, most

    most_of_all, most = asyncio.run(run())
    assert most_of_all == 5
    assert max(most.values()) == 2


def test_a_host_whose_places_are_taken_holds_up_no_other() -> None:
    async def run() -> list[str]:
        lanes = Lanes(3, 1)
        order: list[str] = []
        stop = asyncio.Event()

        async def slow() -> None:
            async with lanes.place("slow"):
                await stop.wait()

        async def quick(name: str) -> None:
            async with lanes.place("quick"):
                order.append(name)

        waiting = [asyncio.create_task(slow()) for _ in range(10)]
        await asyncio.gather(*(quick(str(i)) for i in range(5)))
        stop.set()
        await asyncio.gather(*waiting)
        return order

    assert asyncio.run(run()) == ["0", "1", "2", "3", "4"]


def test_downloads_from_one_host_begin_with_a_pause_between() -> None:
    async def run() -> list[float]:
        lanes = Lanes(10, 10, 0.05)
        begun: list[float] = []

        async def one() -> None:
            async with lanes.place("a"):
                begun.append(asyncio.get_running_loop().time())

        await asyncio.gather(*(one() for _ in range(4)))
        async with lanes.place("b"):  # another host does not wait
            pass
        return begun

    begun = asyncio.run(run())
    assert all(after - before >= 0.05 for before, after in pairwise(begun))


@pytest.mark.parametrize("handed_over", [False, True])
def test_who_is_cancelled_while_waiting_leaves_the_place_to_the_next(handed_over: bool) -> None:
    async def run() -> bool:
        lanes = Lanes(1, 1)
        first = lanes.place("a")
        await first.__aenter__()
        second = asyncio.create_task(lanes.take("a"))
        await settled()
        if handed_over:
            await first.__aexit__()
        second.cancel()
        await settled()
        if not handed_over:
            await first.__aexit__()
        await asyncio.wait_for(lanes.take("b"), 10)
        return second.cancelled()

    assert asyncio.run(run())


def test_hosts_that_nobody_needs_are_forgotten() -> None:
    async def run() -> int:
        lanes = Lanes(2, 1)
        for number in range(100):
            async with lanes.place(str(number)):
                pass
        return len(lanes._hosts)

    assert asyncio.run(run()) == 0
