"""Publishing to RabbitMQ with confirms, without waiting for each message.

What must always hold:

- A message counts as published when the broker has confirmed it, which for a persistent message in
  a durable queue means after its fsync. A message that no queue accepted, or that the queue
  refused, is an error, never a silent loss.
- A message goes to our queue only, and stays there: headers that the broker would act upon
  (`_ACTED_UPON`) are sent as `was-...`, which means nothing to it.
- A message that the broker will never accept (`MessageRefused`) closes the channel, and confirms of
  those before it are lost. So a large one is sent alone, when all before it are confirmed.

pika's blocking channel waits for one confirm per message (about 500 messages a second on a disk).
The channel that it wraps (`pika_internals`) has the same methods without the waiting, so messages
go out in a window of unconfirmed ones and the confirms come in as callbacks. They go out in pieces
of many messages, framed here (`frames`).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pika
from pika.adapters.blocking_connection import BlockingChannel

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.source import MessagePublisher
from fuploader_dagster.errors import BadMessage, MessageRefused, SourceRefused, SourceUnavailable
from fuploader_dagster.resources.sources.rabbitmq import connection, pika_internals
from fuploader_dagster.resources.sources.rabbitmq.frames import (
    HEADER_BYTES,
    OVERHEAD_BYTES,
    Framing,
)
from fuploader_dagster.resources.sources.rabbitmq.written_properties import as_short, encoded

if TYPE_CHECKING:
    from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ

_WINDOW_MESSAGES = 2_000
_FLUSH_MESSAGES = 100
_FLUSH_BYTES = 1024 * 1024
_ALONE_BYTES = 1024 * 1024
_PIECE_BYTES = 128 * 1024
"""Messages are given to the connection in pieces of about this size: it copies what is left of one
each time that the socket takes a part of it."""
_LOOK_SECONDS = 0.1
"""The confirm that we wait for ends pika's waiting (`_wake`); other ends are seen after this."""
_NOBODY_WAITS = -1
_PERSISTENT = 2
_HEADER_OVERHEAD = OVERHEAD_BYTES + HEADER_BYTES
_TOO_LARGE = re.compile(r"message size (?P<size>\d+) .*max size (?P<most>\d+)")

_ACTED_UPON = frozenset(
    {
        *("CC", "BCC"),  # copies to other queues
        *("x-death", "x-delivery-count", "x-acquired-count"),  # of the message that left the queue
    }
)
_ACTED_UPON_PREFIXES = ("x-first-death-", "x-last-death-")
_WAS = "was-"
_KEPT_TEXTS = frozenset(
    {
        *("content_type", "content_encoding", "correlation_id", "reply_to"),
        *("message_id", "type", "app_id"),
    }
)
_NEVER_SENT = ("headers", "delivery_mode")
_DIRECT_REPLIES = b"amq.rabbitmq.reply-to"
"""Whoever waited there for an answer is gone, and the broker refuses the name."""
_LARGEST_PRIORITY, _LARGEST_TIMESTAMP = 255, (1 << 64) - 1


class RabbitMQPublisher(connection.Explaining, MessagePublisher):
    """One connection, opened at the first use, and again if it was lost while idle."""

    def __init__(self, settings: RabbitMQ) -> None:
        self._settings = settings
        self._channel: BlockingChannel | None = None
        self._unconfirmed: OrderedDict[int, int] = OrderedDict()
        """Size of the body, by the message's tag."""
        self._next_tag = 1
        self._in_window = True
        """Confirms come as callbacks; otherwise pika waits for each."""
        self._framing = Framing(1, settings.queue, 0)
        """Of the open channel."""
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._awaited = _NOBODY_WAITS
        """With no more unconfirmed messages than this, the wait in `_exchange` ends."""
        self._refused = 0
        self._unroutable = 0

    def publish(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        return self._publish((body, _with_id(headers)) for body, headers in messages)

    def publish_again(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        """As the contract says. Expiry, user and other attributes become headers `was-...`."""
        return self._publish(
            (body, _properties(attributes, attributes.get("headers")))
            for body, attributes in messages
        )

    def _publish(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        channel = self._connected()
        first_tag = self._next_tag
        unflushed_messages = unflushed_bytes = 0
        try:
            for body, properties in messages:
                alone = len(body) >= _ALONE_BYTES
                if alone:
                    self._exchange(channel, until_unconfirmed=0)
                self._send(channel, body, properties, first_tag)
                unflushed_messages += 1
                unflushed_bytes += len(body)
                if alone:
                    self._exchange(channel, until_unconfirmed=0)
                elif unflushed_messages >= _FLUSH_MESSAGES or unflushed_bytes >= _FLUSH_BYTES:
                    unflushed_messages = unflushed_bytes = 0
                    self._exchange(channel, until_unconfirmed=_WINDOW_MESSAGES)
            self._exchange(channel, until_unconfirmed=0)
        except connection.PIKA_ERRORS as error:
            refused = self._refused_message(error, first_tag)
            if refused is None:
                self._give_up("publish to", error)
            self.close()
            raise refused from error
        except BaseException:
            self.close()  # outstanding confirms must not count for the next publish
            raise
        return self._next_tag - first_tag

    def backlog(self) -> int:
        channel = self._connected()
        with self._trying("count the messages of"):
            answer = channel.queue_declare(self._settings.queue, passive=True)
        return int(answer.method.message_count)

    def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            connection.disconnect(channel.connection)

    def _connected(self) -> BlockingChannel:
        """The channel if it is still open, otherwise a new one: nothing was sent yet."""
        if self._channel is not None:
            with suppress(*connection.PIKA_ERRORS):
                self._channel.connection.process_data_events(0)
                if self._channel.is_open:
                    return self._channel
            self.close()
        channel = self._channel = connection.connect(self._settings, "publish")[1]
        self._unconfirmed.clear()
        self._unsent, self._unsent_bytes, self._awaited = [], 0, _NOBODY_WAITS
        self._next_tag, self._refused, self._unroutable = 1, 0, 0
        frame_max = pika_internals.largest_frame(channel.connection)
        self._framing = Framing(channel.channel_number, self._settings.queue, frame_max)
        channel.add_on_return_callback(self._on_returned)
        selected: list[object] = []

        def on_selected(frame: object) -> None:
            selected.append(frame)
            self._wake()

        with self._trying("publish to"):
            self._in_window = pika_internals.confirm_without_waiting(
                channel, self._on_confirmed, on_selected
            )
            while self._in_window and not selected:
                channel.connection.process_data_events(_LOOK_SECONDS)
                self._check(channel)
        return channel

    def _send(
        self, channel: BlockingChannel, body: bytes, properties: Mapping[str, Any], first_tag: int
    ) -> None:
        try:
            header = encoded(properties)
        except (TypeError, RecursionError) as error:
            raise BadMessage(f"a header of type {error} cannot be sent to RabbitMQ") from error
        frame_max = self._framing.frame_max
        if frame_max and len(header) > frame_max - _HEADER_OVERHEAD:
            self._exchange(channel, until_unconfirmed=0)
            sent = self._next_tag - first_tag
            raise MessageRefused(
                f"headers and properties of {len(header):,} bytes cannot be sent to "
                f"{self._settings.describe()}, which accepts at most "
                f"{frame_max - _HEADER_OVERHEAD:,}",
                position=sent,
                confirmed=sent,
            )
        self._unconfirmed[self._next_tag] = len(body)
        self._next_tag += 1
        if not self._in_window:
            raw: Any = _Encoded(header)
            channel.basic_publish("", self._settings.queue, body, raw, mandatory=True)
            self._unconfirmed.clear()
            return
        for piece in self._framing.framed(header, body):
            self._unsent.append(piece)
            self._unsent_bytes += len(piece)
            if self._unsent_bytes >= _PIECE_BYTES:
                self._hand_over(channel)

    def _hand_over(self, channel: BlockingChannel) -> None:
        """Give what was framed to the connection, which sends it when it exchanges data."""
        self._check(channel)
        if self._unsent:
            pika_internals.send(channel.connection, [b"".join(self._unsent)])
            self._unsent, self._unsent_bytes = [], 0

    def _refused_message(self, error: BaseException, first_tag: int) -> MessageRefused | None:
        """The error for the unconfirmed message that the broker's error is about, if any is."""
        said = _TOO_LARGE.search(str(error))
        if said is None:
            return None
        most = int(said["most"])
        tag = next((tag for tag, size in self._unconfirmed.items() if size > most), None)
        if tag is None:
            return None
        return MessageRefused(
            f"a message of {self._unconfirmed[tag]:,} bytes is too large for "
            f"{self._settings.describe()}, which accepts at most {most:,}",
            position=tag - first_tag,
            confirmed=next(iter(self._unconfirmed)) - first_tag,
            hint="raise max_message_size in the broker's rabbitmq.conf, up to what its version "
            "allows",
        )

    def _exchange(self, channel: BlockingChannel, *, until_unconfirmed: int) -> None:
        """Write out, read confirms, and wait until few enough messages are unconfirmed."""
        self._hand_over(channel)
        channel.connection.process_data_events(0)
        self._check(channel)
        self._awaited = until_unconfirmed
        while len(self._unconfirmed) > until_unconfirmed:
            channel.connection.process_data_events(_LOOK_SECONDS)
            self._check(channel)
        self._awaited = _NOBODY_WAITS

    def _check(self, channel: BlockingChannel) -> None:
        if not channel.is_open:
            raise pika_internals.closing_reason(channel)
        if self._unroutable:
            raise SourceRefused(
                f"{counted(self._unroutable, 'message')} came back: there is no "
                f"{self._settings.describe()}",
                hint="the queue was deleted while we were publishing",
            )
        if self._refused:
            raise SourceUnavailable(
                f"{self._settings.describe()} refused {counted(self._refused, 'message')}",
                hint="is it at its length limit (x-overflow: reject-publish), or a quorum queue "
                "without a leader?",
            )

    def _on_confirmed(self, frame: Any) -> None:
        confirm = frame.method
        unconfirmed = self._unconfirmed
        if not confirm.multiple:
            unconfirmed.pop(confirm.delivery_tag, None)
        else:
            while unconfirmed and next(iter(unconfirmed)) <= confirm.delivery_tag:
                unconfirmed.popitem(last=False)
        if isinstance(confirm, pika.spec.Basic.Nack):
            self._refused += 1
            self._wake()
        elif len(unconfirmed) <= self._awaited:
            self._wake()

    def _on_returned(self, *_: object) -> None:
        self._unroutable += 1

    def _wake(self) -> None:
        """End pika's waiting, which no confirm ends, but a timer does."""
        channel = self._channel
        if channel is not None and channel.connection.is_open:
            channel.connection.call_later(0, _nothing)


def _nothing() -> None:
    """What the timer of `_wake` calls."""


class _Encoded:
    """Encoded properties in place of pika's own, which cannot encode floats, for example."""

    INDEX = pika.spec.BasicProperties.INDEX

    def __init__(self, header: bytes) -> None:
        self._header = header

    def encode(self) -> list[bytes]:
        return [self._header]


def _with_id(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Properties of a message whose headers include its id."""
    others = {name: value for name, value in headers.items() if name != "message_id"}
    message_id = headers.get("message_id")
    return _properties({"message_id": message_id and str(message_id)}, others)


def _properties(attributes: Mapping[str, Any], headers: Any) -> dict[str, Any]:
    """The properties to send for a message's attributes: each as itself, or as a header."""
    properties: dict[str, Any] = {"delivery_mode": _PERSISTENT}
    sent: dict[str, Any] = {}
    for name, value in (headers if isinstance(headers, Mapping) else {}).items():
        acted_upon = name in _ACTED_UPON or str(name).startswith(_ACTED_UPON_PREFIXES)
        sent[f"{_WAS}{name}" if acted_upon else name] = value
    for name, value in attributes.items():
        if value is None or name in _NEVER_SENT:
            continue
        if (fitting := _fitting(name, value)) is not None:
            properties[name] = fitting
        else:
            sent[f"{_WAS}{name}"] = value
    properties["headers"] = sent or None
    return properties


def _fitting(name: str, value: Any) -> Any:
    """The value to send as this property; None if it must be a header."""
    if name in _KEPT_TEXTS:
        raw = as_short(value)
        direct = name == "reply_to" and raw is not None and raw.startswith(_DIRECT_REPLIES)
        return None if direct else raw
    largest = {"priority": _LARGEST_PRIORITY, "timestamp": _LARGEST_TIMESTAMP}.get(name)
    if largest is None or not (isinstance(value, int) or str(value).isdecimal()):
        return None
    return int(value) if 0 <= int(value) <= largest else None
