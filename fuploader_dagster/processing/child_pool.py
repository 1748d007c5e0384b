"""Gives items to child processes, and judges what ends them.

What must always hold: each item ends with its results, or with a reason of its own. An item that
ends its child process (a crash, `os._exit`, a hang, lack of memory) is tried once more, alone in a
fresh one; if it ends that too, it is bad. What was in the same process, or waited for it, is done
again and blamed for nothing. A child that somebody else kills is no proof: that item is tried alone
up to three times.

How: `workers` children run sync functions, one order after the other, with a few more in their
queue; one child with an event loop runs async functions, all at once. Which function an item is
for, the child knows. A lane is the place of a child: when one ends, the lane starts the next one,
with what may have ended the last one as its first orders. When the async child ends, that may be
any of its items: all are suspects, and the next child works on one after the other before it takes
more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from fuploader_dagster.contracts.functions import raised
from fuploader_dagster.contracts.processor import Item, Processor, Result
from fuploader_dagster.errors import BadItem, FuploaderError, ProcessorUnavailable, StrategyError
from fuploader_dagster.processing.child_messages import (
    ASYNC,
    NOT_HERE,
    SYNC,
    Hello,
    Job,
    beat_of,
)
from fuploader_dagster.processing.child_process import Call, Child

log = logging.getLogger(__name__)

MAX_STARTS = 10
"""Children of a lane that ended, one after the other, before they could work."""
LEAVING_SECONDS = 2.0
ALONE, ALONE_IF_KILLED = 1, 3
"""How many fresh children an item may end before it is bad."""


class ChildPool(Processor):
    """A processor that runs a module's functions in child processes."""

    def __init__(self, job: Job, workers: int, source_digest: Callable[[], str]) -> None:
        """`source_digest`: of the module. Children of one pool all have the same one."""
        self.routes: list[str] = []
        """The patterns that the module has, once it is open."""
        self._job = job
        self._workers = workers
        self._source_digest = source_digest
        self._source = source_digest()
        self._children: list[Child] = []
        self._spares: deque[tuple[Child, asyncio.Task[Hello]]] = deque()
        """Were started together with the first one, before it said what the module has."""
        self._waiting: dict[str, deque[Call]] = {SYNC: deque(), ASYNC: deque()}
        self._tasks: list[asyncio.Task[None]] = []
        self._kind = SYNC
        """Which children get an item first."""
        self._failed: FuploaderError | None = ProcessorUnavailable("the processor is not open")

    async def open(self) -> None:
        """Start the children. Raises `StrategyError` if the module cannot be used."""
        self._spares.extend(self._start(SYNC) for _ in range(self._workers))
        first, started = self._spares.popleft()
        try:
            hello = await started
            if hello.problem:
                raise StrategyError(hello.problem, hint=hello.hint)
            if not hello.is_sync:
                await self._drop_spares()
        except BaseException:
            await first.leave(0)
            await self._drop_spares()
            raise
        self.routes = hello.routes
        lanes = [SYNC] * (self._workers if hello.is_sync else 0)
        lanes += [ASYNC] if hello.is_async else []
        self._kind = lanes[0]
        self._failed = None
        self._put_to_work(first, lanes[0], deque())
        for number, kind in enumerate(lanes):
            lane = self._lane(kind, None if number else first)
            self._tasks.append(asyncio.create_task(lane))
        self._tasks.append(asyncio.create_task(self._watch()))

    async def process(self, items: Sequence[Item]) -> Sequence[Sequence[Result] | BadItem]:
        """The results of each item, or why it is bad."""
        if self._failed is not None:
            raise _again(self._failed)
        calls = [self._submit(item, self._kind) for item in items]
        try:
            outcomes = []
            for place, call in enumerate(calls):
                outcome = await call.future
                if outcome is NOT_HERE:
                    calls[place] = self._submit(call.item, ASYNC)
                    outcome = await calls[place].future
                outcomes.append(outcome)
            return outcomes
        finally:
            if len(outcomes) < len(calls):
                for call in calls:
                    _forget(call.future)

    async def close(self) -> None:
        """End the children. Items in work are given up."""
        self._fail(ProcessorUnavailable("the processor was closed"))
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._drop_spares()
        children, self._children = self._children, []
        await asyncio.gather(*(child.leave(LEAVING_SECONDS) for child in children))

    def _start(self, kind: str) -> tuple[Child, asyncio.Task[Hello]]:
        child = Child(self._job, kind, self._feed)
        return child, asyncio.create_task(child.start())

    async def _drop_spares(self) -> None:
        while self._spares:
            child, started = self._spares.popleft()
            started.cancel()
            await asyncio.gather(started, return_exceptions=True)
            await child.leave(0)

    def _submit(self, item: Item, kind: str) -> Call:
        call = Call(item, asyncio.get_running_loop().create_future())
        waiting = self._waiting[kind]
        if not waiting and (child := self._child_with_room(kind)):
            self._send(child, call)
        else:
            waiting.append(call)
        return call

    def _child_with_room(self, kind: str) -> Child | None:
        best = None
        for child in self._children:
            if (
                child.kind == kind
                and (best is None or len(child.in_hand) < len(best.in_hand))
                and not (child.suspects or child.is_alone)
                and child.has_room()
            ):
                best = child
        return best

    def _send(self, child: Child, call: Call) -> None:
        try:
            child.send(call)
        except BadItem as error:
            call.future.set_result(error)

    def _feed(self, child: Child) -> None:
        """Give a child what it has room for: first, one by one, what is suspected."""
        if child.is_alone and child.in_hand:
            return
        child.is_alone = False
        while child.suspects and not child.in_hand and child.has_room():
            call = child.suspects.popleft()
            if not call.future.done():
                child.is_alone = True
                self._send(child, call)
        if child.is_alone or child.suspects:
            return
        waiting = self._waiting[child.kind]
        while waiting and child.has_room():
            call = waiting.popleft()
            if not call.future.done():  # it was not cancelled
                self._send(child, call)

    async def _lane(self, kind: str, child: Child | None) -> None:
        """Keep one child at work, until the processor is closed."""
        suspects: deque[Call] = deque()
        try:
            while True:
                if child is None:
                    child = await self._successor(kind)
                    self._put_to_work(child, kind, suspects)
                reason = await child.wait()
                self._children.remove(child)
                suspects = self._bury(child, reason)
                child = None
                for other in list(self._children):
                    self._feed(other)
        except FuploaderError as error:
            self._fail(error)
        except Exception as error:
            log.exception("giving items to the processes of %s failed", self._job.module)
            self._fail(ProcessorUnavailable(f"giving items to processes failed: {raised(error)}"))
            raise
        finally:
            for call in suspects:
                if self._failed is not None and not call.future.done():
                    call.future.set_exception(_again(self._failed))

    def _put_to_work(self, child: Child, kind: str, suspects: deque[Call]) -> None:
        child.begin(kind)
        child.suspects = suspects
        self._children.append(child)
        self._feed(child)

    async def _successor(self, kind: str) -> Child:
        """The next child of a lane. Raises an error of this package if there can be none."""
        for attempt in range(1, MAX_STARTS + 1):
            child, started = self._spares.popleft() if self._spares else self._start(kind)
            try:
                hello = await started
                if hello.problem:
                    raise StrategyError(hello.problem, hint=hello.hint)
                if self._source_digest() != self._source:
                    raise ProcessorUnavailable(
                        f"the module {self._job.module} was changed while items were "
                        f"processed with it; the slot begins again with the new one"
                    )
                return child
            except BaseException as error:
                await child.leave(0)
                if not isinstance(error, ProcessorUnavailable) or attempt == MAX_STARTS:
                    raise
                log.warning("%s; trying again", error)
            await asyncio.sleep(0.1 * attempt)
        raise AssertionError  # pragma: no cover

    def _bury(self, child: Child, reason: str) -> deque[Call]:
        """Judge what a child had in hand when it ended. Returns what the next one tries alone."""
        calls = [sent.call for sent in child.in_hand.values()]
        if child.confessed is not None:
            blamed = [child.confessed]
        else:
            blamed = calls if child.kind == ASYNC else calls[:1]
        log.warning(
            "a process of %s ended while it had %d item(s) in hand: %s",
            self._job.module,
            len(calls),
            reason,
        )
        fresh = child.is_alone and child.handled == 1
        suspects: list[Call] = []
        for call in blamed:
            if fresh:
                call.attempts_alone += 1
            if call.attempts_alone >= (ALONE_IF_KILLED if child.was_killed else ALONE):
                _judge(call, reason)
            else:
                suspects.append(call)
        innocent = [call for call in calls if call not in blamed]
        self._waiting[child.kind].extendleft(reversed(innocent))
        return deque([*suspects, *child.suspects])

    async def _watch(self) -> None:
        """End children that work too long on one item."""
        beat = beat_of(self._job.timeout_seconds)
        loop = asyncio.get_running_loop()
        before = loop.time()
        while True:
            await asyncio.sleep(beat)
            now = loop.time()
            # In a run that stood still (a busy machine, a stopped process) its children may not.
            seconds, before = min(now - before, 2 * beat), now
            for child in list(self._children):
                child.look(seconds)

    def _fail(self, error: FuploaderError) -> None:
        """Give up: nothing can be processed any more."""
        self._failed = error
        calls = [call for waiting in self._waiting.values() for call in waiting]
        for child in self._children:
            calls += [sent.call for sent in child.in_hand.values()]
            calls += child.suspects
        for waiting in self._waiting.values():
            waiting.clear()
        for call in calls:
            if not call.future.done():
                call.future.set_exception(_again(error))


def _judge(call: Call, reason: str) -> None:
    if not call.future.done():
        verdict = BadItem(
            f"processing it ended its process, and again one in which it was alone: {reason}",
            hint="correct the function, then run `fuploader dead-letters requeue`",
            answered=False,
        )
        call.future.set_result(verdict)


def _again(error: FuploaderError) -> FuploaderError:
    """The error once more, to be raised somewhere else."""
    return type(error)(error.message, hint=error.hint)


def _forget(future: asyncio.Future[Any]) -> None:
    """Nobody waits for this outcome any more."""
    if not future.cancel() and not future.cancelled():
        future.exception()
