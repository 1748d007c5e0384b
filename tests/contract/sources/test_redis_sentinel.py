"""Sentinel: whoever is the master is used, by sources, publishers, states and sinks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import redis
from pydantic import SecretStr, ValidationError

from fuploader_dagster.contracts.sink import ItemRows
from fuploader_dagster.contracts.source import Message, MessageSource, SourceSettings
from fuploader_dagster.errors import SourceUnavailable, TemporaryError
from fuploader_dagster.resources.sinks.redis_stream import RedisStreamSink
from fuploader_dagster.resources.sources.redis_list.source import RedisList
from fuploader_dagster.resources.sources.redis_stream.source import RedisStream
from fuploader_dagster.resources.states.redis import RedisState
from fuploader_dagster.resources.states.redis_connection import address, usable
from fuploader_dagster.resources.states.redis_sentinel import watched
from fuploader_dagster.testing.sink_contract import no_reject
from fuploader_dagster.testing.source_steps import bodies_of, collect, publish, settle
from tests.contract.sinks.attempts import DELIVERY
from tests.servers.ports import wait_until
from tests.servers.redis import RedisSentinel, RedisServer, redis_watched

ROW = ItemRows(0, [{"id": 1}])
Result = TypeVar("Result")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer, RedisSentinel]]:
    with redis_watched(tmp_path) as started:
        yield started


def when_it_works(attempt: Callable[[], Result]) -> Result:
    """What the drain does: try again while the trouble may pass."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return attempt()
        except TemporaryError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def is_master(server: RedisServer) -> bool:
    """As far as anybody knows: Sentinel has it cut its connections when it becomes a replica."""
    if not server.running:
        return False
    try:
        with server.client() as client:
            return bool(client.info("replication")["role"] == "master")
    except redis.ConnectionError:
        return True


def settled(source: MessageSource, in_hand: list[Message]) -> list[bytes]:
    """Settle these and all that follow, in batches of three. A source whose connection was lost
    while it was idle goes on where it was; any other is opened again, and gets them once more."""
    done: list[bytes] = []
    batch, is_open = in_hand, True
    deadline = time.monotonic() + 120
    while True:
        assert time.monotonic() < deadline
        try:
            if not is_open:
                source.open()
                is_open = True
                batch = source.receive(3, 0.5)
                assert all(one.redelivered for one in batch)
            if not batch:
                return done
            settle(source, batch)
            done += bodies_of(batch)
            batch = source.receive(3, 0.5)
        except SourceUnavailable:
            is_open = False
            time.sleep(0.1)


@pytest.mark.parametrize("ends", ["killed", "demoted"])
def test_after_a_failover_everything_goes_on_at_the_new_master(
    servers: tuple[RedisServer, RedisServer, RedisSentinel], ends: str
) -> None:
    first, second, sentinel = servers
    url = SecretStr(sentinel.url())
    queues: list[SourceSettings] = [
        RedisList(url=url, key="orders-list", timeout_seconds=2),
        RedisStream(url=url, stream="orders-stream", timeout_seconds=2),
    ]
    state = RedisState(url=url, timeout_seconds=2).store(pipeline="docs", node="local")
    state.open()
    state.claim([0], "root", 30)
    sink = RedisStreamSink(url=url, stream="rows", timeout_seconds=2).sink()
    sink.store(DELIVERY, iter([ROW]), no_reject)
    publishers = [queue.publisher() for queue in queues]
    sources = [queue.source(prefetch=10) for queue in queues]
    published = [publish(publisher, 9) for publisher in publishers]
    received = []
    for source in sources:
        source.open()
        settle(source, collect(source, 3))
        received.append(collect(source, 3))
    with first.client() as client:
        client.wait(1, 60_000)  # the replica has all of it

    if ends == "killed":
        first.kill()
    else:
        with sentinel.client() as client:
            client.execute_command("SENTINEL", "FAILOVER", sentinel.NAME)

    wait_until(
        lambda: sentinel.master_port() == second.port and not is_master(first),
        seconds=60,
        what="the failover",
        diagnose=lambda: sentinel.log.read_text()[-2_000:],
    )
    for source, in_hand, bodies in zip(sources, received, published, strict=True):
        assert settled(source, in_hand) == bodies[3:]
        source.close()
    for publisher in publishers:
        assert when_it_works(publisher.backlog) == 0
        assert when_it_works(lambda publisher=publisher: publisher.publish([(b"x", {})])) == 1  # type: ignore[misc]
        publisher.close()
    when_it_works(lambda: state.claim([0, 1], "root", 30))
    state.close()
    again_stored = when_it_works(lambda: sink.store(DELIVERY, iter([ROW]), no_reject))
    assert again_stored.already_there
    sink.close()
    for queue in queues:
        verdicts = {one.check: one.verdict for one in queue.examine()}
        assert verdicts["queue"] == verdicts["queue server"] == "good"


def test_a_name_that_no_sentinel_knows_is_said(
    servers: tuple[RedisServer, RedisServer, RedisSentinel],
) -> None:
    _, _, sentinel = servers
    url = SecretStr(sentinel.url().replace("/main/", "/other/"))
    with pytest.raises(SourceUnavailable) as caught:
        RedisList(url=url, key="orders").source(prefetch=1).open()
    assert "do they know this name" in caught.value.hint
    assert sentinel.password not in str(caught.value)


def test_the_url_says_where_the_sentinels_are_and_who_we_are() -> None:
    url = (
        "rediss+sentinel://drain:p%40ss@one,[::1]:26380/main/3?ssl_ca_certs=/ca.pem"
        "&sentinel_username=watcher&sentinel_password=s%26t"
    )
    found = watched(url)
    assert found.sentinels == [("one", 26379), ("::1", 26380)]
    assert found.name == "main"
    login = {"username": "drain", "password": "p@ss", "db": 3}
    tls = {"ssl": True, "ssl_ca_certs": "/ca.pem"}
    assert found.options == {**login, **tls}
    assert found.sentinel_options == {**tls, "username": "watcher", "password": "s&t"}
    assert address(SecretStr(url)) == "rediss+sentinel://one,[::1]:26380/main/3"


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:hunter2@one",
        "redis+sentinel://:hunter2@/main",
        "redis+sentinel://:hunter2@one:port/main",
        "redis+sentinel://:hunter2@one,,two/main",
    ],
)
def test_a_url_that_names_no_sentinel_or_no_master_is_refused_without_its_password(
    url: str,
) -> None:
    with pytest.raises(ValueError, match=r"redis\+sentinel://user"):
        usable(SecretStr(url))
    with pytest.raises(ValidationError) as caught:
        RedisList(url=url, key="orders")  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)
