"""Uses private names of Dagster: a code server that lost its cleanup thread.

The trouble: the code server's thread `grpc-server-cleanup` asks Dagster's storage about runs whose
process ended, without catching what that raises. If the database is away in that moment, the thread
is gone for good: dead runs are not reported any more, and SIGTERM, which the thread has to carry
out, only hangs. A replacement binds the same port beside it, and each gets a share of the ticks.

What must always hold: a code server without that thread ends itself, with exit code 1, after its
workers left; its process manager starts it again. One at a socket (under `dagster dev`, or behind
`dagster code-server start`), which nobody would start again, gets a new thread instead. An orderly
end is not touched.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
import time
from functools import lru_cache
from typing import Any

from fuploader_dagster.intake.supervisor import stop_all

log = logging.getLogger(__name__)

THREAD = "grpc-server-cleanup"
EXIT_CODE = 1
_LOOK_SECONDS = 0.1
"""The thread first asks 0.5 s after it was started."""


@lru_cache(maxsize=1)
def watch_code_server() -> None:
    """Watch the cleanup thread, if this process is a code server. Called when code is loaded."""
    if sys.argv[1:3] == ["api", "grpc"] and multiprocessing.parent_process() is None:
        threading.Thread(target=_watch, daemon=True, name="watch of the code server").start()


def _watch() -> None:
    while True:
        thread = _cleanup_thread()
        server: Any = getattr(getattr(thread, "_target", None), "__self__", None)
        ending: threading.Event | None = getattr(server, "_server_termination_event", None)
        if ending is None:
            log.warning("this version of Dagster's code server cannot be watched (%s)", THREAD)
            return
        thread.join()
        if ending.is_set():
            return
        if not any(word in sys.argv for word in ("--socket", "-s")):
            _end()
        log.error(
            "the thread %s of this code server died, probably because Dagster's storage did not "
            "answer, and was started again",
            THREAD,
        )
        time.sleep(_LOOK_SECONDS)
        threading.Thread(target=server._cleanup_thread, name=THREAD, daemon=True).start()


def _cleanup_thread() -> threading.Thread:
    """The thread, which the server starts after it has loaded the code. One that is just being
    started is listed already, but not alive: it cannot be joined yet."""
    while True:
        for thread in threading.enumerate():
            if thread.name == THREAD and thread.is_alive():
                return thread
        time.sleep(_LOOK_SECONDS)


def _end() -> None:
    log.error(
        "the thread %s of this code server died, probably because Dagster's storage did not "
        "answer. Without it the server cannot be stopped and reports no runs that die, so it ends "
        "now; its process manager starts it again",
        THREAD,
    )
    stop_all()
    logging.shutdown()
    os._exit(EXIT_CODE)  # an orderly exit would wait for that thread
