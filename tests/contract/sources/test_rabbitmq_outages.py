"""RabbitMQ goes away and comes back: killed, hanging, closing; queues deleted, consumers ended."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

import pytest

from fuploader_dagster.contracts.source import CommittedBatch
from fuploader_dagster.errors import FuploaderError, SourceUnavailable
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQSource
from tests.contract.sources.rabbitmq_sources import collect, on, publish
from tests.servers.ports import LOOPBACK
from tests.servers.queue_fixtures import channel, new_queue, waiting
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.tcp_proxy import TcpProxy


def fails_in_the_end(call: Callable[[], object], seconds: float = 60) -> FuploaderError:
    """Repeat a call until it raises one of our errors."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            call()
        except FuploaderError as error:
            return error
    raise AssertionError(f"no error within {seconds} s")


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_after_a_killed_broker_is_back_everything_unsettled_comes_again(
    rabbitmq: RabbitMQServer, queue_type: str
) -> None:
    queue = new_queue(rabbitmq, queue_type)
    settings = on(rabbitmq, queue)
    source, publisher = settings.source(prefetch=100), settings.publisher()
    publisher.publish((b"%d" % number, {}) for number in range(50))
    source.open()
    messages = collect(source, 50)
    source.settle(CommittedBatch(last=messages[19], messages=20))
    # The broker writes acks down a moment later, and a quorum queue that it made less than a second
    # before it was killed comes back broken for good.
    time.sleep(2)
    rabbitmq.sync_definitions()
    rabbitmq.kill()
    try:
        for call in (
            lambda: source.receive(10, 1),
            lambda: source.settle(CommittedBatch(last=messages[-1], messages=30)),
            source.open,
            publisher.backlog,
            lambda: publisher.publish([(b"x", {})]),
        ):
            with pytest.raises(SourceUnavailable) as caught:
                call()
            assert rabbitmq.password not in str(caught.value)
        assert f"{LOOPBACK}:{rabbitmq.port}" in str(caught.value)
        assert queue in str(caught.value)
        assert "is the broker running" in str(caught.value)
    finally:
        rabbitmq.start()
    publisher.publish([(b"50", {})])
    source.open()
    again = collect(source, 31)
    assert [message.body for message in again] == [b"%d" % number for number in range(20, 51)]
    source.settle(CommittedBatch(last=again[-1], messages=31))
    source.close()
    publisher.close()
    assert waiting(rabbitmq, queue) == 0


def test_a_publisher_that_was_idle_while_the_broker_closed_its_connection_goes_on(
    rabbitmq: RabbitMQServer, queue: str
) -> None:
    publisher = on(rabbitmq, queue).publisher()
    publisher.publish([(b"a", {})])
    rabbitmq.ctl("close_all_connections", "a test does this")
    time.sleep(0.2)
    assert publisher.publish([(b"b", {})]) == 1
    rabbitmq.ctl("close_all_connections", "a test does this")
    time.sleep(0.2)
    assert publisher.backlog() == 2
    publisher.close()


def test_a_connection_that_the_broker_closes_is_an_error_with_its_reason(
    rabbitmq: RabbitMQServer, queue: str, opened: Callable[..., RabbitMQSource]
) -> None:
    source = opened(queue)
    rabbitmq.ctl("close_all_connections", "maintenance")
    error = fails_in_the_end(lambda: source.receive(10, 0.5))
    assert isinstance(error, SourceUnavailable)
    assert "maintenance" in str(error)


def test_a_broker_that_hangs_is_noticed_by_the_heartbeat_and_nothing_waits_for_ever(
    rabbitmq: RabbitMQServer, queue: str
) -> None:
    settings = on(rabbitmq, queue, heartbeat_seconds=2, connect_timeout_seconds=1)
    source = settings.source(prefetch=10)
    source.open()
    rabbitmq.pause()
    try:
        begun = time.monotonic()
        error = fails_in_the_end(lambda: source.receive(10, 1))
        assert isinstance(error, SourceUnavailable)
        assert "heartbeat" in str(error).lower()
        with pytest.raises(SourceUnavailable):
            source.open()
        assert time.monotonic() - begun < 60
    finally:
        rabbitmq.resume()
    source.open()
    source.close()


def test_nobody_waits_for_the_goodbye_of_a_broker_that_hangs(
    rabbitmq: RabbitMQServer, queue: str
) -> None:
    settings = on(rabbitmq, queue, heartbeat_seconds=300)
    source, publisher = settings.source(prefetch=10), settings.publisher()
    source.open()
    assert publisher.publish([(b"one", {})]) == 1
    assert source.receive(10, 10)
    rabbitmq.pause()
    try:
        begun = time.monotonic()
        publisher.close()
        source.close()
        assert time.monotonic() - begun < 60
    finally:
        rabbitmq.resume()
    assert publisher.publish([(b"two", {})]) == 1
    publisher.close()
    source.open()
    received: list[bytes] = []
    while len(received) < 2:  # the broker has taken back what was in our hands
        received += [message.body for message in source.receive(10, 10)]
    assert sorted(received) == [b"one", b"two"]
    source.close()


@pytest.mark.parametrize("busy", [False, True])
def test_receives_without_a_timeout_keep_the_connection_alive(
    rabbitmq: RabbitMQServer, queue: str, opened: Callable[..., RabbitMQSource], busy: bool
) -> None:
    if busy:
        publish(rabbitmq, queue, 100)
    source = opened(queue, heartbeat_seconds=2)
    for _ in range(16):
        time.sleep(0.5)
        source.receive(1, 0)
    publish(rabbitmq, queue, 1)
    assert source.receive(1, 60)


def test_a_consumer_that_holds_messages_for_too_long_may_open_again(
    rabbitmq: RabbitMQServer, queue: str, opened: Callable[..., RabbitMQSource]
) -> None:
    publish(rabbitmq, queue, 3)
    rabbitmq.ctl(
        "eval",
        "application:set_env(rabbit, consumer_timeout, 500), "
        "application:set_env(rabbit, channel_tick_interval, 300).",
    )
    try:
        source = opened(queue)
        collect(source, 3)
        error = fails_in_the_end(lambda: source.receive(1, 0.5))
        assert isinstance(error, SourceUnavailable)
        assert "timed out" in str(error)
    finally:
        rabbitmq.ctl(
            "eval",
            "application:set_env(rabbit, consumer_timeout, 1800000), "
            "application:set_env(rabbit, channel_tick_interval, 60000).",
        )
    source.open()
    assert all(message.redelivered for message in collect(source, 3))


def test_a_deleted_queue_is_said_and_declared_anew_by_open(
    rabbitmq: RabbitMQServer, queue: str, opened: Callable[..., RabbitMQSource]
) -> None:
    source = opened(queue)
    with channel(rabbitmq) as open_channel:
        open_channel.queue_delete(queue)
    error = fails_in_the_end(lambda: source.receive(1, 0.5))
    assert isinstance(error, SourceUnavailable)
    assert "deleted" in str(error)
    source.open()
    publish(rabbitmq, queue, 1)
    assert collect(source, 1)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (struct.pack(">BHI", 1, 1, 0xFFFFFFF0), "announced a frame of 4,294,967,280 bytes"),
        (struct.pack(">BHI", 3, 0, 0xFFFFFFF0), "announced a frame of 4,294,967,280 bytes"),
        (b"HTTP/1.1 400 Bad Request", "unknown type 72"),
        (b"\x08\0\0\0\0\0\0\0", "does not end where it should"),
    ],
)
def test_what_is_no_amqp_closes_the_connection_with_a_sentence_and_nothing_is_lost(
    rabbitmq: RabbitMQServer, queue: str, said: bytes, sentence: str
) -> None:
    publish(rabbitmq, queue, 20)
    with TcpProxy(rabbitmq.port) as proxy:
        url = rabbitmq.url.replace(f":{rabbitmq.port}/", f":{proxy.port}/")
        source = on(rabbitmq, queue, url=url).source(prefetch=10)
        source.open()
        received = collect(source, 10)
        proxy.say(said)
        error = fails_in_the_end(lambda: source.receive(1, 0.5))
        assert isinstance(error, SourceUnavailable)
        assert sentence in str(error)
        source.open()
        again = collect(source, 10)
        assert {message.body for message in again} == {message.body for message in received}
        source.close()


def test_an_acknowledgement_of_what_was_not_received_is_refused_and_nothing_is_lost(
    rabbitmq: RabbitMQServer, queue: str, opened: Callable[..., RabbitMQSource]
) -> None:
    publish(rabbitmq, queue, 20)
    source = opened(queue)
    received = collect(source, 5)
    never = received[-1]._replace(delivery=received[-1].delivery + 3)
    with pytest.raises(SourceUnavailable, match="nothing is lost"):
        source.settle(CommittedBatch(last=never, messages=8))
    source.open()
    assert len(collect(source, 20)) == 20
