"""The queues that a drain is measured on: a backlog in each, the source's settings, what is left.

The Redis of the queues is another server than that of the states, so that its CPU is the queue's.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Literal

from confluent_kafka import Producer

from benchmarks.documents import documents_of
from benchmarks.ground import KAFKA_VARIABLE, QUEUE_REDIS_VARIABLE, RABBITMQ_VARIABLE, Ground
from tests.servers.kafka import admin, kafka_settings, new_topic

Kind = Literal["rabbitmq", "redis_stream", "redis_list", "kafka"]
_PARTITIONS = 6
_ADD_AT_ONCE = 1_000


@contextmanager
def backlog(ground: Ground, kind: Kind, payload_bytes: int, messages: int) -> Iterator[str]:
    """The name of a queue with so many messages, gone afterwards."""
    if kind == "rabbitmq":
        with ground.backlog(payload_bytes, messages) as queue:
            yield queue
        return
    if kind == "kafka":
        topic = new_topic(ground.kafka.bootstrap, _PARTITIONS)
        _produce(ground, topic, documents_of(payload_bytes).messages(messages))
        try:
            yield topic
        finally:
            client = admin(ground.kafka.bootstrap)
            client.delete_topics([topic])[topic].result(60)
        return
    name = f"{kind}-{secrets.token_hex(4)}"
    with ground.queue_redis.client() as client:
        bodies = (body for body, _ in documents_of(payload_bytes).messages(messages))
        try:
            while some := list(itertools.islice(bodies, _ADD_AT_ONCE)):
                with client.pipeline(transaction=False) as adding:
                    for body in some:
                        if kind == "redis_stream":
                            adding.xadd(name, {"body": body})
                        else:
                            adding.lpush(name, body)
                    adding.execute()
            yield name
        finally:
            client.flushdb()


def _produce(ground: Ground, topic: str, messages: Iterable[tuple[bytes, Any]]) -> None:
    failed: list[Any] = []
    producer = Producer({"bootstrap.servers": ground.kafka.bootstrap, "linger.ms": 20})
    for number, (body, _) in enumerate(messages):
        producer.produce(
            topic,
            body,
            partition=number % _PARTITIONS,
            on_delivery=lambda error, _: failed.append(error) if error else None,
        )
        if number % _ADD_AT_ONCE == 0:
            producer.flush(60)
    if producer.flush(60) or failed:
        raise RuntimeError(f"{len(failed)} messages were not published: {failed[:1]}")


def source_of(kind: Kind, queue: str) -> dict[str, Any]:
    """The source of a pipeline, as in fuploader.yaml."""
    if kind == "rabbitmq":
        return {"kind": kind, "url": {"env": RABBITMQ_VARIABLE}, "queue": queue}
    if kind == "kafka":
        settings = kafka_settings(os.environ[KAFKA_VARIABLE], queue)
        return {"kind": kind, **settings.model_dump(mode="json", exclude_unset=True)}
    field = "stream" if kind == "redis_stream" else "key"
    return {"kind": kind, "url": {"env": QUEUE_REDIS_VARIABLE}, field: queue}


def waiting(ground: Ground, kind: Kind, queue: str) -> int:
    if kind == "rabbitmq":
        return ground.waiting(queue)
    if kind == "kafka":
        publisher = kafka_settings(ground.kafka.bootstrap, queue).publisher()
        with closing(publisher):
            return publisher.backlog()
    with ground.queue_redis.client() as client:
        if kind == "redis_stream":
            return int(client.xlen(queue))
        in_hand = client.scan_iter(f"{{{queue}}}:fuploader:in-hand:*")
        return sum(int(client.llen(key)) for key in (queue, *in_hand))


def server_session(ground: Ground, kind: Kind) -> int:
    """The session of the queue's server."""
    if kind == "rabbitmq":
        return ground.broker_session
    if kind == "kafka":
        return ground.kafka.pid
    with ground.queue_redis.client() as client:
        return int(client.info("server")["process_id"])
