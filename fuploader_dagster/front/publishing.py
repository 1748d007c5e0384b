"""Publishing: one thread per pipeline and process gives requests to the queue, in groups.

What must always hold:

- A request is answered with success only after the queue has confirmed all of its messages.
- Requests that arrive while a group is being published are the next group: they share one publish,
  and so one sync of the broker or the disk. Nobody waits for company.
- A request that the queue refuses, or that cannot be sent, takes no other one with it.
- The event loop never waits for the queue: it looks at what this thread has found out.

Requests wait in a deque. The thread takes from it whatever is there. Only if it sleeps it is woken,
once for all requests that the event loop finds together, so that these are one group.

How much waits is asked by the same thread and connection, between two groups, at most once a
second; what was published since then counts.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from fuploader_dagster.contracts.refused_messages import publish_accepted
from fuploader_dagster.errors import (
    ConfigError,
    FuploaderError,
    MessageRefused,
    SourceRefused,
    TemporaryError,
)
from fuploader_dagster.front.accepted import Accepted
from fuploader_dagster.front.answers import Refusal, try_later
from fuploader_dagster.front.group import Group, Request
from fuploader_dagster.front.items import Item
from fuploader_dagster.front.published import Published
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.serve import Serve

log = logging.getLogger(__name__)

GROUP_MESSAGES = 2_000
GROUP_BYTES = 16 * 2**20
MOST_WAITING_BYTES = 256 * 2**20
"""Of requests that the queue has not confirmed yet."""
ASK_SECONDS = 1.0
ENDING_SECONDS = 10.0
"""Longest time that the end waits for a queue."""
DOWN_SECONDS = 1.0
"""After a failure, requests are refused at once for this long."""


class Publishing:
    """Of one pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        serve = pipeline.serve or Serve()
        self._pipeline = pipeline
        self._serve = serve
        self._publisher = pipeline.source.publisher()
        self.publisher_type = type(self._publisher)
        if serve.headers and not self.publisher_type.keeps_headers:
            raise ConfigError(
                f"{pipeline.source.describe()} has no place for the headers of a message",
                hint=f"remove serve: {{headers: ...}} of {pipeline.name}, or use another queue",
            )
        self._memory = (
            Accepted(
                pipeline.layout.accepted,
                serve.remember_ids,
                given_up_seconds=2 * serve.answer_seconds,
            )
            if serve.remember_ids
            else None
        )
        self._published = (
            Published(pipeline.layout.published, serve.remember_ids) if serve.remember_ids else None
        )
        self._requests: deque[Request] = deque()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        """Wakes the thread, spuriously at times."""
        self._sleeps = False
        self._to_be_woken = False
        self._ending = False
        self._waiting_bytes = 0
        self._backlog = 0
        self._asked = 0.0
        self._published_since = 0
        self._trouble: FuploaderError | None = None
        self._down_until = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(
            target=self._work, name=f"publish to {pipeline.name}", daemon=True
        )

    def start(self) -> None:
        """Called in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """Publish what waits, then disconnect."""
        self._ending = True
        self._bell.put(None)
        if self._thread.ident is not None:
            self._thread.join(ENDING_SECONDS)
            if self._thread.is_alive():  # a queue that hangs; every request is answered by now
                return
        self._publisher.close()
        if self._memory is not None:
            self._memory.close()

    def check_backlog(self) -> None:
        """Raise a `Refusal` if the queue has more than it should."""
        most, waiting = self._serve.max_backlog, self._backlog + self._published_since
        if most and waiting > most:
            raise Refusal(
                429,
                f"{waiting:,} messages wait in the queue of {self._pipeline.name}; "
                f"max_backlog is {most:,}",
                hint="try again when the pipeline has caught up",
                headers={"retry-after": "1"},
            )
        if self._waiting_bytes > MOST_WAITING_BYTES:
            raise try_later(
                f"requests with {self._waiting_bytes:,} bytes wait for the queue",
                hint="the queue is slower than its producers",
            )

    async def publish(self, items: Sequence[Item], key: bytes | None, content: bytes) -> None:
        """Return when all of them are confirmed. Raises a `Refusal`, or the queue's error."""
        loop = self._loop
        if loop is None:
            raise RuntimeError("publishing has not begun")
        future = loop.create_future()
        size_bytes = sum(len(one.body) for one in items)
        self._waiting_bytes += size_bytes
        self._requests.append(Request(items, size_bytes, future, key, content))
        if self._sleeps and not self._to_be_woken:
            self._to_be_woken = True
            loop.call_soon(self._wake)
        late = loop.call_later(self._serve.answer_seconds, self._too_late, future)
        try:
            await future
        finally:
            late.cancel()

    def _too_late(self, future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_exception(
                try_later(
                    f"the queue has not confirmed it within {self._serve.answer_seconds:g} s",
                    hint="it may still arrive: send it again with the same Idempotency-Key",
                )
            )

    def _wake(self) -> None:
        self._to_be_woken = False
        self._bell.put(None)

    # What follows runs in the thread.

    def _work(self) -> None:
        ask = bool(self._serve.max_backlog)
        while True:
            if group := self._next_group():
                self._finish(group, self._outcomes(group))
            elif self._ending:
                return
            else:
                self._sleep(ASK_SECONDS if ask else None)
            if ask and not self._ending and time.monotonic() - self._asked >= ASK_SECONDS:
                self._ask()

    def _next_group(self) -> list[Request]:
        """What waits, up to the limits of a group."""
        group: list[Request] = []
        size = number = 0
        while self._requests and size < GROUP_BYTES and number < GROUP_MESSAGES:
            request = self._requests.popleft()
            group.append(request)
            size, number = size + request.size_bytes, number + len(request.items)
        return group

    def _sleep(self, most_seconds: float | None) -> None:
        """Until the bell rings. A request that comes after `_sleeps` is set rings it."""
        self._sleeps = True
        try:
            if not self._requests and not self._ending:
                self._bell.get(timeout=most_seconds)
        except queue.Empty:
            return
        finally:
            self._sleeps = False

    def _ask(self) -> None:
        try:
            self._backlog, self._published_since = self._publisher.backlog(), 0
            self._trouble = None
        except FuploaderError as error:
            self._went_down(error)
        self._asked = time.monotonic()

    def _went_down(self, error: FuploaderError) -> None:
        if self._trouble is None:
            log.warning("%s: %s", self._pipeline.name, error)
        self._trouble, self._down_until = error, time.monotonic() + DOWN_SECONDS

    def _outcomes(self, group: Sequence[Request]) -> list[Exception | None]:
        """What became of each request; None: confirmed."""
        try:
            return Group(group, self._send, self._memory).outcomes()
        except Exception as error:  # noqa: BLE001  each request is answered; the thread goes on
            return [error] * len(group)

    def _finish(self, group: Sequence[Request], outcomes: Sequence[Exception | None]) -> None:
        def tell() -> None:
            for request, outcome in zip(group, outcomes, strict=True):
                self._waiting_bytes -= request.size_bytes
                if request.future.done():  # too late, or the client is gone
                    continue
                if outcome is None:
                    request.future.set_result(None)
                else:
                    request.future.set_exception(outcome)

        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(tell)

    def _send(self, items: Sequence[Item]) -> dict[int, MessageRefused]:
        """Publish them, each confirmed; the refused ones by position."""
        if self._trouble is not None and time.monotonic() < self._down_until:
            raise self._trouble
        pairs: list[tuple[bytes, Mapping[str, Any]]] = [(one.body, one.headers) for one in items]
        try:
            refused = publish_accepted(self._publisher.publish, pairs)
        except (TemporaryError, SourceRefused) as error:
            self._went_down(error)
            raise
        self._trouble = None
        self._published_since += len(items) - len(refused)
        self._note(one.id for at, one in enumerate(items) if at not in refused)
        return refused

    def _note(self, ids: Iterable[str]) -> None:
        if self._published is None:
            return
        try:
            self._published.note(ids)
        except FuploaderError as error:  # until they are drained, nobody can be told where they are
            log.warning("%s: %s", self._pipeline.name, error)
