"""A list of Redis, which others fill with LPUSH or RPUSH.

What must always hold:

- A message that was taken is in the list of its consumer until `settle`, which removes a batch in
  one step.
- A consumer is one session: `open` makes one, named after its connection. What a consumer had that
  is gone comes again at once, oldest first, before newer messages, and marked as redelivered.
- Messages go from a list to another one in one step, so two consumers do not have them both.

A live consumer that is taken for dead (only where the server does not list connections) loses its
messages to another one. It learns so at its next step, settles nothing more, and opens again; what
it had committed comes again, marked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

import redis
from pydantic import Field, field_validator

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.settings import Count
from fuploader_dagster.contracts.source import CommittedBatch, Message, SourceSettings
from fuploader_dagster.errors import ConfigError, SourceUnavailable
from fuploader_dagster.resources.sources.redis_clients import (
    LOOK_EVERY_SECONDS,
    command,
    named_client,
)
from fuploader_dagster.resources.sources.redis_consumer import BATCH_BYTES, RedisConsumer
from fuploader_dagster.resources.sources.redis_list.examination import examine
from fuploader_dagster.resources.sources.redis_list.lists import End, Lists, explaining
from fuploader_dagster.resources.sources.redis_list.publisher import RedisListPublisher
from fuploader_dagster.resources.states.redis_connection import address, usable
from fuploader_dagster.settings.secret import Secret


class RedisList(SourceSettings):
    """A list of a Redis server, version 6.2 or later. Its messages are bodies: a list has no place
    for headers and ids."""

    queue_field: ClassVar[str | None] = "key"
    url: Secret
    """Address of the server: `redis://user:password@host:6379/0`, `rediss://…` for TLS,
    `unix:///path`, or of Sentinels, `redis+sentinel://user:password@host:26379,host:26379/NAME/0`."""
    key: Annotated[str, Field(min_length=1, max_length=500)]
    """Key of the list."""
    end: End = "right"
    """End of the list that messages are taken from: `right` if producers add with LPUSH (consumers
    used BRPOP), `left` if they add with RPUSH (consumers used BLPOP). What we publish is added at
    the other end."""
    max_length: Count | None = None
    """Maximum number of waiting messages. What we publish (replays, dead letters) is refused while
    it would exceed it. Other producers are not bound by it, and nothing is trimmed. By default,
    there is no maximum."""
    idle_seconds: Annotated[float, Field(ge=5, le=86_400)] = 300.0
    """A worker without a sign of life for so long is gone, and its messages come again. Counts only
    if the server does not list connections: otherwise a worker is gone when its connection is."""
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0
    """Longest time to wait for a connection, and for an answer."""

    @field_validator("url")
    @classmethod
    def _usable_url(cls, url: Secret) -> Secret:
        return usable(url)

    def source(self, *, prefetch: int) -> RedisListSource:
        if prefetch < 1:
            raise ConfigError(f"prefetch is {prefetch}; it must be at least 1")
        return RedisListSource(self, prefetch)

    def publisher(self) -> RedisListPublisher:
        return RedisListPublisher(self)

    def describe(self) -> str:
        return f"list {self.key} at {address(self.url)}"

    def examine(self) -> Iterator[Diagnosis]:
        return examine(self)

    @property
    def lists(self) -> Lists:
        return Lists(self.key, self.end)


class RedisListSource(RedisConsumer):
    """One consumer."""

    def __init__(self, settings: RedisList, prefetch: int) -> None:
        super().__init__(settings, prefetch, explaining)
        self._settings, self._lists = settings, settings.lists
        self._in_hand = 0
        """How many messages are received and not settled: the last delivery numbers."""

    def open(self) -> None:
        self.close()
        settings = self._settings
        with self._giving_up("open"):
            self._client, self._consumer = named_client(settings.url, settings.timeout_seconds)
            self._start = self._last_number
            self._look_for_the_dead()

    def receive(self, limit: int, timeout_seconds: float) -> list[Message]:
        """As the contract says; with limit 0 it only waits."""
        room = min(limit, self._most_in_hand - self._in_hand)
        deadline = time.monotonic() + timeout_seconds
        with self._giving_up("receive from"):
            client = self._opened()
            while True:
                if self._is_due_to_look():
                    self._look_for_the_dead()
                if room > 0 and (messages := self._of_the_dead(room) or self._taken(room)):
                    return messages
                remaining = max(0.0, deadline - time.monotonic())
                if not remaining or (limit and room <= 0):
                    return []
                self._wait(client, remaining, for_messages=room > 0)

    def settle(self, batch: CommittedBatch) -> None:
        client, last = self._opened_for(batch), batch.last.delivery
        done = last - (self._last_number - self._in_hand)
        if done <= 0:
            return
        with self._giving_up("settle messages of"):
            there = self._lists.settle(client, self._consumer, self._in_hand, done)
            if there >= 0:
                raise self._disowned(there)
        self._in_hand -= done

    def close(self) -> None:
        self._in_hand = 0
        self._disconnect(lambda client: self._lists.leave(client, self._consumer))

    def describe(self, message: Message) -> dict[str, Any]:
        """Nothing: a list holds bodies, and does not count deliveries."""
        return {}

    def _look_for_the_dead(self) -> None:
        """Also shows that we are alive, where only that counts, and that nobody thinks we are
        not."""
        client = self._opened()
        self._looked_at = time.monotonic()
        self._take(0)
        self._note_dead(self._lists.consumers(client, self._settings.idle_seconds))

    def _of_the_dead(self, room: int) -> list[Message]:
        """Messages of consumers that are gone, of one after the other."""
        while self._dead:
            if found := self._take(room, dead=self._dead[0]):
                return self._received(found, redelivered=True)
            self._lists.forget(self._opened(), self._dead.popleft())
        return []

    def _taken(self, room: int) -> list[Message]:
        return self._received(self._take(room), redelivered=False)

    def _take(self, most: int, *, dead: str | None = None) -> Sequence[bytes]:
        found = self._lists.take(
            self._opened(),
            self._consumer,
            self._in_hand,
            min(most, self._count),
            BATCH_BYTES,
            dead=dead,
        )
        if isinstance(found, int):
            raise self._disowned(found)
        return found

    def _wait(self, client: redis.Redis, seconds: float, *, for_messages: bool) -> None:
        """Until there is a message, without taking it, or this time has passed."""
        seconds = min(seconds, LOOK_EVERY_SECONDS, self._settings.timeout_seconds / 2)
        if not for_messages:
            time.sleep(seconds)
            return
        key, end = self._settings.key, self._settings.end.upper()
        # From an end of a list to the same end of it: nothing changes.
        command(client, "BLMOVE", key, key, end, end, max(0.001, round(seconds, 3)))

    def _received(self, bodies: Sequence[bytes], *, redelivered: bool) -> list[Message]:
        if not bodies:
            return []
        first = self._last_number + 1
        self._last_number += len(bodies)
        self._in_hand += len(bodies)
        self._adapt_count(len(bodies), sum(map(len, bodies)))
        return [
            Message(body, number, redelivered, None) for number, body in enumerate(bodies, first)
        ]

    def _disowned(self, there: int) -> SourceUnavailable:
        return SourceUnavailable(
            f"{self._settings.describe()}: this worker has "
            f"{counted(self._in_hand, 'message')} in hand, and "
            f"its list at the server {there:,}: another worker took it for dead, or the server "
            "lost data",
            hint="nothing that the server has is lost: it will be delivered again. Let the user "
            "list connections (client|list, client|setname), or raise idle_seconds",
        )
