"""Queues and messages of every kind on a real broker: what it can deliver is drained or refused."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pika
import pytest

from fuploader_dagster.contracts.source import CommittedBatch, Message
from fuploader_dagster.errors import SourceRefused
from fuploader_dagster.resources.sources.rabbitmq.connection import declared_arguments
from fuploader_dagster.resources.sources.rabbitmq.examination import ENOUGH_DELIVERIES
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQSource
from tests.contract.sources.rabbitmq_sources import collect, on, publish, publish_raw
from tests.properties_for_tests import (
    EVERY_TYPE,
    HEADERS,
    MESSAGE_ID,
    NESTED_LEVELS,
    nested,
    short,
    table,
    with_headers,
    with_message_id,
)
from tests.servers.ports import LOOPBACK, wait_until
from tests.servers.queue_fixtures import channel, new_queue, waiting
from tests.servers.rabbitmq import RabbitMQServer

LARGE = 3 * 2**20
HEXADECIMAL_ID = bytes.fromhex("f47ac10b58cc4372a5670e02b2c3d479")


def settle(source: RabbitMQSource, messages: list[Message]) -> None:
    source.settle(CommittedBatch(last=messages[-1], messages=len(messages)))


# Messages


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_headers_of_every_type_are_delivered_and_described(
    rabbitmq: RabbitMQServer, opened: Callable[..., RabbitMQSource], queue_type: str, large: bool
) -> None:
    queue = new_queue(rabbitmq, queue_type)
    body = bytes(LARGE if large else 10)
    headers = {name.encode(): value for name, (value, _) in EVERY_TYPE.items()}
    encoded = [with_headers({name: value}) for name, value in headers.items()] + [
        struct.pack(">H", HEADERS | MESSAGE_ID) + table(headers) + short(HEXADECIMAL_ID),
        with_message_id(HEXADECIMAL_ID),
        with_headers({b"\xff\xfe": b"V"}),
        with_headers({b"deep": nested(b"F", NESTED_LEVELS), b"after": b"t\x01"}),
        with_headers({b"deep": nested(b"A", NESTED_LEVELS)}),
    ]
    if large:
        encoded = encoded[-5:]
    publish_raw(rabbitmq, queue, [(body, properties) for properties in encoded])
    publish(rabbitmq, queue, 1)
    source = opened(queue)
    messages = collect(source, len(encoded) + 1)
    assert {message.body for message in messages[:-1]} == {body}
    described = [source.describe(message) for message in messages]
    assert msgspec.json.decode(msgspec.json.encode(described)) == described
    if not large:
        for found, (name, (_, expected)) in zip(described, EVERY_TYPE.items(), strict=False):
            assert found["headers"][name] == expected
    everything = described[-6]
    assert everything["headers"] == {name: expected for name, (_, expected) in EVERY_TYPE.items()}
    assert [message.message_id for message in messages[-6:-4]] == [HEXADECIMAL_ID.hex()] * 2
    assert described[-3]["headers"]["after"] is True
    settle(source, messages)
    source.close()
    assert waiting(rabbitmq, queue) == 0


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_what_a_broker_counts_in_headers_can_be_described(
    rabbitmq: RabbitMQServer, opened: Callable[..., RabbitMQSource], queue_type: str
) -> None:
    """`x-death` and `x-delivery-count` are numbers of 64 bits."""
    queue = new_queue(rabbitmq, queue_type)
    first = new_queue(
        rabbitmq, x_message_ttl=1, x_dead_letter_exchange="", x_dead_letter_routing_key=queue
    )
    publish(rabbitmq, first, 1)
    source = opened(queue)
    collect(source, 1)
    source.open()
    (message,) = collect(source, 1)
    headers = msgspec.json.decode(msgspec.json.encode(source.describe(message)))["headers"]
    assert headers["x-death"][0]["queue"] == first
    assert headers["x-death"][0]["count"] == 1
    assert queue_type == "classic" or headers["x-delivery-count"] == 1


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
@pytest.mark.parametrize("commit", [1, 3, 50])
def test_a_large_message_is_acknowledged_only_after_it_was_received(
    rabbitmq: RabbitMQServer,
    opened: Callable[..., RabbitMQSource],
    queue_type: str,
    commit: int,
) -> None:
    queue = new_queue(rabbitmq, queue_type)
    bodies = [b"%d" % number for number in range(40)]
    for at in (0, 7, 8, 39):
        bodies[at] += bytes(LARGE)
    publisher = on(rabbitmq, queue).publisher()
    publisher.publish((body, {}) for body in bodies)
    publisher.close()
    source = opened(queue)
    stored: list[bytes] = []
    while len(stored) < 40:
        batch = source.receive(commit, 15)
        assert batch, f"nothing came after {len(stored)} messages"
        assert [message.body for message in batch] == bodies[len(stored) :][: len(batch)]
        settle(source, batch)
        stored += [message.body for message in batch]
        source.close()  # as if killed: whatever the broker forgot and we have not is lost
        source.open()
    assert stored == bodies
    source.close()
    assert waiting(rabbitmq, queue) == 0


def test_on_a_quiet_queue_nothing_stays_unacknowledged(
    rabbitmq: RabbitMQServer, queue: str, opened: Callable[..., RabbitMQSource]
) -> None:
    bodies = [bytes(LARGE), *(b"%d" % number for number in range(20))]
    publisher = on(rabbitmq, queue).publisher()
    publisher.publish((body, {}) for body in bodies)
    publisher.close()
    source = opened(queue)
    received: list[Message] = []
    while batch := source.receive(5, 2):
        received += batch
        settle(source, batch)
    assert len(received) == 21
    source.receive(0, 0.5)
    listed = rabbitmq.ctl("list_queues", "name", "messages_unacknowledged", "--silent")
    assert f"{queue}\t0" in listed.splitlines()


# Queues


def test_a_stream_is_refused_with_a_sentence_whatever_the_users_rights(
    rabbitmq: RabbitMQServer,
) -> None:
    queue = new_queue(rabbitmq, "stream")
    publish(rabbitmq, queue, 3)
    rabbitmq.ctl("add_user", "stream-reader", "secret")
    rabbitmq.ctl("set_permissions", "stream-reader", "^$", "^$", ".*")
    readers = f"amqp://stream-reader:secret@{LOOPBACK}:{rabbitmq.port}/%2F"
    for url in (rabbitmq.url, readers):
        source = on(rabbitmq, queue, url=url).source(prefetch=10)
        with pytest.raises(SourceRefused, match="it is a stream") as caught:
            source.open()
        assert queue in str(caught.value)


def test_a_queue_that_somebody_consumes_alone_says_so_and_not_the_password(
    rabbitmq: RabbitMQServer, queue: str
) -> None:
    source = on(rabbitmq, queue).source(prefetch=10)
    with channel(rabbitmq) as other:
        other.basic_qos(prefetch_count=1)
        other.basic_consume(queue, lambda *_: None, exclusive=True)
        with pytest.raises(SourceRefused, match="another consumer uses the queue") as caught:
            source.open()
        assert "password" not in str(caught.value)
    source.open()
    source.close()


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_limits_in_hand_work_where_only_one_consumer_is_active(
    rabbitmq: RabbitMQServer, opened: Callable[..., RabbitMQSource], queue_type: str
) -> None:
    queue = new_queue(rabbitmq, queue_type, x_single_active_consumer=True)
    publish(rabbitmq, queue, 200)
    sources = [opened(queue), opened(queue)]
    for source in sources:
        source.limit_in_hand(1)
    received: list[Message] = []
    limit = 1
    while len(received) < 200:
        limit = min(100, 2 * limit)
        came = False
        for source in sources:
            batch = source.receive(20, 1)
            if batch:
                came = True
                received += batch
                settle(source, batch)
                source.limit_in_hand(limit)
        assert came, f"nothing came after {len(received)} messages"
    assert {message.body for message in received} == {b"%d" % number for number in range(200)}
    for source in sources:
        source.close()
    assert waiting(rabbitmq, queue) == 0


def test_a_consumer_that_starts_with_a_limit_of_one_does_not_use_up_the_deliveries_of_others(
    rabbitmq: RabbitMQServer, opened: Callable[..., RabbitMQSource]
) -> None:
    queue = new_queue(rabbitmq, "quorum", x_delivery_limit=3)
    publish(rabbitmq, queue, 50)
    source = on(rabbitmq, queue).source(prefetch=100)
    source.limit_in_hand(1)
    for _ in range(3):  # dies each time with what it has in hand
        source.open()
        collect(source, 1)
        source.close()
    source.limit_in_hand(0)
    source.open()
    source.close()
    assert waiting(rabbitmq, queue) == 50


def test_what_a_slow_broker_has_yet_to_send_is_waited_for_before_a_consumer_ends(
    rabbitmq: RabbitMQServer, tmp_path: Path
) -> None:
    queue = new_queue(rabbitmq, "quorum")
    publish(rabbitmq, queue, 50)
    source = on(rabbitmq, queue).source(prefetch=10)
    source.open()
    first = collect(source, 10)
    go_on = tmp_path / "go on"
    with disk_of_quorum_queues_held(rabbitmq, go_on):
        settle(source, first)
        timer = threading.Timer(1.0, go_on.touch)
        timer.start()
        source.limit_in_hand(0)
        timer.join()
        settle(source, collect(source, 10))
    source.close()
    with channel(rabbitmq) as open_channel:
        next_one, _, _ = open_channel.basic_get(queue)  # type: ignore[attr-defined]
    assert not next_one.redelivered


@contextmanager
def disk_of_quorum_queues_held(rabbitmq: RabbitMQServer, go_on: Path) -> Iterator[None]:
    """Nothing is made durable inside the block until the file `go_on` is there."""
    held = go_on.with_name("held")
    # Ra, which keeps quorum queues, has one process per system that writes the log of all of them.
    writers = '[Name || Name <- registered(), lists:suffix("log_wal", atom_to_list(Name))]'
    rabbitmq.ctl(
        "eval",
        f"""spawn(fun() ->
            [ok = sys:suspend(Name) || Name <- {writers}],
            ok = file:write_file("{held}", <<>>),
            Wait = fun(Again) ->
                case filelib:is_file("{go_on}") of
                    true -> ok;
                    false -> timer:sleep(20), Again(Again)
                end
            end,
            Wait(Wait),
            [ok = sys:resume(Name) || Name <- {writers}]
        end).""",
    )
    try:
        wait_until(
            held.exists,
            seconds=30,
            what="the hold of the quorum queues",
            diagnose=lambda: rabbitmq.log.read_text()[-2000:],
        )
        yield
    finally:
        go_on.touch()


@pytest.mark.parametrize(
    ("queue_type", "version", "limit"),
    [
        ("quorum", "4.0.2", -1),
        ("quorum", "4.3.0-rc.1", -1),
        ("quorum", "10.1", -1),
        ("quorum", "3.13.7", None),
        ("quorum", "", None),
        ("classic", "4.1.0", None),
    ],
)
def test_a_quorum_queue_that_we_declare_has_no_delivery_limit_where_the_broker_takes_none(
    queue_type: str, version: str, limit: int | None
) -> None:
    arguments = declared_arguments(queue_type, version)
    assert arguments.pop("x-queue-type") == queue_type
    assert arguments == ({} if limit is None else {"x-delivery-limit": limit})


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [(ENOUGH_DELIVERIES - 1, "warning"), (ENOUGH_DELIVERIES, "good"), (None, "good")],
)
def test_doctor_warns_of_a_delivery_limit_that_is_too_low(
    rabbitmq: RabbitMQServer, limit: int | None, verdict: str
) -> None:
    arguments = {} if limit is None else {"x_delivery_limit": limit}
    queue = new_queue(rabbitmq, "quorum", **arguments)
    (found,) = [one for one in on(rabbitmq, queue).examine() if one.check == "queue type"]
    assert found.verdict == verdict
    if verdict == "warning":
        assert f"{ENOUGH_DELIVERIES} or more" in found.hint
        assert "policy" in found.hint


@pytest.mark.parametrize("password", ["in#co", "in?co", "a/b", "a[b", "a]b", "1/b", "#", "/", "?"])
def test_a_password_that_must_be_percent_encoded_says_how(
    rabbitmq: RabbitMQServer, password: str
) -> None:
    url = f"amqp://user:{password}@127.0.0.1:5672/vhost"
    with pytest.raises(ValueError, match=r"%2F %3F %23 %40") as caught:
        on(rabbitmq, "q", url=url)
    assert f":{password}@" not in str(caught.value)


def test_percent_encoded_passwords_and_spaces_around_a_url_are_read(
    rabbitmq: RabbitMQServer,
) -> None:
    settings = on(rabbitmq, "q", url=" amqp://u:%23%2F%3F%40%3A%5B%5D%25@h/%2Fa%2Fb\n")
    address = settings.address()
    assert (address.password, address.vhost) == ("#/?@:[]%", "/a/b")
    assert on(rabbitmq, "q", url="amqp://h/\n").address().vhost == "/"
    assert pika.URLParameters("amqp://u:%23%2F@h/%2Fa").credentials.password == "#/"
