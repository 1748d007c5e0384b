"""One child process, as the run sees it: its orders, its answers, its end.

What must always hold: an order that was sent is in `in_hand` until its answer came, also when the
process has ended. Nothing waits for a child: orders are written when the socket takes them, and
whether a function takes too long is looked at from outside (`look`). The child has a session of its
own; its end is the end of all that it started in it.

A frame longer than any answer may be, one that is none, and an answer to an order that is not there
come from a user's function that wrote into the connection: the child is ended for it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from fuploader_dagster.contracts.processor import Item, Result
from fuploader_dagster.errors import UNREADABLE_JSON, BadItem, ProcessorUnavailable, RetryItem
from fuploader_dagster.processing.child_messages import (
    ALIVE,
    ASYNC,
    BAD,
    DONE,
    HEAD,
    NOT_HERE,
    OUT_OF_MEMORY,
    RETRY,
    SYNC,
    UNAVAILABLE,
    Answer,
    Hello,
    Job,
    beat_of,
    frame,
    order,
)
from fuploader_dagster.subprocesses import environment, exit_in_words

MIB = 1 << 20
LONGEST_OVERHEAD = 64 * MIB
"""Of an answer, beside the contents of its results: their names."""
SHORTEST_START_SECONDS = 120.0
"""An import may take long on a busy machine."""
_BUFFER = 1 << 18
_JOINED = 1 << 16

_hellos = msgspec.msgpack.Decoder(Hello)
_answers = msgspec.msgpack.Decoder(Answer)


@dataclass(eq=False)
class Call:
    """An item that waits for its results."""

    item: Item
    future: asyncio.Future[Any]
    attempts_alone: int = 0
    """How many fresh children it ended, alone."""


@dataclass
class _Sent:
    call: Call
    size: int


class Child(asyncio.BufferedProtocol):
    """A process and the connection to it."""

    def __init__(self, job: Job, kind: str, on_room: Callable[[Child], None]) -> None:
        self._job = job
        self._on_room = on_room
        self.kind = kind
        self.hello: Hello | None = None
        self.in_hand: dict[int, _Sent] = {}
        """What was sent and not answered, in the order of sending."""
        self.bytes_in_hand = 0
        self.handled = 0
        """How many orders it was sent, all in all."""
        self.confessed: Call | None = None
        """The order that it said it ends for."""
        self.seconds_each = 0.0
        """How long an order takes, lately; 0 if it is not known yet."""
        self.ended_for = ""
        """Why the run ended it."""
        self.suspects: deque[Call] = deque()
        """What may have ended its predecessor: each is worked on alone, before everything else."""
        self.is_alone = False
        """What is in hand is one of them."""
        self._begun = False
        self._gone = False
        self._process: asyncio.subprocess.Process | None = None
        self._transport: asyncio.Transport | None = None
        self._greeted: asyncio.Future[Hello]
        self._began = 0.0
        self._worked = 0.0
        self._unsent: list[bytes] = []
        self._buffer = bytearray(_BUFFER)
        self._filled = 0
        self._limit = job.max_result_bytes + LONGEST_OVERHEAD
        self._loop = asyncio.get_running_loop()

    async def start(self) -> Hello:
        """Start it, and wait until it has imported the module.

        Raises `ProcessorUnavailable` if it ends before that, or takes too long.
        """
        self._greeted = self._loop.create_future()
        ours, theirs = socket.socketpair()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "fuploader_dagster.processing.child",
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sys.__stderr__.fileno() if sys.__stderr__ else 2,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=environment(),
            )
            self._transport, _ = await self._loop.create_unix_connection(lambda: self, sock=ours)
        except OSError as error:  # no memory or too many processes: that may pass
            ours.close()
            raise ProcessorUnavailable(
                f"a process for {self._job.module} could not be started: {error}"
            ) from error
        finally:
            theirs.close()
        try:
            self._transport.write(frame(self._job))
            await self._import(self._process)
        except BaseException:
            self.end("it was not waited for")
            raise
        self.hello = self._greeted.result()
        return self.hello

    async def _import(self, process: asyncio.subprocess.Process) -> None:
        ended = asyncio.create_task(process.wait())
        limit = max(SHORTEST_START_SECONDS, self._job.timeout_seconds)
        try:
            both: list[asyncio.Future[Any]] = [self._greeted, ended]
            await asyncio.wait(both, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        if not self._greeted.done():
            code = process.returncode
            said = f"it took longer than {limit:g} s" if code is None else exit_in_words(code)
            raise ProcessorUnavailable(
                f"a process could not import the module {self._job.module}: {said}",
                hint="the log of the run says more",
            )

    def begin(self, kind: str) -> None:
        """Tell it which functions it is for."""
        self.kind = kind
        assert self._transport is not None  # noqa: S101 - it was started
        self._transport.write(frame(kind))
        self._begun = True

    def has_room(self) -> bool:
        """Whether another order is of use to it: one in work, and a little in its queue."""
        if not self._begun or self.ended_for or self._is_cut():
            return False
        if self.kind == ASYNC:
            return True
        if not self.in_hand:
            return True
        if self.bytes_in_hand > MIB or not 0 < self.seconds_each < 0.2:
            return False
        return len(self.in_hand) < 2 + min(6, int(0.002 / self.seconds_each))

    def send(self, call: Call) -> None:
        """Give it an order. Raises `BadItem` if the item cannot be sent."""
        item = call.item
        number = self.handled
        try:
            data = order(number, item.name, item.content, item.headers, item.key)
        except (UnicodeEncodeError, TypeError, ValueError, OverflowError) as error:
            reason = f"the item cannot be given to a process: {error}"
            raise BadItem(reason, answered=False) from error
        self.handled += 1
        if not self.in_hand:
            self._began, self._worked = self._loop.time(), 0.0
        self.in_hand[number] = _Sent(call, len(data))
        self.bytes_in_hand += len(data)
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(data)

    def look(self, seconds: float) -> None:
        """Count these seconds, and end the process if it has worked too long on one order."""
        if not self.in_hand or self.ended_for:
            return
        self._worked += seconds
        limit = self._job.timeout_seconds
        if self.kind == ASYNC:
            limit += 2 * beat_of(limit)
        if self._worked > limit:
            self.end(f"it took longer than timeout_seconds ({self._job.timeout_seconds:g} s)")

    def end(self, why: str) -> None:
        """Kill it with all that it started. May be repeated."""
        self.ended_for = self.ended_for or why
        if self._transport is not None:
            self._transport.abort()
        if self._process is not None and not self._gone:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def wait(self) -> str:
        """Wait until the process has ended, and say of what."""
        if self._process is None:
            return "it could not be started"
        code = await self._process.wait()
        self._end_group()
        return self.ended_for or exit_in_words(code)

    @property
    def was_killed(self) -> bool:
        """Whether somebody else killed it: perhaps not for what it was working on."""
        return (
            not self.ended_for
            and self._process is not None
            and self._process.returncode == -signal.SIGKILL
        )

    async def leave(self, seconds: float) -> None:
        """Let it leave, if it has nothing to do; kill it after this time, or at once."""
        if self._process is None:
            return
        if self._transport is not None and not self.in_hand:
            self._transport.close()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait(), seconds)
        self.end("the processor was closed")
        await self._process.wait()
        self._end_group()

    def _end_group(self) -> None:
        """End what it left running. Once: later, its number may be another process's."""
        self.end("")
        self._gone = True

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is of a class of its own

    def get_buffer(self, _sizehint: int) -> memoryview:
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        start = 0
        while self._filled - start >= HEAD.size:
            (size,) = HEAD.unpack_from(self._buffer, start)
            if size > self._limit:
                self._refuse()
                return
            end = start + HEAD.size + size
            if end > self._filled:
                if end - start > len(self._buffer):
                    self._keep(start, HEAD.size + size)
                    return
                break
            try:
                self._take(memoryview(self._buffer)[start + HEAD.size : end])
            except UNREADABLE_JSON:
                self._refuse()
                return
            start = end
        if start:
            self._keep(start, _BUFFER)
        self._on_room(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has ended, or a user's function closed what it does not own."""
        self._loop.call_later(1.0, self._end_without_connection)

    def _end_without_connection(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self.end("it closed the connection to the run")

    def _keep(self, start: int, room: int) -> None:
        """Go on with a buffer of this size, or with the one there is."""
        kept = self._filled - start
        if len(self._buffer) != max(room, _BUFFER):
            fresh = bytearray(max(room, _BUFFER, kept))
            fresh[:kept] = memoryview(self._buffer)[start : self._filled]
            self._buffer = fresh
        elif kept:
            self._buffer[:kept] = self._buffer[start : self._filled]
        self._filled = kept

    def _take(self, message: memoryview) -> None:
        if self.hello is None and not self._greeted.done():
            self._greeted.set_result(_hellos.decode(message))
            return
        answer = _answers.decode(message)
        if answer.kind == ALIVE:
            self._worked = 0.0
            return
        if answer.kind == OUT_OF_MEMORY and self.in_hand:
            first = next(iter(self.in_hand))
            sent = self.in_hand.get(answer.number) or self.in_hand[first]
            self.confessed = sent.call
            self.end(answer.text)
            return
        in_turn = self.kind == ASYNC or next(iter(self.in_hand), None) == answer.number
        if not in_turn or (sent_one := self.in_hand.pop(answer.number, None)) is None:
            self._refuse()
            return
        self.bytes_in_hand -= sent_one.size
        self._worked = 0.0
        if self.kind == SYNC:
            now = self._loop.time()
            took = max(now - self._began, 1e-6)
            self._began = now
            self.seconds_each += (took - self.seconds_each) * (0.2 if self.seconds_each else 1)
        settle(sent_one.call, answer)

    def _refuse(self) -> None:
        self.end("it wrote into the connection to the run")

    def _is_cut(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def _flush(self) -> None:
        if self._transport is None or self._is_cut():
            self._unsent.clear()
            return
        small: list[bytes] = []
        for data in self._unsent:
            if len(data) < _JOINED:
                small.append(data)
                continue
            self._transport.write(b"".join(small))
            small.clear()
            self._transport.write(data)
        if small:
            self._transport.write(b"".join(small))
        self._unsent.clear()


def settle(call: Call, answer: Answer) -> None:
    """Give a call its outcome."""
    future = call.future
    if future.done():  # cancelled
        return
    if answer.kind == DONE:
        future.set_result([Result(*one) for one in answer.results])
    elif answer.kind == BAD:
        future.set_result(BadItem(answer.text, hint=answer.hint, answered=answer.answered))
    elif answer.kind == RETRY:
        after = answer.retry_after_seconds
        future.set_exception(RetryItem(answer.text, hint=answer.hint, retry_after_seconds=after))
    elif answer.kind == UNAVAILABLE:
        future.set_exception(ProcessorUnavailable(answer.text, hint=answer.hint))
    elif answer.kind == NOT_HERE:
        future.set_result(NOT_HERE)
