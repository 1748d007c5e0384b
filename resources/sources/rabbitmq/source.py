"""RabbitMQ as a message source, on pika: its settings and its consumer.

What must always hold:

- A message is acknowledged only by `settle`, one multiple ack per batch. Whatever was not
  acknowledged when the connection ends is delivered again by the broker.
- Delivery numbers follow each other without a hole, and only what `receive` returned is
  acknowledged.
- A delivery number is never used on another connection than its own: a delivery tag means another
  message there. The numbers grow across reconnections, and older ones are refused.
- A queue that exists is used as it is, whatever its type and arguments; it is declared (durable)
  only if it is missing and `declare` is on.
- The only work per message is building the `Message`: everything else is done per batch.

All that the socket holds is read, so more messages can arrive than were asked for: the surplus, at
most `prefetch` messages, waits here for the next `receive`. A channel that the broker closed
(consumer time-out, for example) raises nothing by itself in pika's event loop, so it is checked
after each step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn
from urllib.parse import unquote, urlsplit

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pydantic import Field, SecretStr, field_validator, model_validator

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.source import (
    CommittedBatch,
    Message,
    MessageSource,
    SourceSettings,
)
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.errors import ConfigError, SourceUnavailable
from fuploader_dagster.resources.sources.rabbitmq import connection
from fuploader_dagster.resources.sources.rabbitmq.deliveries import read_by_pika, take_deliveries
from fuploader_dagster.resources.sources.rabbitmq.examination import examine
from fuploader_dagster.resources.sources.rabbitmq.pika_internals import closing_reason
from fuploader_dagster.resources.sources.rabbitmq.properties import chosen, described
from fuploader_dagster.resources.sources.rabbitmq.publisher import RabbitMQPublisher
from fuploader_dagster.settings.secret import Secret, place_of_unset

LARGEST_PREFETCH = 65_535  # the protocol's field has two bytes; 0 would mean "no limit"
_LONGEST_WITHOUT_IO_SECONDS = 1.0
_PAUSE_OF_ARRIVALS_SECONDS = 0.1
_LONGEST_ARRIVAL_SECONDS = 3.0
"""Reached only where the queue has messages and gives us none: a broker whose disk is very slow, or
another consumer that is the only active one."""
_NOT_OF_A_STREAM = {"x-priority": 0}
"""The priority that every consumer has anyway. A stream refuses the argument; without it, a stream
would silently deliver none of its messages. AMQP has no way to ask for a queue's type."""
_PERCENT_ENCODING = (
    "in user, password and vhost write / ? # @ : [ ] % as %2F %3F %23 %40 %3A %5B %5D %25"
)
_PARTS_OF_URL = ("host", "port", "vhost", "user", "password", "tls")


class RabbitMQ(SourceSettings):
    """A queue on RabbitMQ: either `url`, or host, port, vhost, user, password and tls."""

    queue: str
    """Name of the queue, at most 255 bytes."""
    url: Secret | None = None
    """Address of the broker: `amqp://user:password@host:5672/vhost` (`%2F` is the default vhost),
    or `amqps://…` for TLS."""
    host: str = "localhost"
    """Host of the broker."""
    port: int | None = Field(default=None, ge=1, le=65_535)
    """Port of the broker. By default 5672, or 5671 with TLS."""
    vhost: str = "/"
    """Virtual host that has the queue."""
    user: str = "guest"
    """User name at the broker."""
    password: Secret = SecretStr("guest")
    """Password of the user. Brokers accept the default `guest` from their own machine only."""
    tls: bool = False
    """Connect with TLS (amqps)."""
    ca_file: Path | None = None
    """PEM file of the certificates to trust instead of the system's. With TLS only."""
    cert_file: Path | None = None
    """PEM file of our certificate, for a broker that asks its clients for one. With TLS only."""
    key_file: Path | None = None
    """PEM file of the key of `cert_file`, without a password, if the key is not in that file."""
    queue_type: Literal["classic", "quorum"] = "classic"
    """Type of a queue that we declare. Classic by default, because most producers declare the queue
    without a type, and the broker refuses them if the types differ."""
    declare: bool = True
    """Declare the queue, durable, if it is missing. Off: a missing queue is an error."""
    reject_dead_letters: bool = False
    """Reject dead letters without requeue, so that the broker's own dead-letter exchange gets
    them too. They are kept on this machine's disk in any case."""
    heartbeat_seconds: int = Field(default=30, ge=2, le=3_600)
    """Interval of heartbeats. A connection that is cut is noticed after about two of them."""
    connect_timeout_seconds: float = Field(default=10, gt=0, le=300)
    """Longest time to wait for the network connection, and for the login."""
    blocked_timeout_seconds: float = Field(default=60, gt=0, le=3_600)
    """Longest time that a publisher waits while the broker blocks it (memory or disk alarm)."""

    @field_validator("queue")
    @classmethod
    def _usable_name(cls, queue: str) -> str:
        if not 1 <= len(queue.encode()) <= 255:
            raise ValueError("queue must be a name of 1 to 255 bytes")
        return queue

    @field_validator("url")
    @classmethod
    def _usable_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None or place_of_unset(url):
            return url
        url = SecretStr(url.get_secret_value().strip())  # files of secrets end with a line break
        try:
            parts = urlsplit(url.get_secret_value())
            usable = parts.scheme in ("amqp", "amqps") and parts.hostname and parts.port != 0
            options = bool(parts.query or parts.fragment)
            usable = usable and "@" not in parts.path  # the / belongs to the password
        except ValueError:  # not passed on, because it may quote the password
            usable, options = False, False
        if options:
            raise ValueError(
                "url takes no ?options: set heartbeat_seconds and the like instead; "
                + _PERCENT_ENCODING
            )
        if not usable:
            raise ValueError(
                "url must look like amqp://user:password@host:5672/vhost, or amqps://; "
                + _PERCENT_ENCODING
            )
        return url

    @model_validator(mode="after")
    def _one_address(self) -> RabbitMQ:
        doubled = [name for name in _PARTS_OF_URL if name in self.model_fields_set]
        if self.url is not None and doubled:
            raise ValueError(f"url already says this: remove {', '.join(doubled)}")
        for name in ("ca_file", "cert_file", "key_file"):
            if getattr(self, name) is not None and not self._encrypted:
                raise ValueError(f"{name} is set, but neither tls: true nor an amqps:// url")
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file is set, but not the cert_file that it belongs to")
        return self

    def source(self, *, prefetch: int) -> RabbitMQSource:
        if not 1 <= prefetch <= LARGEST_PREFETCH:
            raise ConfigError(f"prefetch is {prefetch}; RabbitMQ accepts 1 to {LARGEST_PREFETCH}")
        return RabbitMQSource(self, prefetch)

    def publisher(self) -> RabbitMQPublisher:
        return RabbitMQPublisher(self)

    def describe(self) -> str:
        where = place_of_unset(self.url, self.password) or self.address()
        return f"queue {self.queue!r} on RabbitMQ ({where})"

    @property
    def _encrypted(self) -> bool:
        """What a url says whose variable is not set is not known: it may be."""
        return bool(place_of_unset(self.url)) or (
            self.tls if self.url is None else self.address().tls
        )

    def examine(self) -> Iterator[Diagnosis]:
        return examine(self)

    def address(self) -> connection.Address:
        """Where to connect, whichever way it was configured."""
        if self.url is None:
            host, port, vhost, user, tls = self.host, self.port, self.vhost, self.user, self.tls
            password = self.password.get_secret_value()
        else:
            parts = urlsplit(self.url.get_secret_value())
            host, port, tls = parts.hostname or "", parts.port, parts.scheme == "amqps"
            user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
            vhost = unquote(parts.path[1:]) or "/"
        default_port = 5671 if tls else 5672
        return connection.Address(host, port or default_port, vhost, user, password, tls)


class RabbitMQSource(connection.Explaining, MessageSource):
    """One consumer at a time on one connection."""

    def __init__(self, settings: RabbitMQ, prefetch: int) -> None:
        self._settings = settings
        self._prefetch = self._limit = prefetch
        """`_limit`: how many messages may be unsettled; at most `_prefetch`."""
        self._connection: pika.BlockingConnection | None = None
        self._channel: BlockingChannel | None = None
        self._consumer = ""
        """The tag of our consumer; empty while there is none."""
        self._prefetch_of_consumer = 0
        self._surplus: deque[Message] = deque()
        self._start = 0
        """A delivery number is the channel's delivery tag plus this."""
        self._received = 0
        """The last delivery number that `receive` returned."""
        self._settled = 0
        """The last delivery number that was settled."""
        self._last_io = 0.0
        self._cancelled = False

    def open(self) -> None:
        self.close()
        self._connection, self._channel = connection.connect(self._settings, "drain")
        self._start = self._settled = self._received
        self._cancelled = False
        self._channel.add_on_cancel_callback(self._on_cancelled)
        take_deliveries(
            self._connection, self._channel.channel_number, self._surplus.append, self._start
        )
        self._consume()

    def limit_in_hand(self, messages: int) -> None:
        """As the contract says.

        A consumer's prefetch is fixed when it starts. So another limit needs another consumer,
        which starts once all messages of the previous one are settled. A quorum queue takes back
        the messages on their way to a consumer that ends, and counts them as delivered. So for a
        higher limit a consumer ends only when its prefetch is used up, which is when the limit
        matters, and for a lower one when the messages on their way have arrived.
        """
        self._limit = max(0, min(messages, self._prefetch))
        if self._limit < self._prefetch_of_consumer:
            self._let_arrive()
            self._end_consumer()
        if not self._consumer:
            self._consume()

    def receive(self, limit: int, timeout_seconds: float) -> list[Message]:
        """As the contract says; with limit 0 it only waits and keeps the connection alive."""
        deadline = time.monotonic() + timeout_seconds
        surplus = self._surplus
        if len(surplus) < limit or self._io_is_due():
            self._process_io(0)
        if self._limit > self._prefetch_of_consumer and self._nothing_may_come():
            self._end_consumer()
        while not (surplus and limit):
            remaining = deadline - time.monotonic()
            if remaining <= 0 or (limit and self._nothing_may_come()):
                return []
            self._process_io(remaining)
        if len(surplus) <= limit:
            messages = list(surplus)
            surplus.clear()
        else:
            messages = [surplus.popleft() for _ in range(limit)]
        first, last = messages[0].delivery, messages[-1].delivery
        if first != self._received + 1 or last != self._received + len(messages):
            self._refuse_gap(f"deliveries {first} to {last} came after {self._received}")
        self._received = last
        return messages

    def settle(self, batch: CommittedBatch) -> None:
        channel, last = self._channel, batch.last.delivery
        if channel is None or last <= self._start:
            self.close()
            raise SourceUnavailable(
                f"the connection that delivered these messages from {self._settings.describe()} "
                "is gone, so they cannot be acknowledged",
                hint="nothing is lost: the broker delivers them again",
            )
        if last > self._received:
            self._refuse_gap(f"only deliveries up to {self._received} were received, not {last}")
        rejected: set[int] = set()
        if self._settings.reject_dead_letters:
            rejected = {message.delivery for message in batch.dead_letters}
        while last in rejected:  # the broker forgets a rejected tag and refuses an ack of it
            last -= 1
        with self._trying("acknowledge messages of"):
            for number in sorted(rejected):
                channel.basic_reject(number - self._start, requeue=False)
            if rejected:
                reached(CrashPoint.REJECTED)
            if last > self._settled:
                channel.basic_ack(last - self._start, multiple=True)
        self._settled = max(self._settled, batch.last.delivery)
        if not self._consumer:
            self._consume()

    def close(self) -> None:
        opened, self._connection, self._channel = self._connection, None, None
        self._consumer, self._prefetch_of_consumer = "", 0
        if self._surplus:
            self._received = self._surplus[-1].delivery
        self._surplus = deque()
        connection.disconnect(opened)

    def describe(self, message: Message) -> dict[str, Any]:
        return described(message.attributes or b"")

    def headers_of(self, message: Message, wanted: Mapping[str, str]) -> dict[str, Any]:
        return chosen(message.attributes or b"", wanted)

    def _in_hand(self) -> int:
        """Messages that were delivered, to us or to the caller, and not settled."""
        delivered = self._surplus[-1].delivery if self._surplus else self._received
        return delivered - self._settled

    def _nothing_may_come(self) -> bool:
        return self._in_hand() >= self._prefetch_of_consumer

    def _consume(self) -> None:
        """Start to consume, unless nothing may come yet."""
        if not self._limit or self._in_hand() or self._channel is None:
            return
        with self._trying("consume from"):
            self._channel.basic_qos(prefetch_count=self._limit)
            self._consumer = self._channel.basic_consume(
                self._settings.queue, self._on_delivery, arguments=_NOT_OF_A_STREAM
            )
        self._prefetch_of_consumer = self._limit
        self._last_io = time.monotonic()

    def _let_arrive(self) -> None:
        """Receive what is on its way: nothing is settled meanwhile, so the prefetch limits it.

        A quorum queue sends more only after it has made an acknowledgement durable, which takes as
        long as the broker's disk takes. So a pause alone means nothing: it must also have nothing
        more to send.
        """
        until = time.monotonic() + _LONGEST_ARRIVAL_SECONDS
        while not self._nothing_may_come() and time.monotonic() < until:
            before = self._in_hand()
            self._process_io(_PAUSE_OF_ARRIVALS_SECONDS)
            if self._in_hand() == before and not self._ready():
                return

    def _ready(self) -> int:
        """How many messages the queue has that it has sent to no consumer."""
        if self._channel is None:
            return 0
        with self._trying("ask for the length of"):
            answer = self._channel.queue_declare(self._settings.queue, passive=True)
        return int(answer.method.message_count)

    def _end_consumer(self) -> None:
        """End the consumer; what is delivered before the broker's answer goes to the surplus."""
        if not self._consumer or self._channel is None:
            return
        with self._trying("pause consuming from"):
            self._channel.basic_cancel(self._consumer)
        self._consumer, self._prefetch_of_consumer = "", 0

    def _on_delivery(self, _channel: object, method: Any, properties: Any, body: bytes) -> None:
        """pika calls this only where `take_deliveries` could not take its place."""
        self._surplus.append(read_by_pika(method, properties, body, self._start))

    def _on_cancelled(self, _frame: object) -> None:
        self._cancelled = True

    def _io_is_due(self) -> bool:
        return time.monotonic() - self._last_io > _LONGEST_WITHOUT_IO_SECONDS

    def _process_io(self, seconds: float) -> None:
        """Let pika read, write and answer heartbeats; return early when something came."""
        if self._connection is None or self._channel is None:
            raise SourceUnavailable(f"{self._settings.describe()} is not open")
        with self._trying("receive from"):
            self._connection.process_data_events(seconds)
        self._last_io = time.monotonic()
        if self._cancelled:
            self.close()
            raise SourceUnavailable(
                f"the broker ended our consumer on {self._settings.describe()}",
                hint="was the queue deleted, or did the node that has it fail?",
            )
        if not self._channel.is_open:
            self._give_up("receive from", closing_reason(self._channel))

    def _refuse_gap(self, found: str) -> NoReturn:
        """Give up: an acknowledgement would cover messages that nobody has."""
        self.close()
        raise SourceUnavailable(
            f"messages of {self._settings.describe()} are missing among those received: {found}",
            hint="nothing is lost: they were not acknowledged, so the broker delivers them again",
        )
