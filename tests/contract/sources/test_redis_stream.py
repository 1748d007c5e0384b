"""What is particular to a stream of Redis: entries of others, consumers that are gone, refusals."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.source import Message
from fuploader_dagster.errors import FuploaderError, SourceRefused, SourceUnavailable
from fuploader_dagster.resources.sources.redis_stream.source import RedisStream
from fuploader_dagster.testing.source_steps import bodies_of, collect, publish, settle
from tests.contract.sinks.cutting_proxy import CuttingProxy, Kind
from tests.servers.ports import LOOPBACK, free_port, wait_until
from tests.servers.redis import RedisServer, redis_cluster, redis_configured, redis_replica

PAGE = Path(__file__).parents[3] / "docs" / "redis-streams.md"


class Stream:
    """A new stream, looked at by a plain client."""

    def __init__(self, server: RedisServer) -> None:
        self.server, self.name = server, f"stream-{secrets.token_hex(6)}"
        self.client = server.client()

    def settings(self, **more: Any) -> RedisStream:
        values = {"url": self.server.url(), "stream": self.name, "timeout_seconds": 3}
        return RedisStream.model_validate({**values, **more})

    def pending(self) -> int:
        (group,) = self.client.xinfo_groups(self.name)
        return int(group["pending"])

    def consumers(self) -> list[str]:
        return [str(one["name"]) for one in self.client.xinfo_consumers(self.name, "fuploader")]


@pytest.fixture
def stream(redis_server: RedisServer) -> Iterator[Stream]:
    made = Stream(redis_server)
    yield made
    made.client.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_configured(tmp_path / "redis") as running:
        yield running


def received(settings: RedisStream, count: int) -> tuple[list[Message], list[dict[str, Any]]]:
    source = settings.source(prefetch=100)
    source.open()
    try:
        messages = collect(source, count)
        return messages, [source.describe(message) for message in messages]
    finally:
        source.close()


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (["id", "1", "name", "täxt"], {"id": "1", "name": "täxt"}),
        (["id", "1", "id", "2"], {"id": ["1", "2"]}),
        (["message_id", "x", "headers", "{}"], {"message_id": "x", "headers": "{}"}),
        (["raw", b"\xff\x00"], {"raw": {"base64": "/wA="}}),
        ([b"\xff", "1"], {"\\xff": "1"}),
    ],
)
def test_an_entry_without_a_body_becomes_json_of_its_fields(
    stream: Stream, fields: list[Any], body: dict[str, Any]
) -> None:
    stream.client.execute_command("XADD", stream.name, "*", *fields)
    (message,), (described,) = received(stream.settings(), 1)
    assert json.loads(message.body) == body
    assert set(described) == {"entry_id", "deliveries"}


def test_fields_beside_a_body_are_headers_and_id(stream: Stream) -> None:
    fields = ["cmd", "thumb/64", "payload", b"\xff\x00", "message_id", "id-1", "headers", "[1]"]
    stream.client.execute_command("XADD", stream.name, "7-1", *fields)
    (message,), (described,) = received(stream.settings(body_field="payload"), 1)
    assert (message.body, message.message_id) == (b"\xff\x00", "id-1")
    headers = {"cmd": "thumb/64", "headers": "[1]"}
    wanted = {"entry_id": "7-1", "deliveries": 1, "message_id": "id-1", "headers": headers}
    assert described == wanted


def test_what_is_gone_from_the_stream_is_not_delivered_and_not_waited_for(stream: Stream) -> None:
    publisher = stream.settings().publisher()
    bodies = publish(publisher, 10)
    first = stream.settings().source(prefetch=100)
    first.open()
    messages = collect(first, 8)
    ids = [message.attributes.entry_id for message in messages]
    stream.client.xdel(stream.name, ids[0], ids[3])
    first.close()
    stream.client.xtrim(stream.name, maxlen=7, approximate=False)  # one more of those
    second = stream.settings().source(prefetch=100)
    second.open()
    again = collect(second, 7)
    assert bodies_of(again) == [bodies[at] for at in (2, 4, 5, 6, 7, 8, 9)]
    assert [one.redelivered for one in again] == [True] * 5 + [False] * 2
    stream.client.xdel(stream.name, again[2].attributes.entry_id)
    settle(second, again)
    assert (stream.pending(), stream.client.xlen(stream.name), publisher.backlog()) == (0, 0, 0)
    second.close()
    publisher.close()


def test_entries_of_the_dead_come_before_newer_ones_and_each_to_one_consumer(
    stream: Stream,
) -> None:
    publisher = stream.settings().publisher()
    bodies = publish(publisher, 60)
    dead = stream.settings().source(prefetch=30)
    dead.open()
    collect(dead, 30)
    dead.close()
    one, two = (stream.settings().source(prefetch=100) for _ in range(2))
    one.open()
    two.open()
    messages: list[list[Message]] = [[], []]
    while sum(map(len, messages)) < 60:
        for mine, source in zip(messages, (one, two), strict=True):
            mine.extend(source.receive(7, 0.1))
    assert sorted(bodies_of(messages[0] + messages[1])) == sorted(bodies)
    for mine in messages:
        assert mine
        redelivered = [message.redelivered for message in mine]
        assert redelivered == sorted(redelivered, reverse=True)
        ids = [message.attributes.entry_id for message in mine]
        assert ids == sorted(ids, key=lambda one: [int(part) for part in one.split("-")])
    assert len(stream.consumers()) <= 2  # the dead one is no longer listed
    one.close()
    two.close()
    publisher.close()


def test_a_live_consumer_keeps_its_entries_however_long_it_is_silent(stream: Stream) -> None:
    settings = stream.settings(idle_seconds=5)
    publish(settings.publisher(), 5)
    slow, other = (settings.source(prefetch=10) for _ in range(2))
    slow.open()
    messages = collect(slow, 5)
    other.open()
    silent_since = time.monotonic()
    while time.monotonic() - silent_since < 7:  # longer than idle_seconds
        assert other.receive(10, 0.5) == []
    settle(slow, messages)
    assert stream.client.xlen(stream.name) == 0
    slow.close()
    other.close()


def test_where_connections_are_not_listed_a_long_silence_counts(tmp_path: Path) -> None:
    with redis_configured(tmp_path / "redis", 'rename-command CLIENT ""') as server:
        stream = Stream(server)
        settings = stream.settings(idle_seconds=5)
        bodies = publish(settings.publisher(), 5)
        dead, alive = (settings.source(prefetch=10) for _ in range(2))
        dead.open()
        collect(dead, 5)
        dead.close()
        alive.open()
        again = collect(alive, 5)
        assert bodies_of(again) == bodies
        assert all(message.redelivered for message in again)
        checks = {one.check: one for one in settings.examine()}
        assert checks["connections"].verdict == "warning"
        third = settings.source(prefetch=10)
        third.open()
        until = time.monotonic() + 7
        while time.monotonic() < until:  # waiting is a sign of life
            assert alive.receive(0, 0.1) == []
            assert third.receive(5, 0.1) == []
        settle(alive, again)
        third.close()
        alive.close()
        stream.client.close()


def test_a_consumer_of_another_program_is_gone_after_a_long_silence(stream: Stream) -> None:
    settings = stream.settings(idle_seconds=5)
    bodies = publish(settings.publisher(), 3)
    stream.client.xgroup_create(stream.name, "fuploader", id="0")
    stream.client.xreadgroup("fuploader", "theirs", {stream.name: ">"}, count=2)
    messages, _ = received(settings, 3)
    assert sorted(bodies_of(messages)) == sorted(bodies)
    assert sum(message.redelivered for message in messages) == 2


@pytest.mark.parametrize("kind", ["request lost", "answer lost"])
def test_a_connection_that_breaks_at_settling_loses_nothing(stream: Stream, kind: Kind) -> None:
    publisher = stream.settings().publisher()
    bodies = publish(publisher, 6)[1:]
    with CuttingProxy(stream.server.port, lambda: None) as proxy:
        url = stream.server.url().replace(f":{stream.server.port}/", f":{proxy.port}/")
        source = stream.settings(url=url).source(prefetch=10)
        source.open()
        settle(source, collect(source, 1))  # so that the server knows the script
        messages = collect(source, 5)
        proxy.play(kind, 0)
        with pytest.raises(SourceUnavailable):
            settle(source, messages)
        with pytest.raises(SourceUnavailable, match="not open"):
            source.receive(1, 0)
        source.open()
        if kind == "answer lost":
            assert source.receive(10, 0.2) == []
        else:
            again = collect(source, 5)
            assert bodies_of(again) == bodies
            assert all(message.redelivered for message in again)
            settle(source, again)
        source.close()
    assert stream.client.xlen(stream.name) == 0
    publisher.close()


def test_a_group_that_is_removed_is_said_and_made_again(stream: Stream) -> None:
    source = stream.settings().source(prefetch=10)
    source.open()
    bodies = publish(stream.settings().publisher(), 3)
    collect(source, 3)
    stream.client.xgroup_destroy(stream.name, "fuploader")
    with pytest.raises(SourceUnavailable, match="consumer group is gone"):
        source.receive(5, 10)
    source.open()
    assert bodies_of(collect(source, 3)) == bodies
    source.close()


def test_a_full_stream_takes_nothing_and_is_not_trimmed(stream: Stream) -> None:
    settings = stream.settings(max_length=10)
    publisher = settings.publisher()
    publish(publisher, 8)
    with pytest.raises(SourceUnavailable, match="has 8 entries, max_length 10"):
        publisher.publish((b"x", {}) for _ in range(3))
    assert stream.client.xlen(stream.name) == 8
    publish(publisher, 2)
    checks = {one.check: one for one in settings.examine()}
    assert checks["length"].verdict == "warning"
    publisher.close()


def test_a_stream_that_others_read_is_not_deleted_from(stream: Stream) -> None:
    stream.client.xgroup_create(stream.name, "others", mkstream=True)
    stream.client.xgroup_create(stream.name, "fuploader")
    with pytest.raises(SourceRefused, match="also read by others") as caught:
        stream.settings().source(prefetch=1).open()
    assert "delete: false" in caught.value.hint
    assert [one.check for one in wrong(stream.settings())] == ["other groups"]
    assert wrong(stream.settings(delete=False)) == []


def test_a_missing_group_is_made_only_if_that_is_allowed(stream: Stream) -> None:
    settings = stream.settings(declare=False)
    with pytest.raises(SourceRefused, match="there is no stream"):
        settings.source(prefetch=1).open()
    assert [one.check for one in wrong(settings)] == ["queue"]
    assert wrong(stream.settings()) == []
    assert not stream.client.exists(stream.name)
    stream.settings().source(prefetch=1).open()
    settings.source(prefetch=1).open()


def test_an_examination_takes_nothing_and_leaves_nothing(stream: Stream) -> None:
    publish(stream.settings().publisher(), 3)
    received(stream.settings(), 0)
    before = stream.client.xinfo_groups(stream.name), stream.consumers()
    found = list(stream.settings().examine())
    assert "3 messages wait" in found[0].found
    assert (stream.client.xinfo_groups(stream.name), stream.consumers()) == before


def test_doctor_warns_of_a_server_that_forgets(server: RedisServer) -> None:
    stream = Stream(server)
    assert wrong(stream.settings()) == []
    stream.client.config_set("appendonly", "no")
    wait_until(
        lambda: not stream.client.info("persistence")["aof_enabled"],
        seconds=60,
        what="the server without its file",
        diagnose=lambda: "",
    )
    (warned,) = wrong(stream.settings())
    assert (warned.check, warned.verdict) == ("persistence", "warning")
    stream.client.close()


def test_servers_that_refuse_us_are_told_from_those_that_may_come_back(
    server: RedisServer, tmp_path: Path
) -> None:
    def refused(url: str, kind: type[FuploaderError], advice: str) -> None:
        settings = RedisStream(url=url, stream="orders", timeout_seconds=2)  # type: ignore[arg-type]
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
        client.set("orders", "no stream")
        refused(server.url(), SourceRefused, "name another stream")
        client.delete("orders")
    with redis_replica(tmp_path / "replica", server) as replica:
        settings = RedisStream(url=replica.url(), stream="orders")  # type: ignore[arg-type]
        with pytest.raises(SourceUnavailable):
            settings.source(prefetch=1).open()


def test_of_a_cluster_the_node_that_has_the_stream_is_used_and_the_others_name_it(
    tmp_path: Path,
) -> None:
    with redis_cluster(tmp_path) as nodes:
        with nodes[0].client() as client:
            hash_slot = client.cluster("KEYSLOT", "orders")
        owner = nodes[next(n for n, first in ((2, 10923), (1, 5461), (0, 0)) if hash_slot >= first)]
        for node in nodes:
            settings = RedisStream(url=node.url(), stream="orders")  # type: ignore[arg-type]
            source = settings.source(prefetch=10)
            if node is owner:
                bodies = publish(settings.publisher(), 3)
                source.open()
                messages = collect(source, 3)
                assert bodies_of(messages) == bodies
                settle(source, messages)
                source.close()
            else:
                with pytest.raises(SourceRefused) as caught:
                    source.open()
                assert f"{LOOPBACK}:{owner.port}, in the url" in caught.value.hint


def documented() -> list[str]:
    (line,) = re.findall(r"^ACL SETUSER .*$", PAGE.read_text(), re.MULTILINE)
    return [word[1:] for word in line.split() if word[0] == "+"]


def as_user(stream: Stream, commands: list[str]) -> RedisStream:
    user, password = f"user{secrets.token_hex(4)}", secrets.token_hex(8)
    rights = [f"~{stream.name}", *(f"+{one}" for one in commands)]
    stream.client.execute_command("ACL SETUSER", user, "on", f">{password}", *rights)
    stream.client.script_flush()
    return stream.settings(url=stream.server.url_of(user, password))


def test_the_documented_rights_are_enough_and_nothing_more_is_tried(server: RedisServer) -> None:
    stream = Stream(server)
    settings = as_user(stream, documented())
    stream.client.acl_log_reset()
    bodies = publish(settings.publisher(), 5)
    first = settings.source(prefetch=10)
    first.open()
    collect(first, 5)
    first.close()
    second = settings.source(prefetch=10)
    second.open()
    again = collect(second, 5)
    assert bodies_of(again) == bodies
    settle(second, again)
    assert settings.publisher().backlog() == 0
    assert wrong(settings) == []
    second.close()
    assert {entry["object"] for entry in stream.client.acl_log()} <= {"info"}
    stream.client.close()


NOT_ALWAYS = {"client|setname", "client|list", "xgroup|create", "xrange"}


@pytest.mark.parametrize("missing", [one for one in documented() if one not in NOT_ALWAYS])
def test_each_right_that_is_missing_is_met_by_doctor(server: RedisServer, missing: str) -> None:
    stream = Stream(server)
    received(stream.settings(), 0)
    settings = as_user(stream, [one for one in documented() if one != missing])
    with pytest.raises(SourceRefused) as caught:
        list(settings.examine())
    assert "docs/redis-streams.md" in caught.value.hint
    stream.client.close()


def wrong(settings: RedisStream) -> list[Diagnosis]:
    return [one for one in settings.examine() if one.verdict != "good"]
