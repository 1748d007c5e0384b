"""Adds messages to a stream.

What must always hold: a full stream takes nothing of a batch, and is never trimmed. What was
confirmed is in the stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import redis

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.source import Depth, MessagePublisher
from fuploader_dagster.errors import MessageRefused, SourceUnavailable
from fuploader_dagster.resources.sources.redis_stream.connection import consumers, explaining
from fuploader_dagster.resources.sources.redis_stream.entries import fields_of
from fuploader_dagster.resources.states.redis_connection import connect, run

if TYPE_CHECKING:
    from fuploader_dagster.resources.sources.redis_stream.source import RedisStream

_BATCH_MESSAGES = 500
_BATCH_BYTES = 1 << 20
_LARGEST_BYTES = 512 << 20
"""Redis's own limit of one value (proto-max-bulk-len)."""
_COUNTED_AT_ONCE = 10_000

# Arguments: most entries or -1, messages, then each with the number of its arguments before it.
_ADD = """
local length, most = redis.call('XLEN', KEYS[1]), tonumber(ARGV[1])
if most >= 0 and length + tonumber(ARGV[2]) > most then return length end
local at = 3
while at <= #ARGV do
    local count = tonumber(ARGV[at])
    redis.call('XADD', KEYS[1], '*', unpack(ARGV, at + 1, at + count))
    at = at + 1 + count
end
return -1
"""
# Arguments: the id to start after, most entries to count. Returns how many, and the last id.
_COUNT = """
local found = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
if #found == 0 then return {0, ARGV[1]} end
return {#found, found[#found][1]}
"""


class RedisStreamPublisher(MessagePublisher):
    """Connects at the first use, and again if the connection was lost while idle."""

    def __init__(self, settings: RedisStream) -> None:
        self._settings = settings
        self._client = connect(settings.url, settings.timeout_seconds)
        self._most = -1 if settings.max_length is None else settings.max_length

    def publish(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        settings, published = self._settings, 0
        for batch in self._batches(messages):
            arguments = [part for fields in batch for part in (len(fields), *fields)]
            with explaining(f"could not publish to {settings.describe()}"):
                length = run(
                    self._client, _ADD, [settings.stream], self._most, len(batch), *arguments
                )
            if length >= 0:
                raise SourceUnavailable(
                    f"{settings.describe()} has {counted(length, 'entry', 'entries')}, "
                    f"max_length {self._most:,}: "
                    f"{counted(published, 'message was', 'messages were')} added, and no more",
                    hint="try again when its reader has caught up",
                )
            published += len(batch)
        return published

    def backlog(self) -> int:
        return self.depth().waiting

    def depth(self) -> Depth:
        settings = self._settings
        with explaining(f"could not count the messages of {settings.describe()}"):
            group = group_of(self._client, settings)
            if group is None:
                return Depth(int(self._client.xlen(settings.stream)), in_hand=0)
            members = consumers(
                self._client, settings.stream, settings.group, settings.idle_seconds
            )
            in_hand = sum(one.pending for one in members if one.alive)
            if settings.delete:
                length = int(self._client.xlen(settings.stream))
                return Depth(max(0, length - in_hand), in_hand)
            of_the_dead = sum(one.pending for one in members if not one.alive)
            return Depth(self._unread(group) + of_the_dead, in_hand)

    def close(self) -> None:
        with suppress(redis.RedisError, OSError):
            self._client.close()

    def _unread(self, group: Mapping[str, Any]) -> int:
        if group.get("lag") is not None:
            return int(group["lag"])
        total: int = 0
        last = group["last-delivered-id"]  # Redis 6, or entries were deleted
        while True:
            count, last = run(self._client, _COUNT, [self._settings.stream], last, _COUNTED_AT_ONCE)
            total += count
            if count < _COUNTED_AT_ONCE:
                return total

    def _batches(
        self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]
    ) -> Iterator[list[list[bytes]]]:
        batch: list[list[bytes]] = []
        size = 0
        for position, (body, headers) in enumerate(messages):
            fields = fields_of(body, headers, self._settings.raw_body_field)
            if max(map(len, fields)) >= _LARGEST_BYTES:
                if batch:
                    yield batch
                raise MessageRefused(
                    f"a message of {len(body):,} bytes is too large for "
                    f"{self._settings.describe()}, which accepts less than {_LARGEST_BYTES:,}",
                    position=position,
                    confirmed=position,
                )
            batch.append(fields)
            size += sum(map(len, fields))
            if len(batch) >= _BATCH_MESSAGES or size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch


def group_of(client: redis.Redis, settings: RedisStream) -> Mapping[str, Any] | None:
    """What the server says about our group; None if there is none, or no stream."""
    return next((one for one in groups(client, settings) if one["name"] == settings.group), None)


def groups(client: redis.Redis, settings: RedisStream) -> list[dict[str, Any]]:
    """All groups of the stream. Names are text, whatever the client decodes."""
    try:
        found: Any = client.xinfo_groups(settings.stream)
    except redis.ResponseError as error:
        if "no such key" in str(error):
            return []
        raise
    return [{name: _text(value) for name, value in one.items()} for one in found]


def _text(value: Any) -> Any:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value
