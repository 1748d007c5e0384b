"""Inputs put to a target, within bounds of time and memory; what came of them, counted."""

from __future__ import annotations

import base64
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, note, seed, settings

from fuploader_dagster.errors import FuploaderError
from tests.fuzz.mutation import VARIANTS, choices, draws
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

SECONDS = 5.0
"""Of the processor's time: other work on the machine must not count."""
WAIT_SECONDS = 60.0
MEMORY_BYTES = 512 * 2**20


class TooSlow(BaseException):
    """One input took longer than `SECONDS`."""


@contextmanager
def bounded() -> Iterator[None]:
    """Interrupt what takes too long. Only in the main thread."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise TooSlow(f"one input took more than {SECONDS:g} s, or waited for {WAIT_SECONDS:g} s")

    timers = {signal.SIGVTALRM: signal.ITIMER_VIRTUAL, signal.SIGALRM: signal.ITIMER_REAL}
    before = {number: signal.signal(number, interrupt) for number in timers}
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAIT_SECONDS)
    try:
        yield
    finally:
        for number, timer in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def put(target: Target, data: bytes) -> str:
    """`accepted` or `refused`; anything else is raised."""
    with bounded():
        try:
            return "accepted" if target.put(data) else "refused"
        except FuploaderError:
            return "refused"


@contextmanager
def target_of(name: str) -> Iterator[Target]:
    """The target, with a folder of its own, in memory where that is possible."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None) as folder:
        target = TARGETS[name](Path(folder))
        assert target.valid  # made now: some of it lies in the folder
        yield target


def peak_memory_bytes() -> int:
    """The highest resident set of this program; `ru_maxrss` would count its parent's too."""
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in one)
    return int(line.split()[1]) * 1024


def fuzz(name: str, inputs: int, seed_number: int) -> dict[str, Any]:
    """About so many inputs for one target. Raises what the smallest bad one raises."""
    counts: Counter[str] = Counter()
    began = time.monotonic()
    with target_of(name) as target:

        @seed(seed_number)
        @settings(
            max_examples=-(-inputs // VARIANTS),
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(draws)
        def one(drawn: bytes) -> None:
            for variant in range(VARIANTS):
                data = target.made(*choices(drawn, variant))
                try:
                    counts[put(target, data)] += 1
                except BaseException:
                    note(f"{name} was given, in base64: {base64.b64encode(data).decode()}")
                    raise

        one()
    peak_bytes = peak_memory_bytes()
    assert peak_bytes < MEMORY_BYTES, f"{name} took {peak_bytes:,} bytes of memory"
    return {
        "inputs": counts.total(),
        "accepted": counts["accepted"],
        "refused": counts["refused"],
        "seconds": round(time.monotonic() - began, 1),
        "peak_mib": peak_bytes // 2**20,
    }
