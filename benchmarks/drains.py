"""One drain of a backlog, from the queue into slots on the disk.

The backlog is there before the contender starts. Time and CPU are taken from the first look that
finds messages handled to the first that finds all of them handled, so neither the start of an
interpreter nor its end is in the figures. Afterwards the queue must be empty and the messages must
be on the disk, every one, or the run counts as failed.

FUploader's slots are never sealed here, so that its figure is of draining alone; ours are, by the
default limits.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import processes, queues
from benchmarks.contenders import (
    FUPLOADER_AS_DOCUMENTED,
    FUPLOADER_TUNED,
    NEVER,
    REPOSITORY,
    Contender,
    FUploader,
    Ours,
)
from benchmarks.ground import Ground, Runs
from benchmarks.processes import Program
from benchmarks.queues import Kind

LOOK_SECONDS = 0.02
_START_SECONDS = 60.0
_SLOWEST_MESSAGES_PER_SECOND = 100
_SETTLE_SECONDS = 10.0
BARE_PREFETCH = 2000


@dataclass(frozen=True)
class Case:
    """What is drained, by whom and how."""

    contender: Literal["ours", "fuploader", "fuploader as documented", "bare"]
    messages: int
    payload_bytes: int = 2000
    workers: int = 1
    slots_per_worker: int = 1
    slot_format: Literal["segment", "files"] = "segment"
    enough: int = 0
    """Stop after this many messages; 0: drain all."""
    source: Kind = "rabbitmq"
    """Another one: only of ours."""

    def __str__(self) -> str:
        unusual = [
            f"{self.messages:,} messages",
            f"{self.payload_bytes:,} bytes" if self.payload_bytes != 2000 else "",
            f"{self.workers} workers" if self.workers > 1 else "",
            f"{self.slots_per_worker} slots" if self.slots_per_worker > 1 else "",
            "slot_format files" if self.slot_format == "files" else "",
            self.source if self.source != "rabbitmq" else "",
        ]
        return f"drain by {self.contender}: {', '.join(one for one in unusual if one)}"


@dataclass(frozen=True)
class DrainRun:
    """The figures of one drain."""

    messages_per_second: float
    cpu_ms_per_1000: float
    peak_mib: float = 0.0
    """The highest resident memory of the largest worker."""
    growth: float = 1.0
    """Its resident memory at the end, against that after a tenth of the messages."""
    broker_ms_per_1000: float = 0.0
    cores: float = 0.0
    """CPU of contender and broker together, over the time."""


@dataclass(frozen=True)
class _Look:
    at: float
    handled: int
    cpu: float
    broker_cpu: float


def drains(ground: Ground, case: Case, times: int | None = None) -> Runs[DrainRun]:
    """The repetitions of a case, measured once a run of the benchmarks."""
    repetitions = times or ground.sizes.times()
    return ground.keep(
        case, lambda: ground.repeat(str(case), lambda: drain(ground, case), repetitions)
    )


def drain(ground: Ground, case: Case) -> DrainRun:
    """Measure a case once."""
    with (
        queues.backlog(ground, case.source, case.payload_bytes, case.messages) as queue,
        ground.folder() as folder,
    ):
        if case.contender == "bare":
            return _bare(ground, case, queue, folder)
        contender = _contender(ground, case, queue, folder)
        with contender.start() as program:
            run = _watch(ground, case, contender, program)
        if not case.enough:
            _check_arrived(ground, case, contender, queue)
        return run


def _contender(ground: Ground, case: Case, queue: str, folder: Path) -> Contender:
    if case.contender == "ours":
        settings: dict[str, Any] = {
            "process_count": case.workers,
            "slots_per_worker": case.slots_per_worker,
            "slot_format": case.slot_format,
        }
        return Ours(ground, folder, queue, settings, source=case.source)
    documented = case.contender == "fuploader as documented"
    config = FUPLOADER_AS_DOCUMENTED if documented else FUPLOADER_TUNED
    return FUploader(
        ground,
        folder,
        queue,
        {**config, "pack_threshold": NEVER},
        process_count=case.workers,
        supervised=case.workers > 1,
    )


def _watch(ground: Ground, case: Case, contender: Contender, program: Program) -> DrainRun:
    wanted = case.enough or case.messages
    deadline = time.monotonic() + _START_SECONDS + wanted / _SLOWEST_MESSAGES_PER_SECOND
    broker = queues.server_session(ground, case.source)
    first: _Look | None = None
    resident_early = 0
    while (handled := contender.handled()) < wanted:
        program.check()
        if handled and first is None:
            first = _look(broker, handled, program)
        if not resident_early and handled >= wanted / 10:
            resident_early = processes.resident_bytes(program.session)
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{handled:,} of {wanted:,} messages were handled in time:\n{program.tail()}"
            )
        time.sleep(LOOK_SECONDS)
    look = _look(broker, handled, program)
    if first is None or first.handled == look.handled:
        raise RuntimeError(f"{wanted:,} messages are too few: all were handled between two looks")
    handled, seconds = look.handled - first.handled, look.at - first.at
    cpu, broker_cpu = look.cpu - first.cpu, look.broker_cpu - first.broker_cpu
    return DrainRun(
        messages_per_second=handled / seconds,
        cpu_ms_per_1000=cpu * 1e6 / handled,
        peak_mib=processes.peak_bytes(program.session) / (1 << 20),
        growth=processes.resident_bytes(program.session) / resident_early
        if resident_early
        else 1.0,
        broker_ms_per_1000=broker_cpu * 1e6 / handled,
        cores=(cpu + broker_cpu) / seconds,
    )


def _look(broker: int, handled: int, program: Program) -> _Look:
    """Reading /proc costs too much to do it at every look."""
    return _Look(
        time.monotonic(),
        handled,
        processes.cpu_seconds(program.session),
        processes.cpu_seconds(broker),
    )


def _check_arrived(ground: Ground, case: Case, contender: Contender, queue: str) -> None:
    deadline = time.monotonic() + _SETTLE_SECONDS
    while (left := queues.waiting(ground, case.source, queue)) and time.monotonic() < deadline:
        time.sleep(0.1)
    on_disk = contender.on_disk()
    if left or on_disk != case.messages:
        raise RuntimeError(
            f"of {case.messages:,} messages {on_disk:,} are on the disk and {left:,} in the queue"
        )


def _bare(ground: Ground, case: Case, queue: str, folder: Path) -> DrainRun:
    settings = {
        "url": ground.rabbitmq.url,
        "queue": queue,
        "messages": case.messages,
        "prefetch": BARE_PREFETCH,
    }
    broker_before = processes.cpu_seconds(ground.broker_session)
    with Program(
        [sys.executable, "-m", "benchmarks.programs.bare_consumer"],
        env={"BENCH_SETTINGS": json.dumps(settings)},
        cwd=REPOSITORY,
        log=folder / "bare.log",
    ) as program:
        program.wait(_START_SECONDS + case.messages / _SLOWEST_MESSAGES_PER_SECOND)
        said = json.loads(program.log.read_text())
    broker_cpu = processes.cpu_seconds(ground.broker_session) - broker_before
    return DrainRun(
        messages_per_second=case.messages / said["seconds"],
        cpu_ms_per_1000=said["cpu_seconds"] * 1e6 / case.messages,
        broker_ms_per_1000=broker_cpu * 1e6 / case.messages,
        cores=(said["cpu_seconds"] + broker_cpu) / said["seconds"],
    )
