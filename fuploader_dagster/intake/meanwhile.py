"""Meanwhile: what cannot wait while a worker decodes.

The trouble: a user's parser may take seconds for a message and minutes for a batch. Meanwhile the
broker gets no heartbeat and takes all messages back, and the claims on the worker's slots expire.

What must always hold: the connections that `act` uses (to the queue and to the state store) are
used by one thread at a time: by the worker's own, except inside `allowed`, where they belong to
this thread. An error in it is raised in the worker's own thread, at the end of the block.

A parser that holds the interpreter's lock for a minute (an extension in C that does not release it)
stops this thread as well; then only a longer heartbeat helps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERVAL_SECONDS = 1.0


class Meanwhile:
    """A thread that calls `act` about once a second, while it is allowed to."""

    def __init__(self, act: Callable[[], object], *, interval: float = INTERVAL_SECONDS) -> None:
        self._act = act
        self._interval = interval
        self._turn = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Within the block the thread may act; at the end of the block its error is raised here."""
        if self._thread is None:
            self._turn.acquire()
            self._thread = threading.Thread(target=self._run, name="meanwhile", daemon=True)
            self._thread.start()
        self._turn.release()
        try:
            yield
        finally:
            self._turn.acquire()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """End the thread. Do not call it within `allowed`."""
        self._over.set()
        if self._thread is not None:
            self._turn.release()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._over.wait(self._interval):
            with self._turn:
                if self._error is None and not self._over.is_set():
                    try:
                        self._act()
                    except Exception as error:  # noqa: BLE001  raised by `allowed`
                        self._error = error
