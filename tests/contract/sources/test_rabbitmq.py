"""What RabbitMQ does alone: it refuses, it has queues of every kind, it speaks TLS."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pika
import pytest

from fuploader_dagster.contracts.source import CommittedBatch
from fuploader_dagster.errors import BadMessage, SourceRefused, SourceUnavailable
from fuploader_dagster.resources.sources.rabbitmq.deliveries import take_deliveries
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ, RabbitMQSource
from tests.contract.sources.rabbitmq_sources import collect, on, publish
from tests.servers.ports import LOOPBACK, free_port
from tests.servers.queue_fixtures import channel, new_queue, waiting
from tests.servers.rabbitmq import RabbitMQServer

# The broker refuses


def test_a_wrong_password_needs_a_person_and_is_not_shown(
    rabbitmq: RabbitMQServer, queue: str
) -> None:
    settings = RabbitMQ.model_validate(
        {
            "host": LOOPBACK,
            "port": rabbitmq.port,
            "user": rabbitmq.user,
            "password": "wrong-secret",
            "queue": queue,
        }
    )
    with pytest.raises(SourceRefused, match="check user, password") as caught:
        settings.source(prefetch=1).open()
    assert "wrong-secret" not in str(caught.value)
    assert rabbitmq.user in str(caught.value)


def test_an_unknown_vhost_needs_a_person(rabbitmq: RabbitMQServer) -> None:
    url = rabbitmq.url.replace("%2F", "nowhere")
    with pytest.raises(SourceRefused, match="vhost nowhere"):
        on(rabbitmq, "q", url=url).source(prefetch=1).open()


def test_a_missing_queue_needs_a_person_when_it_is_not_to_be_declared(
    rabbitmq: RabbitMQServer,
) -> None:
    settings = on(rabbitmq, "never-declared", declare=False)
    for call in (settings.source(prefetch=1).open, settings.publisher().backlog):
        with pytest.raises(SourceRefused, match="declare: true"):
            call()


def test_missing_rights_need_a_person(rabbitmq: RabbitMQServer, queue: str) -> None:
    rabbitmq.ctl("add_user", "reader", "reader-secret")
    rabbitmq.ctl("set_permissions", "reader", "^$", "^$", "^$")
    url = f"amqp://reader:reader-secret@{LOOPBACK}:{rabbitmq.port}/%2F"
    with pytest.raises(SourceRefused, match="permissions") as caught:
        on(rabbitmq, queue, url=url).source(prefetch=1).open()
    assert "reader-secret" not in str(caught.value)


def test_an_unreachable_address_is_said(rabbitmq: RabbitMQServer) -> None:
    port = free_port()
    settings = RabbitMQ(host=LOOPBACK, port=port, queue="q")
    with pytest.raises(SourceUnavailable, match=f"{LOOPBACK}:{port}.*refused"):
        settings.source(prefetch=1).open()
    with pytest.raises(SourceUnavailable, match=r"nowhere\.invalid"):
        RabbitMQ(host="nowhere.invalid", queue="q").source(prefetch=1).open()


def test_a_server_that_accepts_and_says_nothing_is_an_error_after_the_timeout() -> None:
    with socket.socket() as silent:
        silent.bind((LOOPBACK, 0))
        silent.listen(1)
        settings = RabbitMQ(
            host=LOOPBACK, port=silent.getsockname()[1], queue="q", connect_timeout_seconds=0.5
        )
        begun = time.monotonic()
        with pytest.raises(SourceUnavailable):
            settings.source(prefetch=1).open()
        assert time.monotonic() - begun < 60


# Queues of every kind


@pytest.mark.parametrize("existing", ["classic", "quorum"])
@pytest.mark.parametrize("configured", ["classic", "quorum"])
def test_a_queue_that_exists_is_used_whatever_its_type(
    rabbitmq: RabbitMQServer,
    opened: Callable[..., RabbitMQSource],
    existing: str,
    configured: str,
) -> None:
    queue = new_queue(rabbitmq, existing, x_max_length=1_000)
    source = opened(queue, queue_type=configured)
    publish(rabbitmq, queue, 1)
    assert collect(source, 1)


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_missing_queue_is_declared_durable_with_the_configured_type(
    rabbitmq: RabbitMQServer, opened: Callable[..., RabbitMQSource], queue_type: str
) -> None:
    queue = f"declared-{queue_type}"
    opened(queue, queue_type=queue_type)
    listed = rabbitmq.ctl("list_queues", "name", "durable", "type", "--silent")
    row = next(line for line in listed.splitlines() if line.startswith(f"{queue}\t"))
    assert row.split("\t")[1:] == ["true", queue_type]


@pytest.mark.parametrize("last_is_dead", [False, True])
@pytest.mark.parametrize("all_are_dead", [False, True])
def test_rejected_dead_letters_reach_the_brokers_own_dead_letter_queue(
    rabbitmq: RabbitMQServer,
    opened: Callable[..., RabbitMQSource],
    last_is_dead: bool,
    all_are_dead: bool,
) -> None:
    graveyard = new_queue(rabbitmq)
    queue = new_queue(rabbitmq, x_dead_letter_exchange="", x_dead_letter_routing_key=graveyard)
    publish(rabbitmq, queue, 20)
    source = opened(queue, reject_dead_letters=True)
    messages = collect(source, 20)
    batch = messages[:10]
    dead = batch if all_are_dead else [batch[2], batch[9 if last_is_dead else 5]]
    source.settle(CommittedBatch(last=batch[-1], messages=10, dead_letters=dead))
    source.settle(CommittedBatch(last=messages[-1], messages=10))
    source.receive(0, 0.2)
    source.close()
    assert waiting(rabbitmq, queue) == 0
    buried = opened(graveyard)
    assert {message.body for message in collect(buried, len(dead))} == {m.body for m in dead}
    assert buried.receive(1, 0.2) == []


def test_headers_of_every_kind_are_described_as_json_values(
    rabbitmq: RabbitMQServer, queue: str, opened: Callable[..., RabbitMQSource]
) -> None:
    publisher = on(rabbitmq, queue).publisher()
    publisher.publish([(b"x", {"text": b"plain", "raw": b"\xff\x00", "ratio": 0.5})])
    with pytest.raises(BadMessage, match="object"):
        publisher.publish([(b"x", {"bad": object()})])
    publisher.close()
    source = opened(queue)
    (message,) = collect(source, 1)
    assert source.describe(message) == {
        "headers": {"text": "plain", "raw": {"base64": "/wA="}, "ratio": 0.5},
        "delivery_mode": 2,
    }


# Publishing


def test_a_message_that_finds_no_queue_is_an_error(rabbitmq: RabbitMQServer, queue: str) -> None:
    publisher = on(rabbitmq, queue).publisher()
    publisher.publish([(b"x", {})])
    with channel(rabbitmq) as open_channel:
        open_channel.queue_delete(queue)
    with pytest.raises(SourceRefused, match="deleted"):
        publisher.publish([(b"y", {})])
    assert publisher.publish([(b"z", {})]) == 1
    publisher.close()


def test_messages_that_a_full_queue_refuses_are_an_error(rabbitmq: RabbitMQServer) -> None:
    queue = new_queue(rabbitmq, x_max_length=10, x_overflow="reject-publish")
    publisher = on(rabbitmq, queue).publisher()
    with pytest.raises(SourceUnavailable, match="length limit"):
        publisher.publish((b"x", {}) for _ in range(500))
    publisher.close()


def test_a_publisher_that_the_broker_blocks_says_so_after_its_timeout(
    rabbitmq: RabbitMQServer, queue: str
) -> None:
    publisher = on(rabbitmq, queue, blocked_timeout_seconds=1).publisher()
    rabbitmq.ctl("set_vm_memory_high_watermark", "0.000001")
    try:
        with pytest.raises(SourceUnavailable, match="alarm"):
            publisher.publish((b"x" * 1_000, {}) for _ in range(5_000))
    finally:
        rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
    assert publisher.publish([(b"y", {})]) == 1
    publisher.close()


def test_an_error_in_the_callers_messages_leaves_the_publisher_usable(
    rabbitmq: RabbitMQServer, queue: str
) -> None:
    def broken() -> Iterator[tuple[bytes, dict[str, object]]]:
        yield b"a", {}
        raise ValueError("the caller's own")

    publisher = on(rabbitmq, queue).publisher()
    with pytest.raises(ValueError, match="the caller's own"):
        publisher.publish(broken())
    assert publisher.publish([(b"b", {})]) == 1
    publisher.close()


# TLS


def test_amqps_works_with_the_brokers_certificate_and_not_without(
    rabbitmq: RabbitMQServer, queue: str
) -> None:
    url = rabbitmq.url.replace("amqp:", "amqps:").replace(
        f":{rabbitmq.port}/", f":{rabbitmq.tls_port}/"
    )
    settings = on(rabbitmq, queue, url=url, ca_file=rabbitmq.ca_file)
    publisher, source = settings.publisher(), settings.source(prefetch=10)
    publisher.publish([(b"x" * 100_000, {})])
    source.open()
    assert collect(source, 1)[0].body == b"x" * 100_000
    source.close()
    publisher.close()
    with pytest.raises(SourceRefused, match="set ca_file"):
        on(rabbitmq, queue, url=url).source(prefetch=1).open()
    with pytest.raises(SourceRefused, match="PEM"):
        on(rabbitmq, queue, url=url, ca_file="/nowhere.pem").source(prefetch=1).open()


def test_a_port_that_speaks_the_other_protocol_is_hinted_at(rabbitmq: RabbitMQServer) -> None:
    for port, tls in ((rabbitmq.tls_port, False), (rabbitmq.port, True)):
        settings = RabbitMQ(host=LOOPBACK, port=port, tls=tls, queue="q")
        with pytest.raises(SourceUnavailable, match="belong together"):
            settings.source(prefetch=1).open()


def test_the_locked_pika_lets_deliveries_be_taken_from_its_socket(rabbitmq: RabbitMQServer) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq.url))
    try:
        take_deliveries(connection, 1, print, 0)
    finally:
        connection.close()
