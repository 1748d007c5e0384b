"""What both kinds of child processes do: the connection, calling a function, answering.

What must always hold: whatever a user's function raises or returns becomes an answer, with a text
that can be sent.
"""

from __future__ import annotations

import fcntl
import inspect
import os
import socket
import traceback
from typing import Any

import msgspec

from fuploader_dagster.contracts.functions import raised
from fuploader_dagster.contracts.processor import Item
from fuploader_dagster.errors import BadItem, FuploaderError, ProcessorUnavailable, RetryItem
from fuploader_dagster.processing.child_messages import (
    BAD,
    DONE,
    HEAD,
    NOT_HERE,
    OUT_OF_MEMORY,
    RETRY,
    UNAVAILABLE,
    Answer,
    Job,
    Order,
    frame,
)
from fuploader_dagster.processing.results import Results
from fuploader_dagster.processing.routes import Route, Routes

FIRST_OWN_DESCRIPTOR = 100
"""Above the descriptors that shells and scripts use by number."""
EXIT_MEMORY = 4
MAX_REASON = 2000
_CHUNK = 1 << 18


class Connection:
    """The child's end, blocking."""

    def __init__(self, descriptor: int) -> None:
        own = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN_DESCRIPTOR)
        os.close(descriptor)
        self.socket = socket.socket(fileno=own)
        self.socket.setblocking(True)
        self._buffer = bytearray(_CHUNK)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0

    def receive(self, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
        """The next message; `None` at the end."""
        if not self._have(HEAD.size):
            return None
        (size,) = HEAD.unpack_from(self._buffer, self._start)
        self._start += HEAD.size
        if size > _CHUNK - HEAD.size:
            large = bytearray(size)
            view = memoryview(large)
            filled = min(size, self._end - self._start)
            view[:filled] = self._view[self._start : self._start + filled]
            self._start += filled
            while filled < size:
                read = self.socket.recv_into(view[filled:])
                if not read:
                    return None
                filled += read
            return decoder.decode(large)
        if not self._have(size):
            return None
        self._start += size
        return decoder.decode(self._view[self._start - size : self._start])

    def send(self, message: Any) -> None:
        """Write a message."""
        self.socket.sendall(frame(message))

    def rest(self) -> bytes:
        """What was read already and not asked for."""
        return bytes(self._view[self._start : self._end])

    def _have(self, size: int) -> bool:
        while self._end - self._start < size:
            if self._start + size > _CHUNK or self._start == self._end:
                kept = self._end - self._start
                self._buffer[:kept] = self._buffer[self._start : self._end]
                self._start, self._end = 0, kept
            read = self.socket.recv_into(self._view[self._end :])
            if not read:
                return False
            self._end += read
        return True


class Work:
    """A module's functions, and how they are called."""

    def __init__(self, job: Job, routes: Routes) -> None:
        self.job = job
        self._routes = routes
        self._process = os.getpid()

    def find(self, order: Order) -> tuple[Item, Route, dict[str, str]]:
        """The function for an order. Raises `BadItem`."""
        item = Item(order.name, order.content, order.headers, order.key)
        return item, *self._routes.find(item, self.job.route_by)

    def answer(self, order: Order) -> Answer:
        """The answer of a sync function."""
        name = "finding a route"
        try:
            item, route, groups = self.find(order)
            if route.is_async:
                return Answer(order.number, NOT_HERE)
            name = route.name
            returned = route.function(item, **groups)
            if inspect.isawaitable(returned):
                returned.close() if inspect.iscoroutine(returned) else None
                raise BadItem(
                    "it returned an awaitable, but is not async itself", hint="use `async def`"
                )
            written = Results(self.job.max_result_bytes).take(returned)
            return Answer(order.number, DONE, written)
        except BaseException as error:  # noqa: BLE001 - also sys.exit(); the item's reason says it
            return answer_to(order.number, name, error)
        finally:
            self.leave_if_forked()

    def leave_if_forked(self) -> None:
        """A copy that a user's function forked has no orders of its own."""
        if os.getpid() != self._process:
            os._exit(0)


def answer_to(number: int, name: str, error: BaseException) -> Answer:
    """The answer to an order whose function raised."""
    if isinstance(error, MemoryError):
        return Answer(number, OUT_OF_MEMORY, text=f"the processor {name} raised MemoryError")
    if isinstance(error, RetryItem):
        after = error.retry_after_seconds
        after = float(after) if isinstance(after, (int, float)) else None
        return Answer(number, RETRY, [], as_text(error.message), as_text(error.hint), after)
    if isinstance(error, ProcessorUnavailable):
        return Answer(number, UNAVAILABLE, [], as_text(error.message), as_text(error.hint))
    if isinstance(error, BadItem):
        text = f"{name}: {as_text(error.message)}"
        answered = bool(error.answered)
        return Answer(number, BAD, [], text, as_text(error.hint), answered=answered)
    text = f"the processor {name} raised {raised_by(error)}{place_of(error)}"
    return Answer(number, BAD, text=text, answered=False)


def raised_by(error: BaseException) -> str:
    """What was raised, in a text of bounded length."""
    try:
        return raised(error)[:MAX_REASON]
    except Exception:  # noqa: BLE001 - its __str__ raises
        return type(error).__name__


def as_text(value: Any) -> str:
    """A text of bounded length that UTF-8 can encode."""
    return str(value).encode("utf-8", "backslashreplace").decode()[:MAX_REASON]


def place_of(error: BaseException) -> str:
    """Where a user's code raised, if it did: the last line that is not of this package."""
    if isinstance(error, FuploaderError):
        return ""
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    for one in reversed(traceback.extract_tb(error.__traceback__)):
        if not one.filename.startswith((own, "<frozen")):
            return f" ({as_text(os.path.basename(one.filename))}, line {one.lineno})"  # noqa: PTH119
    return ""
