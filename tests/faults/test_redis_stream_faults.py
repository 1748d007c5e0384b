"""A drain of a Redis stream: workers and server are killed, and each message is stored once."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuploader_dagster.resources.sources.redis_stream.source import RedisStream
from tests.drains import (
    MARK,
    assert_exactly_once,
    backlog,
    draining,
    files,
    pids,
    publish,
    snapshot,
    wait_for,
    wait_until_stored,
)
from tests.servers.redis import DURABLE, RedisServer, redis_configured
from tests.settings import intake

KILLS = int(os.environ.get("KILLS", "6"))
"""Of workers, per test; more of them by this variable."""
SERVER_EVERY = 3
MESSAGES = 1_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_configured(tmp_path / "redis", *DURABLE) as running:
        yield running


@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside another group"])
def test_killed_workers_and_a_killed_server_lose_nothing_and_store_nothing_twice(
    tmp_path: Path, server: RedisServer, others: bool
) -> None:
    if others:
        with server.client() as client:
            client.xgroup_create("files", "others", mkstream=True)
    settings = intake(
        tmp_path,
        source=RedisStream(url=server.url(), stream="files", delete=not others),  # type: ignore[arg-type]
        min_free_bytes=MARK,
        process_count=2,
        slots_per_worker=2,
        commit_messages=20,
        prefetch_count=200,
        seal_messages=1_000,
    )
    chance = random.Random(7)
    contents: dict[str, bytes] = {}
    killed = 0
    with draining(settings):
        for number in range(KILLS):
            wait_for(lambda: len(pids(settings) - {killed}) == 2, settings, "the workers")  # noqa: B023
            handled = snapshot(settings).stored_messages
            more = files(MESSAGES, seed=number, prefix=f"k{number:04d}-")
            contents |= more
            publish(settings, more)
            some = handled + chance.randrange(MESSAGES // 2)
            wait_for(lambda: snapshot(settings).stored_messages >= some, settings, "the drain")  # noqa: B023
            killed = chance.choice(sorted(pids(settings)))
            os.kill(killed, signal.SIGKILL)
            if number % SERVER_EVERY == SERVER_EVERY - 1:
                server.kill()
                server.start()
        wait_until_stored(settings, contents)
        wait_for(lambda: backlog(settings) == 0, settings, "the rest")
        wait_for(lambda: in_hand(server) == 0, settings, "the last acknowledgements")
    assert_exactly_once(settings, contents)
    print(f"{KILLS} kills, {len(contents)} messages, {snapshot(settings).duplicates} came again")
    with server.client() as client:
        assert client.xlen("files") == (len(contents) if others else 0)


def in_hand(server: RedisServer) -> int:
    with server.client() as client:
        return sum(int(one["pending"]) for one in client.xinfo_groups("files"))
