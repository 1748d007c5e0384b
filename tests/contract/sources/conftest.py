"""Topics of Kafka, and sources that are closed after the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fuploader_dagster.contracts.source import MessageSource
from fuploader_dagster.resources.sources.kafka.settings import Kafka
from tests.contract.sources.kafka_topics import Opened, Topic
from tests.servers.kafka import KafkaServer
from tests.servers.ports import wait_until


@pytest.fixture
def topic(noida_server: KafkaServer) -> Topic:
    return Topic(noida_server)


@pytest.fixture
def four(noida_server: KafkaServer) -> Topic:
    return Topic(noida_server, partitions=4)


@pytest.fixture
def kafka_opened() -> Iterator[Opened]:
    made: list[MessageSource] = []

    def open_one(
        settings: Kafka, name: str = "", prefetch: int = 100, *, let_in: bool = False
    ) -> MessageSource:
        """`let_in`: wait until the group has given it its partitions, or none.

        Nobody else may be polled meanwhile, or noida-db 0.2.3 may never end the rebalance: a member
        that gives up partitions joins again at once, and where that comes before a new member has
        its first answer, both wait for ever. Two bare clients of the library show it too.
        """
        source = settings.source(prefetch=prefetch)
        made.append(source)
        if name:
            source.named(name)
        source.open()
        if let_in:
            wait_until(
                lambda: not source.receive(0, 0.1) and source._let_in.is_set(),
                seconds=60,
                what="a new member of the group",
                diagnose=lambda: "it has no answer",
            )
        return source

    yield open_one
    for source in made:
        source.close()
