"""What is particular to a list of Redis: producers and consumers of others, and refusals."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.source import Depth, Message
from fuploader_dagster.delivery.replay import another_queue
from fuploader_dagster.errors import FuploaderError, SourceRefused, SourceUnavailable
from fuploader_dagster.resources.sources.redis_list.source import RedisList
from fuploader_dagster.resources.sources.redis_stream.source import RedisStream
from fuploader_dagster.testing.source_steps import bodies_of, collect, publish, settle
from tests.contract.sinks.cutting_proxy import CuttingProxy, Kind
from tests.servers.ports import LOOPBACK, free_port, wait_until
from tests.servers.redis import RedisServer, redis_cluster, redis_configured, redis_replica

PAGE = Path(__file__).parents[3] / "docs" / "redis-lists.md"


class Queue:
    """A new list, looked at by a plain client."""

    def __init__(self, server: RedisServer) -> None:
        self.server, self.key = server, f"list-{secrets.token_hex(6)}"
        self.client = server.client()

    def settings(self, **more: Any) -> RedisList:
        values = {"url": self.server.url(), "key": self.key, "timeout_seconds": 3}
        return RedisList.model_validate({**values, **more})

    def left(self) -> dict[str, int]:
        """How long each of the lists is that are there, and 0 for the consumers."""
        found = [str(key) for key in self.client.scan_iter("*" + self.key + "*")]
        names = {key: key.partition("fuploader:")[2] or "queue" for key in found}
        return {
            name: 0 if name == "consumers" else int(self.client.llen(key))
            for key, name in names.items()
        }


@pytest.fixture
def queue(redis_server: RedisServer) -> Iterator[Queue]:
    made = Queue(redis_server)
    yield made
    made.client.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_configured(tmp_path / "redis") as running:
        yield running


def received(settings: RedisList, count: int) -> list[Message]:
    source = settings.source(prefetch=100)
    source.open()
    try:
        return collect(source, count)
    finally:
        source.close()


def wrong(settings: RedisList) -> list[Diagnosis]:
    return [one for one in settings.examine() if one.verdict != "good"]


@pytest.mark.parametrize(("push", "end"), [("lpush", "right"), ("rpush", "left")])
def test_producers_go_on_as_they_are_and_their_consumers_take_what_is_published(
    queue: Queue, push: str, end: str
) -> None:
    settings = queue.settings(end=end)
    getattr(queue.client, push)(queue.key, "a", "b", "c")
    (first,) = received(settings, 1)
    assert (first.body, first.message_id) == (b"a", None)
    source = settings.source(prefetch=10)
    source.open()
    messages = collect(source, 3)
    assert [(one.body, one.redelivered) for one in messages] == [
        (b"a", True),
        (b"b", False),
        (b"c", False),
    ]
    settle(source, messages)
    source.close()
    assert queue.left() == {}
    settings.publisher().publish([(b"d", {}), (b"e", {})])
    pop = queue.client.brpop if end == "right" else queue.client.blpop
    assert pop(queue.key, 1) == (queue.key, "d")


def test_a_consumer_that_waits_takes_nothing_before_it_can_say_so(queue: Queue) -> None:
    """Another program may take the message that ended the wait."""
    source = queue.settings().source(prefetch=10)
    source.open()
    found: list[list[Message]] = []
    waiting = threading.Thread(target=lambda: found.append(source.receive(10, 30)))
    waiting.start()
    wait_until(
        lambda: any(one["cmd"] == "blmove" for one in queue.client.client_list()),
        seconds=60,
        what="a consumer that waits",
        diagnose=lambda: "",
    )
    queue.client.lpush(queue.key, "a")
    waiting.join(30)
    (messages,) = found
    assert bodies_of(messages) == [b"a"]
    settle(source, messages)
    source.close()
    assert queue.left() == {}


def test_messages_of_the_dead_come_before_newer_ones_and_each_to_one_consumer(
    queue: Queue,
) -> None:
    publisher = queue.settings().publisher()
    bodies = publish(publisher, 60)
    dead = queue.settings().source(prefetch=30)
    dead.open()
    collect(dead, 30)
    dead.close()
    assert publisher.depth() == Depth(60, in_hand=0)
    one, two = (queue.settings().source(prefetch=100) for _ in range(2))
    one.open()
    two.open()
    messages: list[list[Message]] = [[], []]
    while sum(map(len, messages)) < 60:
        for mine, source in zip(messages, (one, two), strict=True):
            mine.extend(source.receive(7, 0.1))
    assert sorted(bodies_of(messages[0] + messages[1])) == sorted(bodies)
    assert publisher.depth() == Depth(0, in_hand=60)
    for mine in messages:
        assert mine
        redelivered = [message.redelivered for message in mine]
        assert redelivered == sorted(redelivered, reverse=True)
        numbers = [int(body.split(b"-")[1]) for body in bodies_of(mine)]
        assert numbers == sorted(numbers)
    one.close()
    two.close()
    publisher.close()


def test_a_live_consumer_keeps_its_messages_however_long_it_is_silent(queue: Queue) -> None:
    settings = queue.settings(idle_seconds=5)
    publish(settings.publisher(), 5)
    slow, other = (settings.source(prefetch=10) for _ in range(2))
    slow.open()
    messages = collect(slow, 5)
    other.open()
    silent_since = time.monotonic()
    while time.monotonic() - silent_since < 7:
        assert other.receive(10, 0.5) == []
    settle(slow, messages)
    slow.close()
    other.close()
    assert queue.left() == {}


def test_where_connections_are_not_listed_a_long_silence_counts(tmp_path: Path) -> None:
    with redis_configured(tmp_path / "redis", 'rename-command CLIENT ""') as server:
        queue = Queue(server)
        settings = queue.settings(idle_seconds=5)
        bodies = publish(settings.publisher(), 5)
        silent, alive, third = (settings.source(prefetch=10) for _ in range(3))
        silent.open()
        before = collect(silent, 5)
        alive.open()
        third.open()
        again: list[Message] = []
        deadline = time.monotonic() + 60
        while len(again) < 5:
            assert time.monotonic() < deadline
            again += alive.receive(3, 0.2)
        assert bodies_of(again) == bodies
        assert all(message.redelivered for message in again)
        checks = {one.check: one for one in settings.examine()}
        assert checks["connections"].verdict == "warning"
        until = time.monotonic() + 7
        while time.monotonic() < until:  # waiting is a sign of life
            assert alive.receive(0, 0.1) == []
            assert third.receive(5, 0.1) == []
        # the one that was silent settles nothing of what others have now
        with pytest.raises(SourceUnavailable, match="took it for dead"):
            settle(silent, before)
        settle(alive, again)
        alive.close()
        third.close()
        assert queue.left() == {}
        queue.client.close()


def test_a_consumer_that_was_taken_for_dead_neither_takes_nor_settles(queue: Queue) -> None:
    bodies = publish(queue.settings().publisher(), 6)
    source = queue.settings().source(prefetch=10)
    source.open()
    messages = collect(source, 4)
    lists = queue.settings().lists
    lists.leave(queue.client, source._consumer)
    (first, *_) = received(queue.settings(), 4)
    assert first.body == bodies[0]
    with pytest.raises(SourceUnavailable, match="4 messages in hand, and its list at the server 0"):
        source.receive(10, 5)
    source.open()
    with pytest.raises(SourceUnavailable, match="nothing is lost"):
        settle(source, messages)
    assert bodies_of(received(queue.settings(), 6)) == bodies


def test_a_server_that_lost_its_data_is_noticed_and_the_rest_goes_on(queue: Queue) -> None:
    settings = queue.settings()
    publish(settings.publisher(), 3)
    source = settings.source(prefetch=10)
    source.open()
    messages = collect(source, 3)
    for key in queue.client.scan_iter("*" + queue.key + "*"):
        queue.client.delete(key)
    with pytest.raises(SourceUnavailable, match="the server lost data"):
        settle(source, messages)
    bodies = publish(settings.publisher(), 2)
    source.open()
    assert bodies_of(collect(source, 2)) == bodies
    source.close()


@pytest.mark.parametrize("kind", ["request lost", "answer lost"])
@pytest.mark.parametrize("step", ["take", "settle"])
def test_a_connection_that_breaks_loses_nothing(queue: Queue, step: str, kind: Kind) -> None:
    publisher = queue.settings().publisher()
    bodies = publish(publisher, 6)
    with CuttingProxy(queue.server.port, lambda: None) as proxy:
        url = queue.server.url().replace(f":{queue.server.port}/", f":{proxy.port}/")
        source = queue.settings(url=url).source(prefetch=10)
        source.open()
        settle(source, collect(source, 1))  # so that the server knows the scripts
        messages = collect(source, 2)
        proxy.play(kind, 0)
        with pytest.raises(SourceUnavailable):
            _ = settle(source, messages) if step == "settle" else source.receive(10, 5)
        with pytest.raises(SourceUnavailable, match="not open"):
            source.receive(1, 0)
        source.open()
        settled = 3 if (step, kind) == ("settle", "answer lost") else 1
        taken = 6 if (step, kind) == ("take", "answer lost") else 3
        again = collect(source, 6 - settled)
        assert bodies_of(again) == bodies[settled:]
        marked = sum(message.redelivered for message in again)
        assert marked == taken - settled
        settle(source, again)
        source.close()
    assert not any(queue.left().values())
    publisher.close()


def test_a_full_list_takes_nothing_and_is_not_trimmed(queue: Queue) -> None:
    settings = queue.settings(max_length=10)
    publisher = settings.publisher()
    publish(publisher, 8)
    with pytest.raises(SourceUnavailable, match="has 8 messages, max_length 10"):
        publisher.publish((b"x", {}) for _ in range(3))
    assert queue.client.llen(queue.key) == 8
    publish(publisher, 2)
    checks = {one.check: one for one in settings.examine()}
    assert checks["length"].verdict == "warning"
    publisher.close()


def test_a_server_without_memory_is_drained_and_takes_nothing_more(server: RedisServer) -> None:
    queue = Queue(server)
    settings = queue.settings()
    body = bytes(20_000)
    settings.publisher().publish((body, {}) for _ in range(200))
    queue.client.config_set("maxmemory", 1_000_000)
    with pytest.raises(SourceUnavailable) as caught:
        settings.publisher().publish([(body, {})])
    assert "the server's memory is full" in caught.value.hint
    source = settings.source(prefetch=500)
    source.open()
    messages = collect(source, 200)
    settle(source, messages)
    source.close()
    assert queue.left() == {}
    queue.client.close()


def test_a_server_that_cannot_save_is_waited_for(tmp_path: Path) -> None:
    lines = ("save 3600 1000000", "enable-protected-configs yes")
    with redis_configured(tmp_path / "redis", *lines) as server:
        queue = Queue(server)
        settings = queue.settings()
        publish(settings.publisher(), 3)
        source = settings.source(prefetch=10)
        source.open()
        queue.client.config_set("dbfilename", "gone.rdb")
        (server.folder / "gone.rdb").mkdir()  # nothing can be renamed to it
        queue.client.bgsave()
        wait_until(
            lambda: queue.client.info("persistence")["rdb_last_bgsave_status"] == "err",
            seconds=60,
            what="a snapshot that failed",
            diagnose=lambda: str(queue.client.info("persistence")),
        )
        with pytest.raises(SourceUnavailable) as caught:
            source.receive(10, 5)
        assert "cannot write to its own disk" in caught.value.hint
        queue.client.config_set("save", "")
        source.open()
        assert len(collect(source, 3)) == 3
        source.close()
        queue.client.close()


def test_servers_that_refuse_us_are_told_from_those_that_may_come_back(
    server: RedisServer, tmp_path: Path
) -> None:
    def refused(url: str, kind: type[FuploaderError], advice: str) -> None:
        settings = RedisList(url=url, key="orders", timeout_seconds=2)  # type: ignore[arg-type]
        source = settings.source(prefetch=1)
        for tried in (source.open, lambda: settings.publisher().publish([(b"x", {})])):
            with pytest.raises(kind) as caught:
                tried()
            assert advice in caught.value.hint
        with pytest.raises(kind):
            list(settings.examine())

    refused(f"redis://{LOOPBACK}:{free_port()}/0", SourceUnavailable, "is Redis running")
    refused(server.url_of("nobody", "hunter2"), SourceRefused, "check user and password")
    with server.client() as client:
        client.xadd("orders", {"a": "b"})
        refused(server.url(), SourceRefused, "a stream has kind: redis_stream")
        client.delete("orders")
        client.lpush("orders", "a")
        stream = RedisStream(url=server.url(), stream="orders")  # type: ignore[arg-type]
        with pytest.raises(SourceRefused) as caught:
            stream.source(prefetch=1).open()
        assert "lists have kind: redis_list" in caught.value.hint
    with redis_replica(tmp_path / "replica", server) as replica:
        settings = RedisList(url=replica.url(), key="orders")  # type: ignore[arg-type]
        with pytest.raises(SourceUnavailable) as waiting:
            settings.source(prefetch=1).open()
        assert "name the master" in waiting.value.hint
        assert [one.verdict for one in wrong(settings)] == ["wrong"]


def test_of_a_cluster_the_node_that_has_the_list_is_used_and_the_others_name_it(
    tmp_path: Path,
) -> None:
    with redis_cluster(tmp_path) as nodes:
        for key in ("orders", "{eu}:orders"):
            with nodes[0].client() as client:
                hash_slot = client.cluster("KEYSLOT", key)
            firsts = ((2, 10923), (1, 5461), (0, 0))
            owner = nodes[next(n for n, first in firsts if hash_slot >= first)]
            for node in nodes:
                settings = RedisList(url=node.url(), key=key)  # type: ignore[arg-type]
                source = settings.source(prefetch=10)
                if node is owner:
                    bodies = publish(settings.publisher(), 3)
                    assert bodies_of(received(settings, 3)) == bodies
                    source.open()
                    messages = collect(source, 3)
                    settle(source, messages)
                    assert next(iter(settings.examine())).verdict == "good"
                    source.close()
                else:
                    with pytest.raises(SourceRefused) as caught:
                        source.open()
                    assert f"{LOOPBACK}:{owner.port}, in the url" in caught.value.hint
        for node in nodes:
            odd = RedisList(url=node.url(), key="a}b")  # type: ignore[arg-type]
            with pytest.raises(SourceRefused) as caught:
                odd.source(prefetch=1).open()
            assert "such as {orders}" in caught.value.hint


def test_doctor_warns_of_a_server_that_forgets(server: RedisServer) -> None:
    queue = Queue(server)
    assert wrong(queue.settings()) == []
    queue.client.config_set("appendonly", "no")
    wait_until(
        lambda: not queue.client.info("persistence")["aof_enabled"],
        seconds=60,
        what="the server without its file",
        diagnose=lambda: "",
    )
    (warned,) = wrong(queue.settings())
    assert (warned.check, warned.verdict) == ("persistence", "warning")
    queue.client.close()


def test_an_examination_takes_nothing_and_leaves_nothing(queue: Queue) -> None:
    assert wrong(queue.settings()) == []
    assert queue.left() == {}
    bodies = publish(queue.settings().publisher(), 3)
    found = list(queue.settings(end="left").examine())
    assert "3 messages wait" in found[0].found
    assert queue.left() == {"queue": 3}
    assert bodies_of(received(queue.settings(), 3)) == bodies


def test_another_queue_of_a_replay_is_another_list(queue: Queue) -> None:
    other = another_queue(queue.settings(), "elsewhere")
    assert other.describe().startswith("list elsewhere at redis://")


def documented() -> list[str]:
    (line,) = re.findall(r"^ACL SETUSER .*$", PAGE.read_text(), re.MULTILINE)
    return [word[1:] for word in line.split() if word[0] == "+"]


def as_user(queue: Queue, commands: list[str]) -> RedisList:
    user, password = f"user{secrets.token_hex(4)}", secrets.token_hex(8)
    keys = [f"~{queue.key}", f"~{{{queue.key}}}:fuploader:*"]
    rights = [*keys, *(f"+{one}" for one in commands)]
    queue.client.execute_command("ACL SETUSER", user, "on", f">{password}", *rights)
    queue.client.script_flush()
    return queue.settings(url=queue.server.url_of(user, password))


def test_the_documented_rights_are_enough_and_nothing_more_is_tried(server: RedisServer) -> None:
    queue = Queue(server)
    settings = as_user(queue, documented())
    queue.client.acl_log_reset()
    bodies = publish(settings.publisher(), 5)
    assert bodies_of(received(settings, 5)) == bodies
    source = settings.source(prefetch=10)
    source.open()
    again = collect(source, 5)
    assert bodies_of(again) == bodies
    settle(source, again)
    assert source.receive(1, 0.2) == []
    assert settings.publisher().backlog() == 0
    assert wrong(settings) == []
    source.close()
    assert {entry["object"] for entry in queue.client.acl_log()} <= {"info"}
    queue.client.close()


NOT_ALWAYS = {"client|setname", "client|list"}


@pytest.mark.parametrize("missing", [one for one in documented() if one not in NOT_ALWAYS])
def test_each_right_that_is_missing_is_met_by_doctor_and_costs_no_message(
    server: RedisServer, missing: str
) -> None:
    queue = Queue(server)
    bodies = publish(queue.settings().publisher(), 3)
    settings = as_user(queue, [one for one in documented() if one != missing])
    with pytest.raises(SourceRefused) as caught:
        list(settings.examine())
    assert "docs/redis-lists.md" in caught.value.hint
    source = settings.source(prefetch=2)
    with suppress(SourceRefused):
        source.open()
        source.receive(2, 0.2)
        source.receive(2, 0.2)
    source.close()
    assert bodies_of(received(queue.settings(), 3)) == bodies
    queue.client.close()


@pytest.mark.parametrize(("end", "ends"), [("right", "LEFT RIGHT"), ("left", "LEFT LEFT")])
def test_what_a_dead_worker_had_can_be_given_back_as_the_page_says(
    queue: Queue, end: str, ends: str
) -> None:
    assert f"`{ends}`" in PAGE.read_text() or f"KEY {ends}`" in PAGE.read_text()
    settings = queue.settings(end=end)
    bodies = publish(settings.publisher(), 6)
    source = settings.source(prefetch=4)
    source.open()
    collect(source, 4)
    consumer = source._consumer
    source.close()
    own = settings.lists.in_hand(consumer)
    while queue.client.lmove(own, queue.key, *ends.split()) is not None:
        pass
    pop = queue.client.rpop if end == "right" else queue.client.lpop
    assert [pop(queue.key) for _ in bodies] == [body.decode() for body in bodies]
