"""Steps that the contract tests of message sources share."""

from __future__ import annotations

import time
from collections.abc import Callable

from fuploader_dagster.contracts.source import (
    CommittedBatch,
    Message,
    MessagePublisher,
    MessageSource,
)


def publish(publisher: MessagePublisher, count: int, start: int = 0) -> list[bytes]:
    bodies = [b"body-%d" % number for number in range(start, start + count)]
    assert publisher.publish((body, {}) for body in bodies) == count
    return bodies


def collect(source: MessageSource, count: int, seconds: float = 60) -> list[Message]:
    """Exactly `count` messages, however many calls it takes."""
    messages: list[Message] = []
    deadline = time.monotonic() + seconds
    while len(messages) < count:
        assert time.monotonic() < deadline, f"only {len(messages)} of {count} messages came"
        messages += source.receive(count - len(messages), 0.5)
    return messages


def settle(source: MessageSource, messages: list[Message]) -> None:
    source.settle(CommittedBatch(last=messages[-1], messages=len(messages)))


def bodies_of(messages: list[Message]) -> list[bytes]:
    return [message.body for message in messages]


def firsts_of(messages: list[Message]) -> list[bytes]:
    """Bodies of messages delivered for the first time: the queue may redeliver others between."""
    return [message.body for message in messages if not message.redelivered]


def all_in_hand(source: MessageSource) -> list[Message]:
    """Everything that comes while nothing is settled."""
    messages: list[Message] = []
    while batch := source.receive(100, 1):
        messages += batch
    return messages


def close_with_backlog(source: MessageSource, publisher: MessagePublisher, expected: int) -> None:
    source.close()
    eventually(publisher.backlog, expected)


def eventually(backlog: Callable[[], int], expected: int, seconds: float = 60) -> None:
    """Wait for a backlog: the broker counts a moment later."""
    deadline = time.monotonic() + seconds
    while (seen := backlog()) != expected:
        assert time.monotonic() < deadline, f"backlog is {seen}, not {expected}"
        time.sleep(0.05)
