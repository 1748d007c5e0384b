"""Fixtures for tests that need a queue or Redis: one server a session, a fresh queue a test.

A test that kills or pauses the session's server brings it back before it ends. Logs stay in
pytest's temporary folder, which keeps those of the last three runs.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import DURABLE, RedisServer


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQServer]:
    """A running RabbitMQ of this test session."""
    server = RabbitMQServer(tmp_path_factory.mktemp("rabbitmq"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A running Redis of this test session."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), *DURABLE)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def fresh_queue(rabbitmq: RabbitMQServer) -> Callable[..., str]:
    """Call it for the name of a new, empty, durable queue: `fresh_queue(queue_type="quorum")`."""

    def make(queue_type: str = "classic", **arguments: object) -> str:
        return new_queue(rabbitmq, queue_type, **arguments)

    return make


def new_queue(server: RabbitMQServer, queue_type: str = "classic", **arguments: object) -> str:
    """Declare a new durable queue and return its name.

    Further arguments are the broker's own, with underscores: `x_max_length=10`.
    """
    name = f"queue-{secrets.token_hex(6)}"
    named = {key.replace("_", "-"): value for key, value in arguments.items()}
    with channel(server) as open_channel:
        open_channel.queue_declare(
            name, durable=True, arguments={"x-queue-type": queue_type, **named}
        )
    return name


def waiting(server: RabbitMQServer, queue: str) -> int:
    """Messages of the queue that nobody has taken at the moment."""
    with channel(server) as open_channel:
        count: int = open_channel.queue_declare(queue, passive=True).method.message_count
        return count


@contextmanager
def channel(server: RabbitMQServer) -> Iterator[BlockingChannel]:
    """A plain channel, to prepare a queue or to look at it."""
    connection = pika.BlockingConnection(pika.URLParameters(server.url))
    try:
        yield connection.channel()
    finally:
        if connection.is_open:
            connection.close()
