"""Seconds until messages flowed again after a kill, seen from outside.

A watcher reads what workers append to their segments and notes the highest message number in it;
and it looks at the receipts. After a kill it flows again when a message that was published after
the victim's return is stored (in the slot of the worker that was killed, if one was), or, where
uploads stood still, when the next receipt is there.

Only a kill that was over before the next one is measured: else one would measure the other. None is
while something is paused.
"""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fuploader_dagster.disk.layout import Layout
from tests.soak.plan import Victim

LOOK_SECONDS = 0.1
_NAME = re.compile(rb"m(\d{8})\.json")


Place = tuple[Layout, int]
"""A slot of a pipeline."""


@dataclass
class _Waiting:
    victim: Victim
    killed_at: float
    is_back: Callable[[], bool]
    places: Sequence[Place]
    uploads: bool
    mark: int | None = None
    """A message published, or the size of the receipts, when it was back."""


class Flow:
    """`killed` at each kill; `seconds` at the end. `upcoming`: the number to be published next."""

    def __init__(self, places: Sequence[Place], upcoming: Callable[[], int]) -> None:
        self._upcoming = upcoming
        self._newest = dict.fromkeys(places, -1)
        self._read_to: dict[Path, int] = {}
        self._waiting: _Waiting | None = None
        self._measured: dict[str, list[float]] = defaultdict(list)
        self._lock = threading.Lock()
        self._stands = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="flow", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def killed(
        self,
        victim: Victim,
        is_back: Callable[[], bool],
        *,
        places: Sequence[Place] = (),
        uploads: bool = False,
    ) -> None:
        """Now. Gives up measuring the kill before, if that is not over.

        `places`: those which stand still; none means any. `uploads`: what stands still is not the
        drain, but what comes after it.
        """
        with self._lock:
            everywhere = tuple(self._newest)
            if self._stands:
                return
            self._waiting = _Waiting(
                victim, time.monotonic(), is_back, places or everywhere, uploads
            )

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Nothing is measured inside: something stands still because it was told to."""
        with self._lock:
            self._stands, self._waiting = True, None
        try:
            yield
        finally:
            with self._lock:
                self._stands = False

    def seconds(self) -> dict[str, dict[str, Any]]:
        """By victim: how many were measured, their median and their maximum."""
        return {
            victim: {
                "measured": len(seconds),
                "median": round(median(seconds), 1),
                "max": round(max(seconds), 1),
            }
            for victim, seconds in sorted(self._measured.items())
        }

    def newest(self) -> int:
        """The highest number that was stored."""
        return max(self._newest.values())

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            for place in self._newest:
                self._look(place)
            with self._lock:
                waiting = self._waiting
                if waiting is not None and self._flows(waiting):
                    self._measured[waiting.victim].append(time.monotonic() - waiting.killed_at)
                    self._waiting = None

    def _flows(self, waiting: _Waiting) -> bool:
        if waiting.mark is None:
            if not waiting.is_back():
                return False
            waiting.mark = self.receipts_bytes() if waiting.uploads else self._upcoming()
        if waiting.uploads:
            return self.receipts_bytes() > waiting.mark
        return any(self._newest[place] >= waiting.mark for place in waiting.places)

    def _look(self, place: Place) -> None:
        layout, slot = place
        for number in layout.active_numbers(slot):
            path = layout.active(slot, number) / "segment.tar"
            with suppress(FileNotFoundError), path.open("rb") as segment:  # it may be sealed now
                segment.seek(self._read_to.get(path, 0))
                found = _NAME.findall(segment.read())
                self._read_to[path] = segment.tell()
                self._newest[place] = max([self._newest[place], *map(int, found)])

    def receipts_bytes(self) -> int:
        layouts = {layout for layout, _ in self._newest}
        return sum(
            path.stat().st_size for each in layouts for path in each.receipts.glob("*.jsonl")
        )
