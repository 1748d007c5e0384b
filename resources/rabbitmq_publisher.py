"""Publishing to RabbitMQ with confirms, without waiting for each message.

What must always hold: a message counts as published when the broker confirmed it, which for a
persistent message in a durable queue means after its fsync. A message that no queue took, or that
the queue refused, is an error, never a silent loss.

pika's blocking channel waits for one confirm per message (about 500 messages a second on a disk).
The channel below it, which it keeps as `_impl`, has the same methods without the waiting, so
messages go out in a window of unconfirmed ones and the confirms come in as callbacks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import UnsupportedAMQPFieldException

from fuploader_dagster.errors import BadMessage, SourceRefused, SourceUnavailable
from fuploader_dagster.resources.rabbitmq_connection import (
    PIKA_ERRORS,
    closing_reason,
    connect,
    disconnect,
    explained,
)
from fuploader_dagster.source import MessagePublisher

if TYPE_CHECKING:
    from fuploader_dagster.resources.rabbitmq import RabbitMQ

_WINDOW_MESSAGES = 2_000
_FLUSH_MESSAGES = 100
_FLUSH_BYTES = 1024 * 1024
_CONFIRM_PAUSE_SECONDS = 0.002
"""A confirm wakes nobody up in pika's loop, so it is looked for this often."""
_PERSISTENT = 2


class RabbitMQPublisher(MessagePublisher):
    """One connection, made at the first use and again when it was lost while idle."""

    def __init__(self, settings: RabbitMQ) -> None:
        self._settings = settings
        self._connection: pika.BlockingConnection | None = None
        self._channel: BlockingChannel | None = None
        self._unconfirmed: OrderedDict[int, None] = OrderedDict()
        self._next_tag = 1
        self._refused = 0
        self._unroutable = 0

    def publish(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        connection, channel = self._connected()
        published = 0
        unflushed_messages = unflushed_bytes = 0
        try:
            for body, headers in messages:
                self._send(channel, body, headers)
                published += 1
                unflushed_messages += 1
                unflushed_bytes += len(body)
                if unflushed_messages >= _FLUSH_MESSAGES or unflushed_bytes >= _FLUSH_BYTES:
                    unflushed_messages = unflushed_bytes = 0
                    self._exchange(connection, channel, until_unconfirmed=_WINDOW_MESSAGES)
            self._exchange(connection, channel, until_unconfirmed=0)
        except PIKA_ERRORS as error:
            self._give_up("publish to", error)
        except BaseException:
            self.close()  # confirms that are still to come must not count for the next publish
            raise
        return published

    def backlog(self) -> int:
        _, channel = self._connected()
        try:
            count: int = channel.queue_declare(
                self._settings.queue, passive=True
            ).method.message_count
        except PIKA_ERRORS as error:
            self._give_up("count the messages of", error)
        return count

    def close(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        disconnect(connection)

    def _connected(self) -> tuple[pika.BlockingConnection, BlockingChannel]:
        """The connection if it still lives: nothing was sent yet, so a new one costs nothing."""
        if self._connection is not None and self._channel is not None:
            try:
                self._connection.process_data_events(0)
            except PIKA_ERRORS:
                self.close()
            else:
                if self._channel.is_open:
                    return self._connection, self._channel
                self.close()
        connection, channel = connect(self._settings, "publish")
        self._connection, self._channel = connection, channel
        self._unconfirmed.clear()
        self._next_tag, self._refused, self._unroutable = 1, 0, 0
        channel.add_on_return_callback(self._on_returned)
        selected: list[object] = []
        try:
            channel._impl.confirm_delivery(self._on_confirmed, callback=selected.append)
            while not selected:
                connection.process_data_events(_CONFIRM_PAUSE_SECONDS)
                self._check(channel)
        except PIKA_ERRORS as error:
            self._give_up("publish to", error)
        return connection, channel

    def _send(self, channel: BlockingChannel, body: bytes, headers: Mapping[str, Any]) -> None:
        others = {name: _sendable(value) for name, value in headers.items() if name != "message_id"}
        message_id = headers.get("message_id")
        properties = pika.BasicProperties(
            delivery_mode=_PERSISTENT,
            headers=others or None,
            message_id=None if message_id is None else str(message_id),
        )
        try:
            channel._impl.basic_publish("", self._settings.queue, body, properties, mandatory=True)
        except UnsupportedAMQPFieldException as error:
            raise BadMessage(
                f"a header of type {type(error.args[-1]).__name__} cannot be sent to RabbitMQ"
            ) from error
        self._unconfirmed[self._next_tag] = None
        self._next_tag += 1

    def _exchange(
        self,
        connection: pika.BlockingConnection,
        channel: BlockingChannel,
        *,
        until_unconfirmed: int,
    ) -> None:
        """Write out, read confirms, and wait until few enough are missing."""
        connection.process_data_events(0)
        self._check(channel)
        while len(self._unconfirmed) > until_unconfirmed:
            connection.process_data_events(_CONFIRM_PAUSE_SECONDS)
            self._check(channel)

    def _check(self, channel: BlockingChannel) -> None:
        if not channel.is_open:
            raise closing_reason(channel)
        if self._unroutable:
            raise SourceRefused(
                f"{self._unroutable} messages found no {self._settings.describe()}",
                hint="the queue was deleted while we published",
            )
        if self._refused:
            raise SourceUnavailable(
                f"{self._settings.describe()} refused {self._refused} messages",
                hint="is it at its length limit (x-overflow: reject-publish), or a quorum queue "
                "without a leader?",
            )

    def _on_confirmed(self, frame: Any) -> None:
        confirm = frame.method
        if isinstance(confirm, pika.spec.Basic.Nack):
            self._refused += 1
        unconfirmed = self._unconfirmed
        if not confirm.multiple:
            unconfirmed.pop(confirm.delivery_tag, None)
            return
        while unconfirmed and next(iter(unconfirmed)) <= confirm.delivery_tag:
            unconfirmed.popitem(last=False)

    def _on_returned(self, *_: object) -> None:
        self._unroutable += 1

    def _give_up(self, tried: str, error: BaseException) -> NoReturn:
        self.close()
        raise explained(tried, self._settings, error) from error


def _sendable(value: Any) -> Any:
    """pika reads floating-point headers but cannot write them: they go as text."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return {name: _sendable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_sendable(item) for item in value]
    return value
