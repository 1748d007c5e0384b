"""Publishes with confirms, and with properties as they stand: without the code under test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pika
from pika.adapters.blocking_connection import BlockingChannel

from tests.soak.properties import AsTheyStand

LOST = (pika.exceptions.AMQPError, OSError)
"""What is raised when the broker goes away."""
PAUSE_SECONDS = 0.02
"""Between two looks at what is confirmed: pika waits for so long whatever comes."""


class Outgoing(NamedTuple):
    queue: str
    properties: bytes
    body: bytes


class Refused(pika.exceptions.AMQPError):  # type: ignore[misc]
    """The broker does not want a message."""


class Publisher:
    """One connection, made at the first use and again when it was lost."""

    def __init__(self, url: str) -> None:
        self._parameters = pika.URLParameters(url)
        self._parameters.heartbeat = 10
        self._connection: pika.BlockingConnection | None = None
        self._channel: BlockingChannel | None = None
        self._sent = 0
        self._open: set[int] = set()

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """Returns when the broker has confirmed them all; else raises one of `LOST`."""
        try:
            if self._connection is None:
                self._connect()
            assert self._connection is not None
            assert self._channel is not None
            for one in messages:
                properties = AsTheyStand(one.properties)
                self._channel._impl.basic_publish(
                    "", one.queue, one.body, properties, mandatory=True
                )
                self._sent += 1
                self._open.add(self._sent)
            while self._open:
                self._connection.process_data_events(PAUSE_SECONDS)
        except LOST:
            self.close()
            raise

    def longest(self, queues: Sequence[str]) -> int:
        """How many messages wait in the longest of the queues. Raises one of `LOST`."""
        if self._channel is None or self._connection is None:
            return 0
        try:
            found = [self._channel.queue_declare(name, passive=True) for name in queues]
        except LOST:
            self.close()
            raise
        return max(int(one.method.message_count) for one in found)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        try:
            if connection is not None and connection.is_open:
                connection.close()
        except LOST:
            return

    def _connect(self) -> None:
        self._connection = pika.BlockingConnection(self._parameters)
        self._channel = self._connection.channel()
        self._sent, self._open = 0, set()
        self._channel.add_on_return_callback(self._on_return)
        selected: list[Any] = []
        self._channel._impl.confirm_delivery(self._on_confirm, callback=selected.append)
        while not selected:
            self._connection.process_data_events(PAUSE_SECONDS)

    def _on_confirm(self, frame: Any) -> None:
        if isinstance(frame.method, pika.spec.Basic.Nack):
            raise Refused("a message was not confirmed")
        tag = frame.method.delivery_tag
        if frame.method.multiple:
            self._open = {each for each in self._open if each > tag}
        else:
            self._open.discard(tag)

    def _on_return(self, *_: Any) -> None:
        raise Refused("the queue is not there")
