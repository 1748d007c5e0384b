"""The limit of the broker and its client: receive, and one multiple ack per 500, nothing else.

Settings come as JSON in BENCH_SETTINGS: `url`, `queue`, `messages`, `prefetch`. Prints seconds and
CPU seconds from the first message to the last.
"""

from __future__ import annotations

import json
import os
import resource
import time
from typing import Any

import pika

ACK_EVERY = 500


def main() -> None:
    settings = json.loads(os.environ["BENCH_SETTINGS"])
    messages = settings["messages"]
    connection = pika.BlockingConnection(pika.URLParameters(settings["url"]))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=settings["prefetch"])
    received = size = 0
    started = started_cpu = 0.0

    def collect(_channel: object, method: Any, _properties: object, body: bytes) -> None:
        nonlocal received, size, started, started_cpu
        if not received:
            started, started_cpu = time.monotonic(), _cpu_seconds()
        received += 1
        size += len(body)
        if received % ACK_EVERY == 0 or received == messages:
            channel.basic_ack(method.delivery_tag, multiple=True)

    channel.basic_consume(settings["queue"], collect)
    while received < messages:
        connection.process_data_events(1.0)
    seconds, cpu = time.monotonic() - started, _cpu_seconds() - started_cpu
    connection.close()
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "bytes": size}))


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
