"""A child process that runs a user's functions: `python -m fuploader_dagster.processing.child`.

It imports the module, says what it found, and answers one order after the other until the run
closes the connection. Async functions have `child_async.py`.

What must always hold: an answer is written before the next order begins, so that a child that dies
was working on the first order without an answer. Nothing that a user's function raises ends the
process, except for lack of memory: the function may hold on to it, so this process is replaced.

The user's code gets no way to the connection by accident: its descriptor is high and not inherited,
stdin is empty, and what is printed goes to stderr. A copy of the process that a function forked
leaves as soon as it comes back here. The process has a session of its own, so that the run can end
it with all that it started, and it dies with the run (`PR_SET_PDEATHSIG`).
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import os
import resource
import select
import signal
import sys
import threading

import msgspec

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.processing.child_async import serve_async
from fuploader_dagster.processing.child_messages import (
    NO_ITEM,
    OUT_OF_MEMORY,
    SYNC,
    Answer,
    Hello,
    Job,
    Order,
)
from fuploader_dagster.processing.child_work import (
    EXIT_MEMORY,
    Connection,
    Work,
    as_text,
    place_of,
    raised_by,
)
from fuploader_dagster.processing.routes import Routes
from fuploader_dagster.settings.logs import log_as

_PR_SET_PDEATHSIG = 1


def serve(connection: Connection, work: Work) -> int:
    """Answer one order after the other."""
    orders = msgspec.msgpack.Decoder(Order)
    while True:
        try:
            order = connection.receive(orders)
            if order is None:
                return 0
            answer = work.answer(order)
            connection.send(answer)
        except MemoryError:
            answer = Answer(NO_ITEM, OUT_OF_MEMORY, text="memory ran out between two functions")
            connection.send(answer)
        if answer.kind == OUT_OF_MEMORY:
            return EXIT_MEMORY
        del order, answer


def main() -> int:
    """Run the process."""
    connection = Connection(int(sys.argv[1]))
    job = connection.receive(msgspec.msgpack.Decoder(Job))
    if job is None:
        return 0
    _die_with(job.parent, connection)
    for ignored in (signal.SIGINT, signal.SIGTERM):  # the run ends it; programs it runs get theirs
        signal.signal(ignored, lambda *_: None)
    sys.path[:] = [*job.sys_path, *(path for path in sys.path if path not in job.sys_path)]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what a crash left
    log_as("processor")
    if job.memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (job.memory_bytes, job.memory_bytes))
    routes = _load(job.module, connection)
    if routes is None:
        return 1
    work = Work(job, routes)
    gc.freeze()
    kind = connection.receive(msgspec.msgpack.Decoder(str))
    if kind is None:
        return 0
    return serve(connection, work) if kind == SYNC else serve_async(connection, work)


def _load(module: str, connection: Connection) -> Routes | None:
    """The module's routes; says the run what it found, or why there is nothing."""
    process = os.getpid()
    routes = None
    try:
        routes = Routes(importlib.import_module(module))
        hello = Hello(
            is_sync=any(not route.is_async for route in routes),
            is_async=any(route.is_async for route in routes),
            routes=[route.pattern.pattern if route.pattern else "(default)" for route in routes],
        )
    except ConfigError as error:
        hello = Hello(as_text(error.message), as_text(error.hint))
    except BaseException as error:  # noqa: BLE001 - whatever a user's module raises, the run says it
        problem = f"the module {module} cannot be imported: {raised_by(error)}{place_of(error)}"
        hello = Hello(problem, "correct it; nothing was processed")
    if os.getpid() != process:  # a copy that the module forked
        os._exit(0)
    connection.send(hello)
    return routes


def _die_with(parent: int, connection: Connection) -> None:
    """Let the kernel end this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before that
            os._exit(0)
    else:
        watch = threading.Thread(target=_watch, args=[connection.socket.fileno()], daemon=True)
        watch.start()


def _watch(descriptor: int) -> None:
    closed = select.poll()
    closed.register(descriptor, 0)  # polls for nothing but the closing of the other end
    closed.poll()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    os._exit(status)  # threads that a user's function left would keep the process running
