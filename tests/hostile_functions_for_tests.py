"""Processors as nobody should write them; the tests' children import them by name."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuploader_dagster import Item, Result, processor
from fuploader_dagster.errors import ProcessorUnavailable


class _Nasty(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


def _raise(error: BaseException) -> Any:
    raise error


def _hang_in_c() -> Any:
    ctypes.PyDLL(None).sleep(3600)  # keeps the interpreter's lock


def _eat() -> Any:
    eaten = []
    while True:
        eaten.append(bytes(1 << 24))


def _fork_and_return() -> bytes:
    return b"copy" if os.fork() == 0 else b"original"


def _fork_and_stay() -> bytes:
    if os.fork() == 0:
        time.sleep(3600)
    return b"done"


def _threads_without_end() -> bytes:
    for _ in range(3):
        threading.Thread(target=time.sleep, args=[3600]).start()
    return b"done"


def _scribble() -> Any:
    for descriptor in range(3, 300):
        with contextlib.suppress(OSError):
            os.write(descriptor, b"scribble" * 4)
    time.sleep(3600)


def _close_all() -> bytes:
    os.closerange(3, 4096)
    return b"done"


def _print_megabytes() -> bytes:
    for _ in range(4_000):
        print("x" * 1_000)
    return b"done"


def _without_end() -> Iterator[bytes]:
    while True:
        yield b""


def _yields_and_raises() -> Iterator[bytes]:
    yield b"1"
    raise ValueError("after one")


DEEDS = {
    "raise": lambda: _raise(ValueError("no such picture")),
    "raise-nasty": lambda: _raise(_Nasty()),
    "raise-large": lambda: _raise(ValueError("x" * (8 << 20))),
    "raise-surrogate": lambda: _raise(ValueError("\ud800")),
    "sys.exit": lambda: sys.exit(3),
    "interrupt": lambda: _raise(KeyboardInterrupt()),
    "generator-exit": lambda: _raise(GeneratorExit()),
    "cancelled": lambda: _raise(asyncio.CancelledError()),
    "unavailable": lambda: _raise(ProcessorUnavailable("the model server is down")),
    "exit": lambda: os._exit(7),
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda: time.sleep(3600),
    "hang-in-c": _hang_in_c,
    "alarm-later": lambda: (signal.setitimer(signal.ITIMER_REAL, 0.2), b"done")[1],
    "eat": _eat,
    "none": lambda: None,
    "path": lambda: Path("result.png"),
    "file": lambda: io.BytesIO(b"x"),
    "object": object,
    "set": lambda: {1, 2},
    "not-json": lambda: {"a": object()},
    "nan": lambda: float("nan"),
    "surrogate": lambda: "\ud800",
    "gigabyte": lambda: bytes(1 << 30),
    "many-small": lambda: [bytes(1 << 20)] * 4,
    "without-end": _without_end,
    "yields-and-raises": _yields_and_raises,
    "up": lambda: Result(b"x", name=".."),
    "separator": lambda: Result(b"x", name="a/b"),
    "nul": lambda: Result(b"x", name="a\0b"),
    "long-name": lambda: Result(b"x", name="x" * 256),
    "bad-type": lambda: Result(b"x", content_type="a\nb"),
    "content-none": lambda: Result(None),  # type: ignore[arg-type]
    "stdin": lambda: sys.stdin.read() + "end",
    "print": _print_megabytes,
    "close-stdout": lambda: (sys.stdout.close(), b"done")[1],
    "fork-and-return": _fork_and_return,
    "fork-and-stay": _fork_and_stay,
    "threads": _threads_without_end,
    "scribble": _scribble,
    "close-all": _close_all,
    "term": lambda: (os.kill(os.getpid(), signal.SIGTERM), b"done")[1],
}


@processor(route="do/(?P<deed>.+)")
def do(item: Item, deed: str) -> Any:
    """Whatever the header says."""
    return DEEDS[deed]()


@processor(route="do-async/(?P<deed>.+)")
async def do_async(item: Item, deed: str) -> Any:
    """The same in the event loop, among others."""
    await asyncio.sleep(0.01)
    return DEEDS[deed]()


@processor(route="sleep/(?P<seconds>.+)")
async def sleep(item: Item, seconds: str) -> bytes:
    await asyncio.sleep(float(seconds))
    return item.content


@processor(route="stubborn")
async def stubborn(item: Item) -> bytes:
    """Goes on although it is cancelled."""
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


@processor(route="echo-async")
async def echo_async(item: Item) -> bytes:
    await asyncio.sleep(0.01)
    return item.content


@processor(route="echo")
def echo(item: Item) -> bytes:
    return item.content


@processor(route="work")
def work(item: Item) -> bytes:
    """Five milliseconds of it."""
    time.sleep(0.005)
    return item.content
