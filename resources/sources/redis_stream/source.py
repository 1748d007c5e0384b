"""A stream of Redis, read by a consumer group.

What must always hold:

- An entry is pending for our consumer from its delivery until `settle`, which acknowledges and
  deletes a batch in one step.
- A consumer is one session: `open` makes one, named after its connection. What a consumer had that
  is gone comes again at once, oldest first, before newer entries, and marked as redelivered.
- An entry is claimed from a consumer in the step that finds it there, so two do not claim it both.
- Entries that were deleted or trimmed under us are not delivered, and not waited for.

A live consumer that is taken for dead (only where the server does not list connections) costs no
entry: its batch is acknowledged as well, and the other one's messages are marked.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from typing import Annotated, Any

import redis
from pydantic import Field, field_validator

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.settings import Count
from fuploader_dagster.contracts.source import CommittedBatch, Message, SourceSettings
from fuploader_dagster.errors import ConfigError, SourceRefused
from fuploader_dagster.resources.sources.redis_clients import (
    LOOK_EVERY_SECONDS,
    NAMED,
    command,
    named_client,
)
from fuploader_dagster.resources.sources.redis_consumer import RedisConsumer
from fuploader_dagster.resources.sources.redis_stream.connection import consumers, explaining
from fuploader_dagster.resources.sources.redis_stream.entries import described, message_of
from fuploader_dagster.resources.sources.redis_stream.examination import examine
from fuploader_dagster.resources.sources.redis_stream.publisher import (
    RedisStreamPublisher,
    groups,
)
from fuploader_dagster.resources.states.redis_connection import address, run, usable
from fuploader_dagster.settings.secret import Secret

log = logging.getLogger(__name__)

_SETTLED_AT_ONCE = 2_000
"""A script can pass on about 8,000 arguments."""
_AFTER_ALL = "18446744073709551615-0"
"""No entry of ours comes after this id, so reading ours from there only shows that we are alive.
The largest id of all is how the server writes `>`, which takes new entries."""

# Arguments: group, 1 to delete them, ids. An entry that is deleted, but not acknowledged because
# that is not allowed, is acknowledged by whoever claims it.
_SETTLE = """
if ARGV[2] == '1' then redis.call('XDEL', KEYS[1], unpack(ARGV, 3)) end
redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 3))
"""
# Arguments: group, our name, the dead consumer, most entries. False when it has no more: then it
# is removed. Otherwise entries with the number of their deliveries.
_CLAIM = """
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[4], ARGV[3])
if #pending == 0 then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[3])
    return false
end
local ids, missing, deliveries, found = {}, {}, {}, {}
for _, one in ipairs(pending) do
    ids[#ids + 1] = one[1]
    deliveries[one[1]] = one[4]
end
local claimed = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(ids))
for at = 1, #ids do
    local entry = claimed[at]
    if entry then
        found[#found + 1] = {entry[1], entry[2], deliveries[entry[1]] + 1}
        deliveries[entry[1]] = nil
    end
end
for _, id in ipairs(ids) do
    if deliveries[id] then missing[#missing + 1] = id end
end
if #missing > 0 then redis.call('XACK', KEYS[1], ARGV[1], unpack(missing)) end
return found
"""


class RedisStream(SourceSettings):
    """A stream of a Redis server, version 6.2 or later, and a consumer group of it."""

    url: Secret
    """Address of the server: `redis://user:password@host:6379/0`, `rediss://…` for TLS,
    `unix:///path`, or of Sentinels, `redis+sentinel://user:password@host:26379,host:26379/NAME/0`."""
    stream: Annotated[str, Field(min_length=1, max_length=500)]
    """Key of the stream."""
    group: Annotated[str, Field(min_length=1, max_length=200)] = "fuploader"
    """Name of the consumer group. All workers of a pipeline share it."""
    declare: bool = True
    """Create the stream and the group if they are missing. The group begins with the oldest entry
    that is in the stream."""
    delete: bool = True
    """Delete entries when they are durable here. Set it to false where other groups read the
    stream; then something else has to trim it."""
    body_field: Annotated[str, Field(min_length=1)] = "body"
    """Field of an entry that is the message. Other fields are headers. An entry without it becomes
    a JSON object of its fields."""
    max_length: Count | None = None
    """Maximum number of entries. What we publish (replays, dead letters) is
    refused while it would exceed it. Other producers are not bound by it, and nothing is trimmed.
    By default, there is no maximum."""
    idle_seconds: Annotated[float, Field(ge=5, le=86_400)] = 300.0
    """A consumer without a sign of life for so long is gone, and its entries come again. Counts
    only if the server does not list connections, or for consumers of other programs: otherwise a
    consumer is gone when its connection is."""
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0
    """Longest time to wait for a connection, and for an answer."""

    @field_validator("url")
    @classmethod
    def _usable_url(cls, url: Secret) -> Secret:
        return usable(url)

    def source(self, *, prefetch: int) -> RedisStreamSource:
        if prefetch < 1:
            raise ConfigError(f"prefetch is {prefetch}; it must be at least 1")
        return RedisStreamSource(self, prefetch)

    def publisher(self) -> RedisStreamPublisher:
        return RedisStreamPublisher(self)

    def describe(self) -> str:
        return f"stream {self.stream}, group {self.group}, at {address(self.url)}"

    def examine(self) -> Iterator[Diagnosis]:
        return examine(self)

    @property
    def raw_body_field(self) -> bytes:
        return self.body_field.encode()


class RedisStreamSource(RedisConsumer):
    """One consumer."""

    def __init__(self, settings: RedisStream, prefetch: int) -> None:
        super().__init__(settings, prefetch, explaining)
        self._settings = settings
        self._in_hand: deque[tuple[int, bytes]] = deque()
        """Delivery numbers and ids of what is not settled."""

    def open(self) -> None:
        self.close()
        settings = self._settings
        with self._giving_up("open"):
            self._client = self._connected()
            others = [one["name"] for one in groups(self._client, settings)]
            if settings.group not in others:
                self._declare(self._client)
            elif settings.delete and len(others) > 1:
                others.remove(settings.group)
                raise SourceRefused(
                    f"{settings.describe()} is also read by {', '.join(sorted(others))}, who would "
                    "miss entries that are deleted",
                    hint="set delete: false, or remove those groups with XGROUP DESTROY",
                )
            self._start = self._last_number
            self._look_for_the_dead()

    def receive(self, limit: int, timeout_seconds: float) -> list[Message]:
        """As the contract says; with limit 0 it only waits."""
        room = min(limit, self._most_in_hand - len(self._in_hand))
        deadline = time.monotonic() + timeout_seconds
        with self._giving_up("receive from"):
            client = self._opened()
            while True:
                if self._is_due_to_look():
                    self._look_for_the_dead()
                if room > 0 and (messages := self._claimed(client, room)):
                    return messages
                remaining = max(0.0, deadline - time.monotonic())
                if room > 0:
                    messages = self._read(client, room, min(remaining, self._longest_wait))
                    if messages:
                        return messages
                elif limit:
                    return []
                else:
                    time.sleep(min(remaining, LOOK_EVERY_SECONDS))
                if time.monotonic() >= deadline:
                    return []

    def settle(self, batch: CommittedBatch) -> None:
        client, last = self._opened_for(batch), batch.last.delivery
        ids = [entry_id for number, entry_id in self._in_hand if number <= last]
        if not ids:
            return
        settings = self._settings
        with self._giving_up("acknowledge messages of"):
            for at in range(0, len(ids), _SETTLED_AT_ONCE):
                some = ids[at : at + _SETTLED_AT_ONCE]
                run(client, _SETTLE, [settings.stream], settings.group, int(settings.delete), *some)
        for _ in ids:
            self._in_hand.popleft()

    def close(self) -> None:
        self._in_hand.clear()
        self._disconnect(self._leave)

    def describe(self, message: Message) -> dict[str, Any]:
        return described(message, self._settings.raw_body_field)

    @property
    def _longest_wait(self) -> float:
        return min(LOOK_EVERY_SECONDS, self._settings.timeout_seconds / 2)

    def _leave(self, client: redis.Redis) -> None:
        if self._consumer.startswith(NAMED):
            command(client, "CLIENT SETNAME", "left")

    def _connected(self) -> redis.Redis:
        client, self._consumer = named_client(self._settings.url, self._settings.timeout_seconds)
        client.set_response_callback("XREADGROUP", lambda answer, **_: answer)
        return client

    def _declare(self, client: redis.Redis) -> None:
        settings = self._settings
        if not settings.declare:
            raise SourceRefused(
                f"there is no {settings.describe()}",
                hint="create it with XGROUP CREATE, or set declare: true",
            )
        try:
            client.xgroup_create(settings.stream, settings.group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):  # another worker was quicker
                raise
        log.info("created %s", settings.describe())

    def _look_for_the_dead(self) -> None:
        """Also shows that we are alive, where only that counts."""
        client, settings = self._opened(), self._settings
        self._looked_at = time.monotonic()
        reading = ("XREADGROUP", "GROUP", settings.group, self._consumer, "COUNT", 1)
        command(client, *reading, "STREAMS", settings.stream, _AFTER_ALL)
        self._note_dead(consumers(client, settings.stream, settings.group, settings.idle_seconds))

    def _claimed(self, client: redis.Redis, room: int) -> list[Message]:
        """Entries of consumers that are gone, of one after the other."""
        while self._dead:
            found = run(
                client,
                _CLAIM,
                [self._settings.stream],
                *(self._settings.group, self._consumer, self._dead[0], min(room, self._count)),
            )
            if found:
                return self._received(found)
            if found is None:
                self._dead.popleft()
        return []

    def _read(self, client: redis.Redis, room: int, seconds: float) -> list[Message]:
        settings = self._settings
        wait = ("BLOCK", max(1, round(seconds * 1000))) if seconds else ()
        reading = ("XREADGROUP", "GROUP", settings.group, self._consumer)
        count = ("COUNT", min(room, self._count))
        answer = command(client, *reading, *count, *wait, "STREAMS", settings.stream, ">")
        return self._received((*entry, 1) for entry in answer[0][1]) if answer else []

    def _received(self, entries: Any) -> list[Message]:
        messages: list[Message] = []
        size = 0
        for entry_id, fields, deliveries in entries:
            self._last_number += 1
            message = message_of(
                entry_id, fields, self._last_number, deliveries, self._settings.raw_body_field
            )
            messages.append(message)
            size += len(message.body)
            self._in_hand.append((self._last_number, entry_id))
        self._adapt_count(len(messages), size)
        return messages
