"""Topics of Kafka, and sources that are closed after the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fuploader_dagster.contracts.source import MessageSource
from fuploader_dagster.resources.sources.kafka.settings import Kafka
from tests.contract.sources.kafka_topics import Opened, Topic
from tests.servers.kafka import KafkaServer


@pytest.fixture
def topic(noida_server: KafkaServer) -> Topic:
    return Topic(noida_server)


@pytest.fixture
def four(noida_server: KafkaServer) -> Topic:
    return Topic(noida_server, partitions=4)


@pytest.fixture
def kafka_opened() -> Iterator[Opened]:
    made: list[MessageSource] = []

    def open_one(settings: Kafka, name: str = "", prefetch: int = 100) -> MessageSource:
        source = settings.source(prefetch=prefetch)
        made.append(source)
        if name:
            source.named(name)
        source.open()
        return source

    yield open_one
    for source in made:
        source.close()
