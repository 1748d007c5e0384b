"""The keys beside a list, and every change of them: one script each.

What must always hold:

- A message is in exactly one list, whatever dies: in the queue, or in the list of the consumer that
  has it. A script first does what may be refused (rights, types, a full memory), then moves.
- The list of a consumer is changed only if it is as long as that consumer knows it to be. If it is
  not, somebody took this consumer for dead, or the server lost data.
- Taking from a full server (`OOM`) works: it makes room.

Why it is so: docs/decisions/0017-what-a-worker-took-from-a-list.md.

Keys. Beside the list KEY, with P being KEY if that has a `{hash tag}`, and else `{KEY}`, so that a
cluster keeps all of them on one node: `P:fuploader:in-hand:CONSUMER` is the list of what a consumer
has in hand, oldest at the right end; `P:fuploader:consumers` is a sorted set of those that may have
any, by their last sign of life in seconds of the server's clock, 0 for one that left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import redis

from fuploader_dagster.errors import SourceRefused, SourceUnavailable
from fuploader_dagster.resources.sources.redis_clients import (
    command,
    connected_names,
    is_named,
    text,
)
from fuploader_dagster.resources.states.redis_connection import run
from fuploader_dagster.resources.states.redis_errors import Asker, explained

End = Literal["left", "right"]
MOST_AT_ONCE = 4_000
"""A script can pass on about 8,000 arguments."""
ASKER = Asker(
    SourceRefused,
    SourceUnavailable,
    "docs/redis-lists.md",
    "the key holds something else than a list, TYPE tells what: name another key; a stream has "
    "kind: redis_stream",
    waits=True,
)

# Keys: where to take from, the consumer's list, the consumers. Arguments: the consumer, how many
# it has in hand, the end, most messages, most bytes (at least one message is taken). Returns the
# messages, or how many are in the consumer's list if that is another number.
# The first LTRIM changes nothing. It fails where the last one would, after the messages were
# copied; and after it, Redis lets the script go on although its memory is full.
_TAKE = """
local holding = redis.call('LLEN', KEYS[2])
if holding ~= tonumber(ARGV[2]) then return holding end
redis.call('LTRIM', KEYS[1], 0, -1)
local right, most, bytes = ARGV[3] == 'right', tonumber(ARGV[4]), tonumber(ARGV[5])
local found = {}
if most > 0 then
    found = redis.call('LRANGE', KEYS[1], right and -most or 0, right and -1 or most - 1)
end
local taken = {}
for at = 1, #found do
    if bytes <= 0 then break end
    taken[at] = found[right and #found + 1 - at or at]
    bytes = bytes - #taken[at]
end
if holding + #taken > 0 then
    redis.call('ZADD', KEYS[3], redis.call('TIME')[1], ARGV[1])
end
if #taken > 0 then
    redis.call('LPUSH', KEYS[2], unpack(taken))
    redis.call('LTRIM', KEYS[1], right and 0 or #taken, right and -#taken - 1 or -1)
end
return taken
"""
# Keys: the consumer's list. Arguments: how many it has in hand, how many are done. Returns -1, or
# how many are in the list.
_SETTLE = """
local holding = redis.call('LLEN', KEYS[1])
if holding ~= tonumber(ARGV[1]) then return holding end
redis.call('LTRIM', KEYS[1], 0, -tonumber(ARGV[2]) - 1)
return -1
"""
# Keys: a consumer's list, the consumers. Arguments: the consumer, 1 if it leaves. One that has
# nothing is forgotten.
_LEAVE = """
if redis.call('LLEN', KEYS[1]) == 0 then
    redis.call('ZREM', KEYS[2], ARGV[1])
elseif ARGV[2] == '1' then
    redis.call('ZADD', KEYS[2], 0, ARGV[1])
end
"""
# Keys: the queue. Arguments: its end that is taken from, most messages in it or -1, messages.
_ADD = """
local length, most = redis.call('LLEN', KEYS[1]), tonumber(ARGV[2])
if most >= 0 and length + #ARGV - 2 > most then return length end
redis.call(ARGV[1] == 'right' and 'LPUSH' or 'RPUSH', KEYS[1], unpack(ARGV, 3))
return -1
"""
_LENGTHS = """
local lengths = {}
for at, key in ipairs(KEYS) do lengths[at] = redis.call('LLEN', key) end
return lengths
"""


class Consumer(NamedTuple):
    """One that may have messages in hand."""

    name: str
    alive: bool


class Lists:
    """The keys of one queue, and what can be done with them."""

    def __init__(self, key: str, end: End) -> None:
        self.key, self._end = key, end
        self.prefix = f"{key if _has_tag(key) else f'{{{key}}}'}:fuploader"
        self.consumers_key = f"{self.prefix}:consumers"

    def in_hand(self, consumer: str) -> str:
        return f"{self.prefix}:in-hand:{consumer}"

    def take(
        self,
        client: redis.Redis,
        consumer: str,
        holding: int,
        most: int,
        most_bytes: int,
        *,
        dead: str | None = None,
    ) -> list[bytes] | int:
        """The next messages, of the queue or of a dead consumer, oldest first; they are in this
        consumer's list now. A number: how many that has, which are not `holding`."""
        source, end = (self.key, self._end) if dead is None else (self.in_hand(dead), "right")
        keys = [source, self.in_hand(consumer), self.consumers_key]
        found: list[bytes] | int = run(
            client, _TAKE, keys, consumer, holding, end, min(most, MOST_AT_ONCE), most_bytes
        )
        return found

    def settle(self, client: redis.Redis, consumer: str, holding: int, count: int) -> int:
        """Remove the oldest messages in hand. Returns -1, or the number that is there instead."""
        return int(run(client, _SETTLE, [self.in_hand(consumer)], holding, count))

    def leave(self, client: redis.Redis, consumer: str) -> None:
        """This consumer takes nothing any more: others get what it has, at once."""
        run(client, _LEAVE, [self.in_hand(consumer), self.consumers_key], consumer, 1)

    def forget(self, client: redis.Redis, dead: str) -> None:
        """This consumer is gone. If it has messages after all, nothing changes."""
        run(client, _LEAVE, [self.in_hand(dead), self.consumers_key], dead, 0)

    def add(self, client: redis.Redis, most: int, bodies: Sequence[bytes]) -> int:
        """Add all or none. Returns -1, or the number of messages that are there already."""
        return int(run(client, _ADD, [self.key], self._end, most, *bodies))

    def consumers(self, client: redis.Redis, idle_seconds: float) -> Sequence[Consumer]:
        """They are listed before the connections: one that is missing among these was there
        before, and is gone."""
        found: Any = client.zrange(self.consumers_key, 0, -1, withscores=True)
        if not found:
            return []
        names = [(text(name), float(seen_at)) for name, seen_at in found]
        connected = connected_names(client) if any(is_named(name) for name, _ in names) else None
        now = int(command(client, "TIME")[0])
        return [
            Consumer(
                name,
                seen_at > 0
                and (
                    name in connected
                    if connected is not None and is_named(name)
                    else now - seen_at < idle_seconds
                ),
            )
            for name, seen_at in names
        ]

    def lengths(self, client: redis.Redis, consumers: Sequence[Consumer]) -> list[int]:
        """Of the queue, and of what each of the consumers has."""
        keys = [self.key, *(self.in_hand(one.name) for one in consumers)]
        return [int(length) for length in run(client, _LENGTHS, keys)]


@contextmanager
def explaining(trying: str) -> Iterator[None]:
    """Redis's errors become ours."""
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise explained(error, trying, asker=ASKER) from error


def _has_tag(key: str) -> bool:
    """Whether a cluster looks at a part of the key only: what is in its first braces."""
    _, opened, rest = key.partition("{")
    tag, closed, _ = rest.partition("}")
    return bool(opened and closed and tag)
