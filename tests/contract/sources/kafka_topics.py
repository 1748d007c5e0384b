"""Topics of Kafka for tests, looked at by plain clients, and waiting for rebalances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from fuploader_dagster.contracts.source import Message, MessageSource
from fuploader_dagster.resources.sources.kafka.settings import Kafka
from tests.servers.kafka import KafkaServer, admin, create, kafka_settings, new_topic
from tests.servers.ports import wait_until

Opened = Callable[..., MessageSource]
"""Of settings, a worker's name, a prefetch, and whether to wait until the group has let it in."""
Record = tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]], int]
"""Value, key, headers, partition."""


class Topic:
    """A new topic on a server, looked at by plain clients."""

    def __init__(self, server: KafkaServer, partitions: int = 1) -> None:
        self.server = server.bootstrap
        self.partitions = partitions
        self.name = new_topic(self.server, partitions)

    def settings(self, **more: Any) -> Kafka:
        return kafka_settings(self.server, self.name, **more)

    def produce(self, *records: Record) -> None:
        failed: list[Any] = []
        producer = Producer({"bootstrap.servers": self.server, "log_level": 0})
        for value, key, headers, partition in records:
            producer.produce(
                self.name,
                value,
                key=key,
                headers=headers,
                partition=partition,
                on_delivery=lambda error, _: failed.append(error) if error else None,
            )
        assert (producer.flush(30), failed) == (0, [])

    def fill(self, each: int) -> list[bytes]:
        """So many messages in each partition."""
        records: list[Record] = [
            (b"%d-%d" % (partition, number), None, [], partition)
            for number in range(each)
            for partition in range(self.partitions)
        ]
        self.produce(*records)
        return [value for value, *_ in records if value is not None]

    def committed(self) -> list[int]:
        with self._consumer() as consumer:
            places = [TopicPartition(self.name, number) for number in range(self.partitions)]
            return [one.offset for one in consumer.committed(places, timeout=10)]

    def commit(self, offset: int, partition: int = 0) -> None:
        with self._consumer() as consumer:
            place = TopicPartition(self.name, partition, offset)
            consumer.commit(offsets=[place], asynchronous=False)

    def members(self) -> dict[str, set[int]]:
        """Who is in the group, and which partitions each has."""
        group = self.settings().group
        client = admin(self.server)
        found = client.describe_consumer_groups([group])[group].result(30)
        return {
            str(one.group_instance_id): {
                place.partition for place in one.assignment.topic_partitions
            }
            for one in found.members
        }

    def recreate(self) -> None:
        client = admin(self.server)
        client.delete_topics([self.name])[self.name].result(30)
        create(self.server, self.name, self.partitions)

    def _consumer(self) -> Any:
        group = self.settings().group
        return _Closing({"bootstrap.servers": self.server, "group.id": group, "log_level": 0})


class _Closing:
    def __init__(self, configuration: dict[str, Any]) -> None:
        self._consumer = Consumer(configuration)

    def __enter__(self) -> Consumer:
        return self._consumer

    def __exit__(self, *_: object) -> None:
        self._consumer.close()


def ends(ready: Callable[[], bool], diagnose: Callable[[], str]) -> None:
    """Wait for the end of a rebalance."""
    wait_until(ready, seconds=60, what="the rebalance", diagnose=diagnose)


def places_of(messages: list[Message]) -> set[int]:
    return {message.attributes.partition() for message in messages}
