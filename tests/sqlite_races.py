"""Processes and programs that open one SQLite file at the same moment."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

PROCESSES = 4
Use = Callable[[Path, int], None]
"""Opens, writes and closes the database that has this file; the number differs each time."""


def together(use: Use, path_of: Callable[[int], Path], rounds: int) -> list[str]:
    """What goes wrong in processes that use a file of each round at the same moment."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(PROCESSES)
    troubles = context.SimpleQueue()
    processes = [
        context.Process(target=_use_all, args=(use, path_of, rounds, number, barrier, troubles))
        for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    found = [text for _ in processes for text in troubles.get()]
    for process in processes:
        process.join()
    return found


def _use_all(  # noqa: PLR0917 - as a process gets its arguments
    use: Use,
    path_of: Callable[[int], Path],
    rounds: int,
    number: int,
    barrier: Barrier,
    troubles: SimpleQueue[list[str]],
) -> None:
    found = []
    for turn in range(rounds):
        barrier.wait(120)
        try:
            use(path_of(turn), PROCESSES * turn + number)
        except Exception as error:
            found.append(f"round {turn}: {type(error).__name__}: {error}")
    troubles.put(found)


def assert_waits_for_another_program(use: Use, path: Path) -> None:
    """With a program that writes a new file and knows nothing of our locks."""
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE others (x)")
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO others VALUES (1)")
        failed: list[Exception] = []

        def open_it() -> None:
            try:
                use(path, 1)
            except Exception as error:
                failed.append(error)

        opener = threading.Thread(target=open_it)
        opener.start()
        opener.join(0.5)  # it may end within, of the error of before; it must not end well
        assert failed == []
        assert opener.is_alive()
        other.execute("COMMIT")
        opener.join(60)
    assert not opener.is_alive()
    assert failed == []
