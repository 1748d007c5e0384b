"""MessageSource: where messages come from. One implementation per file in `resources/`.

What must always hold:

- A message stays in the queue until `settle` was called with a `CommittedBatch` that covers it;
  a process that dies before that gets it delivered again (to itself or to another).
- `settle` covers *every* message received so far up to `batch.last`, in the order in which
  `receive` returned them: one acknowledgement per batch, not per message.
- The order in which `receive` returns messages is the order in which the queue delivered them, with
  no delivery left out between two of them: `settle` covers what lies between, received or not.
- Only a durable commit (`fuploader_dagster.intake.drain`) makes a `CommittedBatch`.

Errors: `SourceUnavailable` for what may pass, `SourceRefused` for what needs a person. After
`SourceUnavailable` the source is closed; `open` may be called again, and everything that was
received and not settled will be delivered again with `redelivered` set where the queue knows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from fuploader_dagster.contracts.diagnosis import Diagnosis


class Message(NamedTuple):
    """One message as the queue delivered it."""

    body: bytes
    delivery: int
    """The source's own number of this delivery; grows with each delivery of one `open`."""
    redelivered: bool
    message_id: str | None
    attributes: Any = None
    """The source's own view of headers and properties; `MessageSource.describe` renders it."""
    damage: str = ""
    """Why the bytes are not those that were published, if the source knows: one sentence. Such a
    message is not decoded; it becomes a dead letter for this reason."""


@dataclass(frozen=True)
class CommittedBatch:
    """Messages that are durable on this disk: as slot files, or as dead letters."""

    last: Message
    """All messages received up to and including this one are covered."""
    messages: int
    dead_letters: Sequence[Message] = ()
    """Those of them that went to the dead letters."""


class MessageSource(ABC):
    """A queue that is being consumed by one worker.

    Called by one thread at a time, but not always the same one: while a user's parser takes long,
    a second thread calls `receive(0, 0)` so that the queue hears of us.
    """

    @abstractmethod
    def open(self) -> None:
        """Connect and begin consuming. Safe to call again after `close` or an error."""

    @abstractmethod
    def receive(self, limit: int, timeout_seconds: float) -> list[Message]:
        """Return up to `limit` messages, in the queue's order.

        Returns as soon as at least one message is there, and an empty list when none came
        within `timeout_seconds`, or at once when no more may come before the next `settle`
        (`limit_in_hand`). Keeps the connection alive (heartbeats) while it waits; with limit 0 it
        does that alone.
        """

    def limit_in_hand(self, messages: int) -> None:  # noqa: B027 - a default, on purpose
        """Let the queue hand out at most this many unsettled messages, from now on.

        0: nothing more; what was handed out already can still be received and settled. May be
        called before `open`, which keeps it, and at any time after; more than the `prefetch` that
        the source was built with counts as that, which is also the limit of a new source. For
        queues that count deliveries and drop a message after so many (RabbitMQ's quorum queues):
        whatever is in hand when a consumer dies counts as delivered once more. The default does
        nothing.
        """

    @abstractmethod
    def settle(self, batch: CommittedBatch) -> None:
        """Tell the queue that everything up to `batch.last` is done. It forgets those messages."""

    @abstractmethod
    def close(self) -> None:
        """Leave. Messages not settled go back to the queue. Never raises, may be repeated."""

    @abstractmethod
    def describe(self, message: Message) -> dict[str, Any]:
        """Headers and properties of a message as JSON-ready values, for a dead letter.

        Never raises for anything that the queue can deliver: what cannot be decoded is kept as
        it came, `{"base64": ...}`.
        """


class MessagePublisher(ABC):
    """Puts messages into a queue and knows that they arrived."""

    @abstractmethod
    def publish(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        """Publish (body, headers) pairs; return how many the queue confirmed as durable.

        Returns only when all are confirmed. Raises `SourceUnavailable` otherwise; some of the
        messages may then be in the queue already. Raises `MessageRefused` for a message that the
        queue will never take, and can be called again with the others.
        """

    def publish_again(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        """Publish (body, attributes) pairs of dead letters, the attributes as `describe` gave them.

        Sends to this queue alone, keeps what belongs to the message, and raises as `publish` does.
        The default keeps headers and message id.
        """
        return self.publish((body, _headers(attributes)) for body, attributes in messages)

    @abstractmethod
    def backlog(self) -> int:
        """Messages that wait in the queue, as the queue counts them."""

    @abstractmethod
    def close(self) -> None:
        """Leave. Never raises, may be repeated."""


def _headers(attributes: Mapping[str, Any]) -> dict[str, Any]:
    headers, message_id = attributes.get("headers"), attributes.get("message_id")
    named = dict(headers) if isinstance(headers, dict) else {}
    return {**named, "message_id": message_id} if isinstance(message_id, str) else named


class SourceSettings(BaseModel):
    """What a configuration says about a queue; subclasses add fields and build the parts.

    Opening nothing is part of the contract: both methods only construct.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True
    )

    def source(self, *, prefetch: int) -> MessageSource:
        """A consumer that takes at most `prefetch` unsettled messages. Not yet connected."""
        raise NotImplementedError

    def publisher(self) -> MessagePublisher:
        """A publisher, which connects at its first use."""
        raise NotImplementedError

    def describe(self) -> str:
        """Address and queue in words, without secrets, for logs and error messages."""
        raise NotImplementedError

    def examine(self) -> Iterator[Diagnosis]:
        """What `fuploader doctor` should know about the queue; takes no message.

        Raises errors of ours for what is in the way. Backends add what they know of theirs.
        """
        publisher = self.publisher()
        try:
            waiting = publisher.backlog()
        finally:
            publisher.close()
        yield Diagnosis("queue", "good", f"{self.describe()}: {waiting:,} messages wait")
