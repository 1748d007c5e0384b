"""Entries are added exactly once, whatever breaks, and at whatever moment.

Each fault hits one delivery, which is then tried again until it is stored, as the engine does. An
attempt makes other rows than the one before, as a user's function may: an entry of both would be
seen. FAULTS=500 plays more of them.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from fuploader_dagster.contracts.sink import ItemRows, StoredRows
from fuploader_dagster.resources.sinks import redis_stream_entries
from fuploader_dagster.resources.sinks.redis_stream import RedisStreamSink
from tests.contract.sinks.broken_attempts import (
    BAD,
    GOOD,
    ITEMS,
    attempted,
    delivery_of,
    is_killed,
    until_it_is_stored,
)
from tests.contract.sinks.cutting_proxy import CuttingProxy, Kind
from tests.servers.ports import LOOPBACK
from tests.servers.redis import DURABLE, RedisServer, redis_configured

FAULTS = int(os.environ.get("FAULTS", "60"))
KINDS: Sequence[Kind] = ("request lost", "answer lost", "server killed")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """More moments at which something can break."""
    monkeypatch.setattr(redis_stream_entries, "CHUNK_ENTRIES", 4)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_configured(tmp_path / "redis", *DURABLE) as running:
        yield running


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[CuttingProxy]:
    with CuttingProxy(server.port, server.kill) as running:
        yield running


def settings_of(server: RedisServer, port: int | None = None) -> RedisStreamSink:
    url = f"redis://:{server.password}@{LOOPBACK}:{port or server.port}/0"
    return RedisStreamSink(url=url, stream="orders")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_connection_may_break_at_every_moment(
    server: RedisServer, proxy: CuttingProxy, kind: Kind
) -> None:
    settings = settings_of(server, proxy.port)
    pieces = pieces_of_a_store(settings, proxy)
    found: list[bool] = []
    for at in range(pieces):
        proxy.play(kind, at)
        found.append(broken_and_tried_again(settings, at + 1))
        assert proxy.hit
        assert_stored_once(server, at + 1)
    assert any(found), "nothing broke after the commit"


def test_whatever_breaks_entries_are_added_once(
    server: RedisServer, proxy: CuttingProxy, caplog: pytest.LogCaptureFixture
) -> None:
    settings, direct = settings_of(server, proxy.port), settings_of(server)
    chance = random.Random(7)
    pieces = pieces_of_a_store(settings, proxy)
    played: Counter[str] = Counter()

    def mend() -> None:
        proxy.wait_for_kill()
        if not server.running:
            server.start()

    redone = 0
    for number in range(1, FAULTS + 1):
        kind = chance.choice((*KINDS, "client killed"))
        if kind == "client killed":
            kill_a_client(direct, number, chance.randrange(2 * pieces))
            proxy.play(None)
        else:
            proxy.play(kind, chance.randrange(pieces))
        there = broken_and_tried_again(settings, number, mend=mend)
        assert kind == "client killed" or proxy.hit
        played[f"{kind}, {'found' if there else 'stored again'}"] += 1
        assert_stored_once(server, number)
        if chance.random() < 0.2:
            proxy.play(chance.choice(KINDS), chance.randrange(pieces))
            broken_and_tried_again(settings, number, redo=1, mend=mend)
            assert_stored_once(server, number)
            redone += 1
    print(f"{FAULTS} faults: {dict(sorted(played.items()))}, {redone} redone")
    with server.client() as client:
        assert client.xlen("orders") == (FAULTS + 2) * GOOD
        assert not caplog.records  # nothing that was committed vanished
        assert not [key for key in client.scan_iter() if "staged" in key and client.ttl(key) < 0]


def test_a_process_may_be_killed_at_every_command(server: RedisServer) -> None:
    settings = settings_of(server)
    store(settings, 0, with_redo=0)
    number = 0
    for number in range(1, 200):
        survived = not kill_a_client(settings, number, number - 1)
        broken_and_tried_again(settings, number)
        assert_stored_once(server, number)
        if survived:  # it had no more commands
            break
    assert 15 < number < 199


def pieces_of_a_store(settings: RedisStreamSink, proxy: CuttingProxy) -> int:
    """The commands of one, of a server that knows the scripts."""
    store(settings, -1, with_redo=0)
    proxy.play(None)
    store(settings, 0, with_redo=0)
    return proxy.pieces


_attempts = itertools.count()


def store(
    settings: RedisStreamSink, number: int, *, with_redo: int
) -> tuple[StoredRows, list[int]]:
    """One attempt."""
    attempt = next(_attempts)

    def items() -> Iterator[ItemRows]:
        for position in range(ITEMS):
            row: dict[str, Any] = {"number": number * 100 + position, "attempt": attempt}
            yield ItemRows(position, [{**row, "x": "\ud800"} if position in BAD else row])

    return attempted(settings, delivery_of(number, with_redo), items())


def broken_and_tried_again(
    settings: RedisStreamSink,
    number: int,
    *,
    redo: int = 0,
    mend: Callable[[], None] = lambda: None,
) -> bool:
    return until_it_is_stored(lambda: store(settings, number, with_redo=redo), mend=mend)


def assert_stored_once(server: RedisServer, number: int) -> None:
    """All rows of one attempt, in their order, and none of another."""
    first = number * 100
    with server.client() as client:
        entries = [fields for _, fields in client.xrange("orders")]
    ours = [one for one in entries if first <= int(one["number"]) < first + 100]
    wanted = [first + position for position in range(ITEMS) if position not in BAD]
    assert [int(one["number"]) for one in ours] == wanted
    assert len({one["attempt"] for one in ours}) == 1


def kill_a_client(settings: RedisStreamSink, number: int, at: int) -> bool:
    """Store in a process that kills itself before or after it sends a command: at the moment `at`
    of these. Whether it died there."""
    return is_killed(lambda: _die_at_command(at), lambda: store(settings, number, with_redo=0))


def _die_at_command(at: int) -> None:
    moments = itertools.count()
    send = redis.Connection.send_packed_command

    def moment() -> None:
        if next(moments) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(self: Any, *arguments: Any, **keywords: Any) -> None:
        moment()
        send(self, *arguments, **keywords)
        moment()

    redis.Connection.send_packed_command = counted  # type: ignore[method-assign]
