"""Sources and publishers on the session's RabbitMQ, for the tests of it alone."""

from __future__ import annotations

import time
from typing import Any

import pika

from fuploader_dagster.contracts.source import Message
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ, RabbitMQSource
from tests.servers.queue_fixtures import channel
from tests.servers.rabbitmq import RabbitMQServer


def on(server: RabbitMQServer, queue: str, **others: object) -> RabbitMQ:
    return RabbitMQ.model_validate({"url": server.url, "queue": queue, **others})


def publish(server: RabbitMQServer, queue: str, count: int) -> None:
    publisher = on(server, queue).publisher()
    publisher.publish((b"%d" % number, {}) for number in range(count))
    publisher.close()


def collect(source: RabbitMQSource, count: int) -> list[Message]:
    messages: list[Message] = []
    deadline = time.monotonic() + 60
    while len(messages) < count:
        assert time.monotonic() < deadline, f"only {len(messages)} of {count} messages came"
        messages += source.receive(count - len(messages), 0.5)
    return messages


class _Encoded:
    """Properties of any bytes, in the place where pika wants its own."""

    INDEX = pika.spec.BasicProperties.INDEX

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded

    def encode(self) -> list[bytes]:
        return [self._encoded]


def publish_raw(server: RabbitMQServer, queue: str, messages: list[tuple[bytes, bytes]]) -> None:
    """Publish (body, encoded properties) pairs, confirmed."""
    with channel(server) as open_channel:
        open_channel.confirm_delivery()
        for body, encoded in messages:
            properties: Any = _Encoded(encoded)
            open_channel.basic_publish("", queue, body, properties)
