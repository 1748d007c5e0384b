"""Adds messages to a list, at the end that is not taken from.

What must always hold: a full list takes nothing of a batch, and is never trimmed. A message with
headers or an id, for which a list has no place, is refused and not cut down to its body.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

import redis

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.source import Depth, MessagePublisher
from fuploader_dagster.errors import MessageRefused, SourceUnavailable
from fuploader_dagster.resources.sources.redis_list.lists import explaining
from fuploader_dagster.resources.states.redis_connection import connect

if TYPE_CHECKING:
    from fuploader_dagster.resources.sources.redis_list.source import RedisList

_BATCH_MESSAGES = 500
_BATCH_BYTES = 1 << 20
_LARGEST_BYTES = 512 << 20
"""Redis's own limit of one value (proto-max-bulk-len)."""


class RedisListPublisher(MessagePublisher):
    """Connects at the first use, and again if the connection was lost while idle."""

    keeps_headers: ClassVar[bool] = False

    def __init__(self, settings: RedisList) -> None:
        self._settings = settings
        self._client = connect(settings.url, settings.timeout_seconds)
        self._most = -1 if settings.max_length is None else settings.max_length

    def publish(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        settings, published = self._settings, 0
        for batch in self._batches(messages):
            with explaining(f"could not publish to {settings.describe()}"):
                length = settings.lists.add(self._client, self._most, batch)
            if length >= 0:
                raise SourceUnavailable(
                    f"{settings.describe()} has {counted(length, 'message')}, max_length "
                    f"{self._most:,}: "
                    f"{counted(published, 'message was', 'messages were')} added, and no more",
                    hint="try again when its reader has caught up",
                )
            published += len(batch)
        return published

    def backlog(self) -> int:
        return self.depth().waiting

    def depth(self) -> Depth:
        settings, lists = self._settings, self._settings.lists
        with explaining(f"could not count the messages of {settings.describe()}"):
            consumers = lists.consumers(self._client, settings.idle_seconds)
            waiting, *counts = lists.lengths(self._client, consumers)
        in_hand = 0
        for consumer, count in zip(consumers, counts, strict=True):
            if consumer.alive:
                in_hand += count
            else:
                waiting += count
        return Depth(waiting, in_hand)

    def close(self) -> None:
        with suppress(redis.RedisError, OSError):
            self._client.close()

    def _batches(
        self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]
    ) -> Iterator[list[bytes]]:
        batch: list[bytes] = []
        size = 0
        for position, (body, headers) in enumerate(messages):
            if refusal := self._refusal(body, headers):
                if batch:
                    yield batch
                what, hint = refusal
                raise MessageRefused(what, position=position, confirmed=position, hint=hint)
            batch.append(body)
            size += len(body)
            if len(batch) >= _BATCH_MESSAGES or size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _refusal(self, body: bytes, headers: Mapping[str, Any]) -> tuple[str, str] | None:
        """Why this list will never take the message, and what can be done."""
        where = self._settings.describe()
        if headers:
            some = ", ".join(sorted(map(repr, headers))[:3])
            return (
                f"a message has headers ({some}), and {where} has no place for any",
                "send it to a queue with headers, such as kind: redis_stream",
            )
        if len(body) >= _LARGEST_BYTES:
            size = f"{len(body):,} bytes is too large for {where}"
            return f"a message of {size}, which accepts less than {_LARGEST_BYTES:,}", ""
        return None
