"""How a member of a consumer group leaves it, at whatever moment.

The library's `close` is not called: it serves rebalances that were not polled for, and may wait for
ever within one, with Python's lock in its hand, so that the process stands still (docs/decisions,
0024). Here they are served before; then the client ends, because nobody refers to it any more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from fuploader_dagster.resources.sources.kafka.connection import library

GOODBYE_SECONDS = 1.0
_MESSAGES, _POLL_SECONDS = 10_000, 0.02


def leave(consumer: Any, settled: Sequence[Any], let_in: threading.Event, *, stays: bool) -> None:
    """Commit what is settled, serve what waits, and say goodbye.

    To be called in a thread of its own, which has the last reference to the consumer: brokers that
    hang must not hold up a worker that leaves. `let_in`: the group has answered this member.
    `stays`: its membership is static, so that it says no goodbye and keeps its partitions.
    """
    kafka = library()
    with suppress(kafka.KafkaException, RuntimeError):
        if settled:
            consumer.commit(offsets=list(settled), asynchronous=False)
    deadline = time.monotonic() + GOODBYE_SECONDS

    def serve_while(more: Callable[[], Any]) -> None:
        while consumer.consume(_MESSAGES, _POLL_SECONDS) or more():
            if time.monotonic() > deadline:
                break

    with suppress(kafka.KafkaException, RuntimeError):
        serve_while(lambda: not (stays or let_in.is_set()))  # who is just joining cannot leave
        if not stays:
            consumer.unsubscribe()
            serve_while(consumer.assignment)
