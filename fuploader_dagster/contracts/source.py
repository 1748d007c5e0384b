"""MessageSource: where messages come from. One implementation per folder in `resources/sources/`.

What must always hold:

- A message stays in the queue until `settle` is called with a `CommittedBatch` that covers it. If
  the process dies before that, the queue delivers the message again, to any consumer.
- `settle` covers *every* message received up to `batch.last`, in the order in which `receive`
  returned them: one acknowledgement per batch, not per message.
- `receive` returns messages in the order in which the queue delivered them, and leaves out no
  delivery between two of them: `settle` covers all in between, received or not.
- Only a durable commit (`fuploader_dagster.intake.drain`) makes a `CommittedBatch`.

Errors: `SourceUnavailable` for what may pass, `SourceRefused` for what needs a person. After
`SourceUnavailable` the source is closed. `open` may be called again; everything received but not
settled is then delivered again, with `redelivered` set if the queue knows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.settings import Settings
from fuploader_dagster.disk.header_text import folded


class Message(NamedTuple):
    """One message as the queue delivered it."""

    body: bytes
    delivery: int
    """The source's own number for this delivery. Grows with each delivery after `open`."""
    redelivered: bool
    message_id: str | None
    attributes: Any = None
    """Headers and properties in the source's own form; `MessageSource.describe` renders them."""
    damage: str = ""
    """If the source knows that the bytes are not those that were published: why, in a sentence.
    Such a message is not decoded, but becomes a dead letter for this reason."""


class Position(NamedTuple):
    """Where a message is, in a queue that numbers the messages of each of its parts."""

    part: str
    """Such as a partition of a topic."""
    reading: str
    """Another one whenever reading went on somewhere else than where it had come to: then messages
    with lower numbers may come that nobody has stored."""
    number: int
    term: int = -1
    """Grows whenever the queue may have lost messages and given their numbers to others."""


@dataclass(frozen=True)
class CommittedBatch:
    """Messages that are durable on this disk, in slots or as dead letters."""

    last: Message
    """The batch covers all messages received up to and including this one."""
    messages: int
    dead_letters: Sequence[Message] = ()
    """Those of them that became dead letters."""


class PartDepth(NamedTuple):
    """What waits in one part of a queue that counts its parts apart: a partition of a topic."""

    name: str
    waiting: int
    """Messages that are not settled yet: the lag of the consumers."""
    next: int | None = None
    """Number, in this part, of the first message that is not settled: the committed offset."""
    end: int | None = None
    """Number that the next message to be published gets."""


@dataclass(frozen=True)
class Depth:
    """How much is in a queue, as far as the queue can say."""

    waiting: int
    """What `MessagePublisher.backlog` returns."""
    in_hand: int | None = None
    """Messages that consumers have, and have not settled. None if the queue does not say."""
    parts: Sequence[PartDepth] = ()


class MessageSource(ABC):
    """A queue that one worker consumes.

    Called by one thread at a time, but not always the same one: while a user's parser takes long,
    a second thread calls `receive(0, 0)` to keep the connection alive.
    """

    def named(self, worker: str) -> None:  # noqa: B027 - a default, on purpose
        """Who consumes: called at most once, before `open`. A worker that is started again has the
        same name, and no other worker has it. For queues that keep a place for a consumer while it
        restarts. The default does nothing."""

    @abstractmethod
    def open(self) -> None:
        """Connect and start consuming. May be called again after `close` or an error."""

    @abstractmethod
    def receive(self, limit: int, timeout_seconds: float) -> list[Message]:
        """Return up to `limit` messages, in the queue's order.

        Returns as soon as there is at least one message. Returns an empty list if none came within
        `timeout_seconds`, and at once if none may come before the next `settle`
        (`limit_in_hand`). Keeps the connection alive (heartbeats) while it waits; with limit 0 it
        does only that.
        """

    def limit_in_hand(self, messages: int) -> None:  # noqa: B027 - a default, on purpose
        """From now on, let the queue hand out at most this many unsettled messages.

        With 0 it hands out no more; messages already handed out can still be received and settled.
        May be called at any time; `open` keeps the limit. At first the limit is the `prefetch` that
        the source was built with, and it cannot be raised above that. For queues that drop a
        message after some number of deliveries: all that a consumer has in hand when it dies counts
        as delivered once more. The default does nothing.
        """

    @abstractmethod
    def settle(self, batch: CommittedBatch) -> None:
        """Tell the queue that all messages up to `batch.last` are done, so that it forgets them."""

    @abstractmethod
    def close(self) -> None:
        """Disconnect. Unsettled messages go back to the queue. Never raises, may be repeated."""

    @abstractmethod
    def describe(self, message: Message) -> dict[str, Any]:
        """Headers and properties of a message as JSON-ready values, for a dead letter.

        Never raises for anything that the queue can deliver: what cannot be decoded is kept as
        `{"base64": ...}`.
        """

    def reads(self) -> str:
        """What of the queue this worker reads, where the queue gives each worker a part of it:
        `orders[0-2], orders[5]`. Empty, the default: whatever the queue hands out."""
        return ""

    def position_of(self, message: Message) -> Position | None:
        """Where a message is that is not settled yet. None, the default: the queue has no numbers
        that stay with a message, or nobody knows this one's.

        A source hands out each part in the order of the numbers, in one reading from the first
        number on that nobody has settled.
        """
        return None

    def positions_up_to(self, last: Message) -> Sequence[Position]:
        """Of each part, the highest position among the unsettled messages up to this one.

        Called once for each commit. By default none.
        """
        return ()

    def headers_of(self, message: Message, wanted: Mapping[str, str]) -> dict[str, Any]:
        """Those of a message's headers and properties that are to be kept, as JSON-ready values.

        `wanted` has the name to keep for each `folded` name (`disk/header_text.py`). Those that the
        message lacks are left out; of two with one folded name the first counts, and a header
        before a property. Called for each message, but only where the pipeline keeps headers. The
        default takes them from what `describe` returns, where headers are below `headers`.
        """
        described = self.describe(message)
        headers = described.get("headers")
        found: dict[str, Any] = {}
        for table in (headers if isinstance(headers, Mapping) else {}, described):
            for name, value in table.items():
                kept_as = wanted.get(folded(name))
                if kept_as is not None:
                    found.setdefault(kept_as, value)
        return found


class MessagePublisher(ABC):
    """Publishes messages to a queue, and confirms that they arrived."""

    keeps_headers: ClassVar[bool] = True
    """Whether the queue has a place for headers and ids. If not, a message with any is refused with
    `MessageRefused`, so that none is lost unseen."""

    @abstractmethod
    def publish(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        """Publish (body, headers) pairs; return how many the queue confirmed as durable.

        Returns only when all are confirmed. Raises `SourceUnavailable` otherwise; some of the
        messages may then be in the queue. Raises `MessageRefused` for a message that the queue will
        never take; it can be called again with the others.
        """

    def publish_again(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        """Publish (body, attributes) pairs of dead letters, with the attributes from `describe`.

        Sends to this queue only, keeps what belongs to the message, and raises what `publish` does.
        The default keeps headers and message id.
        """
        return self.publish((body, _headers(attributes)) for body, attributes in messages)

    @abstractmethod
    def backlog(self) -> int:
        """Number of messages waiting in the queue, as the queue counts them."""

    def depth(self) -> Depth:
        """The same with what else the queue can say, for `fuploader status`."""
        return Depth(self.backlog())

    @abstractmethod
    def close(self) -> None:
        """Disconnect. Never raises, may be repeated."""


def _headers(attributes: Mapping[str, Any]) -> dict[str, Any]:
    headers, message_id = attributes.get("headers"), attributes.get("message_id")
    named = dict(headers) if isinstance(headers, dict) else {}
    return {**named, "message_id": message_id} if isinstance(message_id, str) else named


class SourceSettings(Settings):
    """The settings of a queue. Subclasses add fields, and build source and publisher.

    Neither `source` nor `publisher` connects: they only construct.
    """

    queue_field: ClassVar[str | None] = None
    """The setting that names the queue at its server, for a replay into another one. By default
    that is `queue`, `stream`, `topic` or `path`, if there is one."""

    def source(self, *, prefetch: int) -> MessageSource:
        """A consumer that has at most `prefetch` unsettled messages. Not yet connected."""
        raise NotImplementedError

    def publisher(self) -> MessagePublisher:
        """A publisher, which connects when it is first used."""
        raise NotImplementedError

    def describe(self) -> str:
        """Address and queue for logs and errors, without secrets."""
        raise NotImplementedError

    def examine(self) -> Iterator[Diagnosis]:
        """Check the queue for `fuploader doctor`, without taking a message.

        Raises an error of this package if the check cannot go on. Backends add checks of their own.
        """
        with closing(self.publisher()) as publisher:
            waiting = publisher.backlog()
        yield Diagnosis(
            "queue",
            "good",
            f"{self.describe()}: {counted(waiting, 'message waits', 'messages wait')}",
        )
