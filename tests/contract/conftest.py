"""Fixtures of the tests of RabbitMQ alone: a queue, and sources on it that are closed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQSource
from tests.contract.sources.rabbitmq_sources import on
from tests.servers.queue_fixtures import new_queue
from tests.servers.rabbitmq import RabbitMQServer


@pytest.fixture
def queue(rabbitmq: RabbitMQServer) -> str:
    return new_queue(rabbitmq)


@pytest.fixture
def opened(rabbitmq: RabbitMQServer) -> Iterator[Callable[..., RabbitMQSource]]:
    """Call it for an open source, which is closed after the test."""
    made: list[RabbitMQSource] = []

    def make(queue: str, *, prefetch: int = 100, **settings: object) -> RabbitMQSource:
        made.append(on(rabbitmq, queue, **settings).source(prefetch=prefetch))
        made[-1].open()
        return made[-1]

    yield make
    for source in made:
        source.close()
