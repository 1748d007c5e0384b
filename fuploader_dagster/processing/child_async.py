"""A child process that runs a user's async functions: one event loop, many orders at once.

What must always hold: a call that waits longer than the limit is cancelled, and is bad; the others
go on. Time in which the loop stood still counts for nobody: it may be another function's. A loop
that stands still for that long is seen by the run, which hears nothing more (`ALIVE`), and ends the
process. So does a call that goes on after it was cancelled.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from dataclasses import dataclass

import msgspec

from fuploader_dagster.errors import BadItem
from fuploader_dagster.processing.child_messages import (
    ALIVE,
    DONE,
    HEAD,
    NO_ITEM,
    OUT_OF_MEMORY,
    Answer,
    Order,
    beat_of,
    frame,
)
from fuploader_dagster.processing.child_work import EXIT_MEMORY, Connection, Work, answer_to
from fuploader_dagster.processing.results import Results

EXIT_STUCK = 5
STUCK_SECONDS = 5.0
"""How long a cancelled call may go on."""


@dataclass
class _Call:
    task: asyncio.Task[None]
    began: float
    cancelled: float | None = None


class _Server:
    def __init__(self, work: Work) -> None:
        self._work = work
        self._limit = work.job.timeout_seconds
        self._calls: dict[int, _Call] = {}
        self._clock = 0.0
        """Seconds in which the loop turned."""
        self._writer: asyncio.StreamWriter

    async def serve(self, connection: Connection) -> int:
        """Begin each order as it comes."""
        reader, self._writer = await asyncio.open_unix_connection(sock=connection.socket)
        reader.feed_data(connection.rest())
        orders = msgspec.msgpack.Decoder(Order)
        watch = asyncio.create_task(self._watch())
        try:
            while True:
                (size,) = HEAD.unpack(await reader.readexactly(HEAD.size))
                order = orders.decode(await reader.readexactly(size))
                task = asyncio.create_task(self._handle(order))
                self._calls[order.number] = _Call(task, self._clock)
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0
        finally:
            watch.cancel()

    async def _handle(self, order: Order) -> None:
        answer = await self._answer(order)
        self._calls.pop(order.number, None)
        self._work.leave_if_forked()
        self._writer.write(frame(answer))
        if answer.kind == OUT_OF_MEMORY:
            await self._writer.drain()
            os._exit(EXIT_MEMORY)

    async def _answer(self, order: Order) -> Answer:
        name = "finding a route"
        results = Results(self._work.job.max_result_bytes)
        try:
            item, route, groups = self._work.find(order)
            name = route.name
            returned = route.function(item, **groups)
            if inspect.isasyncgen(returned):
                return Answer(order.number, DONE, await results.take_async(returned))
            if inspect.isawaitable(returned):
                returned = await returned
            return Answer(order.number, DONE, results.take(returned))
        except BaseException as error:  # noqa: BLE001 - also sys.exit(); the item's reason says it
            call = self._calls.get(order.number)
            if call is not None and call.cancelled is not None:
                reason = f"it took longer than timeout_seconds ({self._limit:g} s)"
                late = BadItem(reason, answered=False)
                return answer_to(order.number, name, late)
            return answer_to(order.number, name, error)

    async def _watch(self) -> None:
        beat = beat_of(self._limit)
        before = time.monotonic()
        while True:
            await asyncio.sleep(beat)
            now = time.monotonic()
            self._clock += min(now - before, 2 * beat)
            before = now
            if self._calls:
                self._writer.write(frame(Answer(NO_ITEM, ALIVE)))
            for call in list(self._calls.values()):
                if call.cancelled is not None:
                    if self._clock - call.cancelled > STUCK_SECONDS:
                        os._exit(EXIT_STUCK)
                elif self._clock - call.began > self._limit:
                    call.cancelled = self._clock
                    call.task.cancel()


def serve_async(connection: Connection, work: Work) -> int:
    """Answer orders side by side until the run closes the connection."""
    loop = asyncio.new_event_loop()
    connection.socket.setblocking(False)
    return loop.run_until_complete(_Server(work).serve(connection))
