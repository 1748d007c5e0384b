"""A drain of a Redis list: workers and server are killed, and each message is stored once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fuploader_dagster.contracts.source import Depth
from fuploader_dagster.errors import SourceUnavailable
from fuploader_dagster.resources.sources.redis_list.source import RedisList
from fuploader_dagster.testing.source_steps import bodies_of, settle
from tests.contract.sinks.cutting_proxy import CuttingProxy, Kind
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


@pytest.mark.parametrize("end", ["right", "left"])
def test_killed_workers_and_a_killed_server_lose_nothing_and_store_nothing_twice(
    tmp_path: Path, server: RedisServer, end: str
) -> None:
    settings = intake(
        tmp_path,
        source=RedisList.model_validate({"url": server.url(), "key": "files", "end": end}),
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

    drain_while_workers_are_killed(settings, break_server, lambda: left(server) == 0)


@pytest.mark.parametrize("kind", ["request lost", "answer lost", "server killed"])
def test_whenever_a_connection_or_the_server_breaks_each_message_comes_again_or_is_settled(
    server: RedisServer, kind: Kind
) -> None:
    """At every piece that a session sends, one after the other until one of them hit nothing."""

    def kill() -> None:
        server.kill()
        server.start()

    with CuttingProxy(server.port, kill) as proxy:
        for at in range(60):
            direct = RedisList(url=server.url(), key=f"files-{at}")  # type: ignore[arg-type]
            bodies = [b"%d" % number for number in range(6)]
            direct.publisher().publish((body, {}) for body in bodies)
            url = server.url().replace(f":{server.port}/", f":{proxy.port}/")
            broken = RedisList(url=url, key=direct.key, timeout_seconds=30)  # type: ignore[arg-type]
            proxy.play(kind, at)
            settled, doubtful = _drained(broken, proxy)
            proxy.wait_for_kill()  # if it was hit as it left
            hit = proxy.hit
            proxy.play(None)
            assert direct.publisher().depth() == Depth(0, in_hand=0)
            assert sorted({*settled, *doubtful}) == bodies
            if not hit:
                assert at > 10, "too few pieces were sent"
                assert (settled, doubtful) == (bodies, set())
                break
        else:
            pytest.fail("a session never ended without a fault")


def _drained(queue: RedisList, proxy: CuttingProxy) -> tuple[list[bytes], set[bytes]]:
    """Receive and settle everything in batches of two; open again after the fault. Returns what was
    settled, and what may have been, because the answer did not come."""
    source = queue.source(prefetch=3)
    settled: list[bytes] = []
    received: set[bytes] = set()
    settling: list[bytes] = []
    doubtful: set[bytes] = set()
    is_open = False
    for _ in range(100):
        try:
            if not is_open:
                source.open()
                is_open = True
            batch = source.receive(2, 0.1)
            for message in batch:
                assert message.body not in settled
                assert message.redelivered or message.body not in received
            if not batch:
                source.close()
                return settled, doubtful
            settling = bodies_of(batch)
            received |= set(settling)
            settle(source, batch)
            settled += settling
            doubtful -= set(settling)
            settling = []
        except SourceUnavailable:
            proxy.wait_for_kill()
            doubtful |= set(settling)
            is_open, settling = False, []
    pytest.fail(f"no end: settled {settled}, in doubt {doubtful}")


def left(server: RedisServer) -> int:
    with server.client() as client:
        return sum(int(client.llen(key)) for key in client.scan_iter("*in-hand*"))
