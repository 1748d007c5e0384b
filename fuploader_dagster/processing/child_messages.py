"""What a pipeline's run and its child processes say to each other.

Format: a frame is eight bytes of length, little endian, and a msgpack array. The run writes a `Job`
(once), the kind of work as text (once, after the child's `Hello`), then an `Order` for each item.
The child writes `Hello`, then `Answer`s. A socket pair carries both ways; its end is the child's
end.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import msgspec

HEAD = struct.Struct("<Q")
NO_ITEM = -1
"""The number in an answer that is about no order of its own."""

DONE, BAD, RETRY, UNAVAILABLE, OUT_OF_MEMORY, NOT_HERE, ALIVE = range(7)
"""Kinds of answers. `OUT_OF_MEMORY`: the child ends now. `NOT_HERE`: an async function in a child
for sync ones. `ALIVE`: the event loop turns."""
SYNC, ASYNC = "sync", "async"


class Job(msgspec.Struct, frozen=True, array_like=True):
    """What a child is there for."""

    module: str
    route_by: str
    sys_path: list[str]
    """Of the run: modules must be found the same way."""
    parent: int
    """The process that started it."""
    timeout_seconds: float
    max_result_bytes: int
    memory_bytes: int | None


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """What a child found in the module."""

    problem: str = ""
    """Why it cannot work: the module cannot be imported, or has no processor."""
    hint: str = ""
    is_sync: bool = False
    """The module has functions that are not async."""
    is_async: bool = False
    routes: list[str] = []


class Order(msgspec.Struct, frozen=True, array_like=True):
    """An item to be processed."""

    number: int
    name: str
    content: bytes
    headers: dict[str, str]
    key: str


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What became of an order."""

    number: int
    kind: int
    results: list[tuple[bytes, str, str]] = []
    text: str = ""
    hint: str = ""
    retry_after_seconds: float | None = None
    answered: bool = True
    """As in `BadItem`."""


_encoder = msgspec.msgpack.Encoder()


def frame(message: Any) -> bytes:
    """The frame of a message. Raises `UnicodeEncodeError` on text that UTF-8 cannot encode."""
    buffer = bytearray(HEAD.size)
    _encoder.encode_into(message, buffer, HEAD.size)
    HEAD.pack_into(buffer, 0, len(buffer) - HEAD.size)
    return bytes(buffer)


def order(number: int, name: str, content: bytes, headers: Mapping[str, str], key: str) -> bytes:
    """The frame of an order."""
    return frame(Order(number, name, content, dict(headers), key))


def beat_of(timeout_seconds: float) -> float:
    """Seconds between two looks at the time that calls take."""
    return max(0.02, min(1.0, timeout_seconds / 10))
