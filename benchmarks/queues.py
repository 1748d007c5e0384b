"""The queues that a drain is measured on: a backlog in each, the source's settings, what is left.

The Redis of the queues is another server than that of the states, so that its CPU is the queue's.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from benchmarks.documents import documents_of
from benchmarks.ground import QUEUE_REDIS_VARIABLE, RABBITMQ_VARIABLE, Ground

Kind = Literal["rabbitmq", "redis_stream", "redis_list"]
_ADD_AT_ONCE = 1_000


@contextmanager
def backlog(ground: Ground, kind: Kind, payload_bytes: int, messages: int) -> Iterator[str]:
    """The name of a queue with so many messages, gone afterwards."""
    if kind == "rabbitmq":
        with ground.backlog(payload_bytes, messages) as queue:
            yield queue
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


def source_of(kind: Kind, queue: str) -> dict[str, Any]:
    """The source of a pipeline, as in fuploader.yaml."""
    if kind == "rabbitmq":
        return {"kind": kind, "url": {"env": RABBITMQ_VARIABLE}, "queue": queue}
    field = "stream" if kind == "redis_stream" else "key"
    return {"kind": kind, "url": {"env": QUEUE_REDIS_VARIABLE}, field: queue}


def waiting(ground: Ground, kind: Kind, queue: str) -> int:
    if kind == "rabbitmq":
        return ground.waiting(queue)
    with ground.queue_redis.client() as client:
        if kind == "redis_stream":
            return int(client.xlen(queue))
        in_hand = client.scan_iter(f"{{{queue}}}:fuploader:in-hand:*")
        return sum(int(client.llen(key)) for key in (queue, *in_hand))


def server_session(ground: Ground, kind: Kind) -> int:
    """The session of the queue's server."""
    if kind == "rabbitmq":
        return ground.broker_session
    with ground.queue_redis.client() as client:
        return int(client.info("server")["process_id"])
