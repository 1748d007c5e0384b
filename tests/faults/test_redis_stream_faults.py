"""A drain of a Redis stream: workers and server are killed, and each message is stored once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fuploader_dagster.resources.sources.redis_stream.source import RedisStream
from tests.drains import (
    MARK,
    drain_while_workers_are_killed,
)
from tests.servers.redis import DURABLE, RedisServer, redis_configured
from tests.settings import intake


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

    def break_server() -> None:
        server.kill()
        server.start()

    contents = drain_while_workers_are_killed(settings, break_server, lambda: in_hand(server) == 0)
    with server.client() as client:
        assert client.xlen("files") == (len(contents) if others else 0)


def in_hand(server: RedisServer) -> int:
    with server.client() as client:
        return sum(int(one["pending"]) for one in client.xinfo_groups("files"))
