"""The queues that a soak can run on: their server, the source's settings, a producer's publisher.

`make soak SOURCE=redis_list`; the default is `rabbitmq`. Publishers and counts are made without the
code under test. The server of a Redis queue is not that of the states, which comes back empty at
times. What the broker of a Kafka queue cannot do is said at its class.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import redis
from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import OffsetSpec

from tests.servers.kafka import LARGE_BYTES, KafkaServer, admin, create, noida
from tests.servers.queue_fixtures import channel
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import DURABLE, RedisServer
from tests.soak.plan import DELIVERY_LIMIT, LIMITED, PLAIN
from tests.soak.publisher import LOST, Outgoing, Publisher

ARGUMENTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    LIMITED: {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT},
}
"""Of RabbitMQ's queues."""


class Server(Protocol):
    """What the soak kills and starts again."""

    @property
    def running(self) -> bool: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...


class PublishesToQueues(Protocol):
    """One connection, made again when it was lost."""

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """Returns when all of them are confirmed; else raises one of `Queues.lost`."""

    def longest(self, queues: Sequence[str]) -> int:
        """How many messages wait in the longest of the queues. Raises one of `Queues.lost`."""

    def close(self) -> None: ...


class Queues(ABC):
    """A server with the queues of all pipelines, each named as its pipeline."""

    name: str
    server: Server
    lost: tuple[type[BaseException], ...]
    """What is raised when the server goes away."""
    most_workers: int = 2
    """Of one pipeline."""

    @abstractmethod
    def declare(self, names: Sequence[str]) -> None:
        """Once, when the server has started for the first time."""

    @abstractmethod
    def source(self, name: str) -> dict[str, Any]:
        """The source of this pipeline, as in fuploader.yaml."""

    @abstractmethod
    def variables(self) -> dict[str, str]:
        """What the environment has for that."""

    @abstractmethod
    def publisher(self) -> PublishesToQueues: ...

    @abstractmethod
    def waiting(self, names: Sequence[str]) -> Mapping[str, int]:
        """What is in each of the queues, or in workers' hands."""


class RabbitMQQueues(Queues):
    """A classic queue, and a quorum queue that drops what was delivered too often."""

    name = "RabbitMQ"
    lost = LOST

    def __init__(self, folder: Path) -> None:
        self.server: RabbitMQServer = RabbitMQServer(folder)

    def declare(self, names: Sequence[str]) -> None:
        with channel(self.server) as open_channel:
            for name in names:
                open_channel.queue_declare(name, durable=True, arguments=ARGUMENTS[name])
        self.server.sync_definitions()

    def source(self, name: str) -> dict[str, Any]:
        quorum = {"queue_type": "quorum", "heartbeat_seconds": 4} if name == LIMITED else {}
        return {"kind": "rabbitmq", "url": {"env": "RABBITMQ_URL"}, "queue": name, **quorum}

    def variables(self) -> dict[str, str]:
        return {"RABBITMQ_URL": self.server.url}

    def publisher(self) -> Publisher:
        return Publisher(self.server.url)

    def waiting(self, names: Sequence[str]) -> Mapping[str, int]:
        queued = self.server.ctl("list_queues", "name", "messages").split()
        return {name: int(queued[queued.index(name) + 1]) for name in names}


class _RedisQueues(Queues):
    lost = (redis.RedisError, OSError)

    def __init__(self, folder: Path) -> None:
        self.server: RedisServer = RedisServer(folder, *DURABLE)

    def declare(self, names: Sequence[str]) -> None:
        """Made by the first message."""

    def variables(self) -> dict[str, str]:
        return {"QUEUE_REDIS_URL": self.server.url()}

    def publisher(self) -> _RedisPublisher:
        return _RedisPublisher(self)

    def waiting(self, names: Sequence[str]) -> Mapping[str, int]:
        with self.server.client() as client:
            return {name: self.count(client, name) for name in names}

    @abstractmethod
    def add(self, client: redis.Redis, one: Outgoing) -> None: ...

    @abstractmethod
    def count(self, client: redis.Redis, name: str) -> int: ...


class _RedisPublisher:
    """Headers of AMQP are left out."""

    def __init__(self, queues: _RedisQueues) -> None:
        self._queues, self._client = queues, queues.server.client()

    def publish(self, messages: Sequence[Outgoing]) -> None:
        with self._client.pipeline(transaction=True) as adding:
            for one in messages:
                self._queues.add(adding, one)
            adding.execute()

    def longest(self, queues: Sequence[str]) -> int:
        return max(self._queues.count(self._client, name) for name in queues)

    def close(self) -> None:
        self._client.close()


class RedisStreamQueues(_RedisQueues):
    """A stream of each pipeline."""

    name = "Redis of the queues"

    def source(self, name: str) -> dict[str, Any]:
        return {"kind": "redis_stream", "url": {"env": "QUEUE_REDIS_URL"}, "stream": name}

    def add(self, client: redis.Redis, one: Outgoing) -> None:
        client.xadd(one.queue, {"body": one.body})

    def count(self, client: redis.Redis, name: str) -> int:
        return int(client.xlen(name))


class RedisListQueues(_RedisQueues):
    """A list of each pipeline."""

    name = "Redis of the queues"

    def source(self, name: str) -> dict[str, Any]:
        return {"kind": "redis_list", "url": {"env": "QUEUE_REDIS_URL"}, "key": name}

    def add(self, client: redis.Redis, one: Outgoing) -> None:
        client.lpush(one.queue, one.body)

    def count(self, client: redis.Redis, name: str) -> int:
        in_hand = client.scan_iter(f"{{{name}}}:fuploader:in-hand:*", count=1_000)
        return sum(int(client.llen(key)) for key in (name, *in_hand))


class NotConfirmed(Exception):
    """The broker did not take a message in time."""


class _StoppedInOrder(KafkaServer):
    def __init__(self, of: KafkaServer) -> None:
        super().__init__(of.name, of.folder, of.command)
        self.publishing = threading.Lock()

    def stop(self) -> None:
        with self.publishing:
            super().stop()

    def kill(self) -> None:
        self.stop()


class KafkaQueues(Queues):
    """A topic of each pipeline, on noida-db 0.2.3.

    It loses what it confirmed in the last seconds when it is killed, and what it confirms while it
    stops, so it is stopped in good order when nobody publishes. Where the leader of a group is
    killed and comes back, it gives a partition to two workers, so a pipeline has one.
    """

    name = "Kafka"
    lost = (KafkaException, NotConfirmed)
    most_workers = 1
    _PARTITIONS = 3

    def __init__(self, folder: Path) -> None:
        self.server: _StoppedInOrder = _StoppedInOrder(noida(folder))

    def declare(self, names: Sequence[str]) -> None:
        for name in names:
            largest = {"max.message.bytes": str(LARGE_BYTES)}
            create(self.server.bootstrap, name, self._PARTITIONS, largest)

    def source(self, name: str) -> dict[str, Any]:
        return {
            "kind": "kafka",
            "bootstrap_servers": self.server.bootstrap,
            "topic": name,
            "group": name,
            "session_timeout_seconds": 6,
        }

    def variables(self) -> dict[str, str]:
        return {}

    def publisher(self) -> _KafkaPublisher:
        return _KafkaPublisher(self)

    def waiting(self, names: Sequence[str]) -> Mapping[str, int]:
        client, waiting = admin(self.server.bootstrap), {}
        for name in names:
            group = client.list_consumer_group_offsets([ConsumerGroupTopicPartitions(name)])
            committed = {
                one.partition: one.offset
                for one in group[name].result(10).topic_partitions
                if one.topic == name
            }
            places = [TopicPartition(name, number) for number in range(self._PARTITIONS)]
            ends = client.list_offsets(dict.fromkeys(places, OffsetSpec.latest()))
            waiting[name] = sum(
                end.result(10).offset - max(0, committed.get(place.partition, 0))
                for place, end in ends.items()
            )
        return waiting


class _KafkaPublisher:
    """What is not confirmed is not sent again: it would be there twice."""

    def __init__(self, queues: KafkaQueues) -> None:
        self._queues = queues
        self._producer: Producer | None = None

    def publish(self, messages: Sequence[Outgoing]) -> None:
        with self._queues.server.publishing:
            self._publish(messages)

    def _publish(self, messages: Sequence[Outgoing]) -> None:
        if self._producer is None:
            self._producer = Producer(
                {
                    "bootstrap.servers": self._queues.server.bootstrap,
                    "acks": "all",
                    "retries": 0,
                    "message.max.bytes": LARGE_BYTES,
                    "message.timeout.ms": 5_000,
                    "log_level": 0,
                }
            )
        confirmed: list[Any] = []
        for one in messages:
            self._producer.produce(
                one.queue,
                one.body,
                on_delivery=lambda error, _: confirmed.append(None) if error is None else None,
            )
        left = self._producer.flush(10)
        if left or len(confirmed) < len(messages):
            self.close()
            raise NotConfirmed(f"{len(messages) - len(confirmed)} messages")

    def longest(self, queues: Sequence[str]) -> int:
        return max(self._queues.waiting(queues).values())

    def close(self) -> None:
        if self._producer is not None:
            self._producer.purge()
            self._producer = None


QUEUES: dict[str, type[Queues]] = {
    "rabbitmq": RabbitMQQueues,
    "redis_stream": RedisStreamQueues,
    "redis_list": RedisListQueues,
    "kafka": KafkaQueues,
}
"""By the name that `SOURCE` gives. Each is made with a folder."""
