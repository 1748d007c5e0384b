"""Reads a queue of Redis or Kafka to its end, in one of two ways, and prints what it took.

Settings come as JSON in BENCH_SETTINGS; the server's address is in BENCH_QUEUE_REDIS or in
BENCH_KAFKA. `kind`: `redis_stream`, `redis_list` or `kafka`; `messages`, `commit`. `how`:

- `ours`: the source, settled after each `commit` messages.
- `loop`: a bare loop of the client: XREADGROUP, then XACK and XDEL; of a list RPOP, which loses
  what it has if it dies; of Kafka `consume` and a synchronous `commit`, with the source's limits of
  what is fetched ahead.

Seconds and CPU seconds are those from the first message to the last.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

_LONGEST_PAUSE_SECONDS = 60.0

Step = Callable[[], int]
"""Reads and settles some messages; returns how many."""


def main() -> None:
    settings = json.loads(os.environ["BENCH_SETTINGS"])
    step = _WAYS[settings["how"]](settings)
    messages = step()
    began, began_cpu, first = time.monotonic(), _cpu_seconds(), messages
    while messages < settings["messages"]:
        some = step()
        if not some:
            sys.exit(f"{messages:,} messages of {settings['messages']:,}")
        messages += some
    seconds, cpu = time.monotonic() - began, _cpu_seconds() - began_cpu
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "messages": messages - first}))


def _ours(settings: dict[str, Any]) -> Step:
    from benchmarks.queues import source_of  # noqa: PLC0415  the loop does without all of it
    from fuploader_dagster import CommittedBatch  # noqa: PLC0415
    from fuploader_dagster.settings.loading import load_pipeline  # noqa: PLC0415

    values = {
        "name": "bench",
        "storage_root": ".",
        "source": source_of(settings["kind"], settings["queue"]),
        "state": {"kind": "sqlite", "path": "state.sqlite"},
        "store": {"kind": "local", "path": "objects"},
    }
    pipeline = load_pipeline(values, where="benchmark")
    source = pipeline.source.source(prefetch=4 * settings["commit"])
    source.open()

    def step() -> int:
        batch = source.receive(settings["commit"], _LONGEST_PAUSE_SECONDS)
        if batch:
            source.settle(CommittedBatch(last=batch[-1], messages=len(batch)))
        return len(batch)

    return step


def _loop(settings: dict[str, Any]) -> Step:
    if settings["kind"] == "kafka":
        return _loop_of_kafka(settings)
    import redis  # noqa: PLC0415

    queue, commit = settings["queue"], settings["commit"]
    client = redis.Redis.from_url(os.environ["BENCH_QUEUE_REDIS"], protocol=2)

    def of_a_list() -> int:
        return len(client.rpop(queue, commit) or ())

    def of_a_stream() -> int:
        answer = client.xreadgroup("bench", "bench", {queue: ">"}, count=commit)
        if not answer:
            return 0
        ids = [entry_id for entry_id, _ in answer[0][1]]
        client.xack(queue, "bench", *ids)
        client.xdel(queue, *ids)
        return len(ids)

    if settings["kind"] == "redis_list":
        return of_a_list
    client.xgroup_create(queue, "bench", id="0")
    return of_a_stream


def _loop_of_kafka(settings: dict[str, Any]) -> Step:
    from confluent_kafka import Consumer  # noqa: PLC0415

    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["BENCH_KAFKA"],
            "group.id": "bare",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "queued.max.messages.kbytes": 8 << 10,
            "fetch.max.bytes": 4 << 20,
            "fetch.queue.backoff.ms": 50,
        }
    )
    consumer.subscribe([settings["queue"]])

    def step() -> int:
        records = consumer.consume(settings["commit"], _LONGEST_PAUSE_SECONDS)
        size = sum(len(record.value()) for record in records)
        if size:
            consumer.commit(asynchronous=False)
        return len(records)

    return step


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


_WAYS: dict[str, Callable[[dict[str, Any]], Step]] = {"ours": _ours, "loop": _loop}


if __name__ == "__main__":
    main()
