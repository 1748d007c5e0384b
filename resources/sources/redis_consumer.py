"""What a consumer of a stream of Redis has in common with one of a list: its session with the
server, and the consumers that are gone.

What must always hold: any error closes the source, and what was received before an `open` is not
settled after it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

import redis

from fuploader_dagster.contracts.source import CommittedBatch, MessageSource, SourceSettings
from fuploader_dagster.errors import SourceRefused, SourceUnavailable
from fuploader_dagster.resources.sources.redis_clients import LOOK_EVERY_SECONDS

BATCH_BYTES = 4 << 20
_FIRST_COUNT = 32

Explaining = Callable[[str], AbstractContextManager[None]]
"""Turns Redis's errors into ours; gets what was tried."""


class _Named(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def alive(self) -> bool: ...


class RedisConsumer(MessageSource):
    """One consumer; subclasses receive and settle."""

    def __init__(self, settings: SourceSettings, prefetch: int, explaining: Explaining) -> None:
        self._describe, self._explaining = settings.describe, explaining
        self._prefetch = self._most_in_hand = prefetch
        self._client: redis.Redis | None = None
        self._consumer = ""
        self._dead: deque[str] = deque()
        """Consumers that are gone, and may have messages."""
        self._last_number = 0
        self._start = 0
        """The last delivery number when the source was opened."""
        self._count = _FIRST_COUNT
        """How many messages to ask for: so many that they are about `BATCH_BYTES`."""
        self._looked_at = 0.0

    def limit_in_hand(self, messages: int) -> None:
        self._most_in_hand = min(messages, self._prefetch)

    def _opened(self) -> redis.Redis:
        if self._client is None:
            raise SourceUnavailable(f"{self._describe()} is not open")
        return self._client

    def _opened_for(self, batch: CommittedBatch) -> redis.Redis:
        """The client that these messages came by."""
        if self._client is None or batch.last.delivery <= self._start:
            self.close()
            raise SourceUnavailable(
                f"{self._describe()} was closed after these messages were received",
                hint="nothing is lost: they will be delivered again",
            )
        return self._client

    def _is_due_to_look(self) -> bool:
        """Whether to look again for consumers that are gone."""
        return time.monotonic() - self._looked_at > LOOK_EVERY_SECONDS

    def _note_dead(self, found: Iterable[_Named]) -> None:
        self._dead = deque(
            one.name for one in found if not one.alive and one.name != self._consumer
        )

    def _adapt_count(self, messages: int, size_bytes: int) -> None:
        """Ask for more or fewer messages from now on, by the size of those that came."""
        self._count = max(1, min(2 * self._count, BATCH_BYTES * messages // max(1, size_bytes)))

    def _disconnect(self, leave: Callable[[redis.Redis], object]) -> None:
        """`leave` says so to the server: the next consumer need not wait until that sees it."""
        client, self._client = self._client, None
        self._dead.clear()
        if client is None:
            return
        with suppress(redis.RedisError, OSError):
            leave(client)
        with suppress(redis.RedisError, OSError):
            client.close()

    @contextmanager
    def _giving_up(self, tried: str) -> Iterator[None]:
        """Any error closes the source."""
        try:
            with self._explaining(f"could not {tried} {self._describe()}"):
                yield
        except (SourceUnavailable, SourceRefused):
            self.close()
            raise
