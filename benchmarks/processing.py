"""Sealed slots that are processed by a program of its own, and what others take for the same items.

`processed` measures one way once. Each of ours begins with new slots, which are sealed before the
time begins.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import processes
from benchmarks.contenders import REPOSITORY, Ours
from benchmarks.ground import Ground
from benchmarks.processes import Program
from benchmarks.programs.work import BROKER_VARIABLE
from benchmarks.sealed_slots import sealed

CONCURRENCY = 64
SLOTS = 4
_MOST_SECONDS = 1200.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class ProcessingRun:
    """The figures of one way."""

    items_per_second: float
    cpu_ms_per_1000: float
    """Of everything that takes part, but for a handler or a broker."""
    grown_mib: float
    """The highest resident memory of the program itself, above that before it began."""


@dataclass(frozen=True)
class Work:
    """What is done with the items."""

    items: int
    how: Literal["ours", "loop", "pool", "celery"]
    url: str = ""
    """Of a handler; else it is `function`."""
    function: str = ""
    slots: int = SLOTS

    @property
    def process(self) -> dict[str, Any]:
        """The pipeline's setting."""
        if self.url:
            return {"kind": "http", "url": self.url, "concurrency": CONCURRENCY}
        return {"kind": "functions", "module": "benchmarks.programs.functions", "route_by": "name"}


def processed(ground: Ground, work: Work, workers: int) -> ProcessingRun:
    """Measure one way once."""
    with ExitStack() as stack:
        folder = stack.enter_context(ground.folder())
        worker: Program | None = None
        cpu = 0.0
        if work.how == "celery":
            worker = stack.enter_context(celery_worker(ground, folder, workers))
            cpu = processes.cpu_seconds(worker.session)
        program = stack.enter_context(start(ground, work, folder, workers))
        program.wait(_MOST_SECONDS)
        said = json.loads(program.log.read_text().splitlines()[-1])
        if worker is not None:
            cpu = processes.cpu_seconds(worker.session) - cpu
    return ProcessingRun(
        items_per_second=work.items / said["seconds"],
        cpu_ms_per_1000=(said["cpu_seconds"] + cpu) * 1e6 / work.items,
        grown_mib=said["grown_bytes"] / (1 << 20),
    )


def start(ground: Ground, work: Work, folder: Path, workers: int) -> Program:
    """The program that works on the items; of ours, on slots that are made here."""
    settings: dict[str, Any] = {
        "how": work.how,
        "items": work.items,
        "url": work.url,
        "function": work.function,
        "concurrency": CONCURRENCY,
        "workers": workers,
    }
    if work.how == "ours":
        ours = Ours(ground, folder, "never-opened", {"process": work.process})
        settings["partitions"] = list(
            sealed(ours, work.items, work.slots, work.function or "document")
        )
        settings["config"] = str(ours.configuration)
    env = {"BENCH_SETTINGS": json.dumps(settings), BROKER_VARIABLE: ground.rabbitmq.url}
    return Program(
        [sys.executable, "-m", "benchmarks.programs.processing"],
        env=env,
        cwd=REPOSITORY,
        log=folder / "processing.log",
    )


@dataclass(frozen=True)
class Handler:
    """A handler behind HTTP."""

    url: str
    program: Program

    def wait_for_call(self) -> None:
        _said(self.program, r"^(called)$")


@contextmanager
def handler(folder: Path, seconds: float) -> Iterator[Handler]:
    """One that answers after this time."""
    log = folder / f"handler-{seconds:g}.log"
    command = [sys.executable, "-m", "benchmarks.programs.slow_handler", str(seconds)]
    with Program(command, env={}, cwd=REPOSITORY, log=log) as program:
        port = _said(program, r"^(\d+)$")
        yield Handler(f"http://127.0.0.1:{port}/", program)


@contextmanager
def celery_worker(ground: Ground, folder: Path, processes_: int) -> Iterator[Program]:
    """A prefork worker, as its users start it."""
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.programs.celery_app", "worker"]
    command += ["--pool", "prefork", "--concurrency", str(processes_), "--loglevel", "INFO"]
    command += ["--without-gossip", "--without-mingle"]
    env: Mapping[str, str] = {BROKER_VARIABLE: ground.rabbitmq.url}
    with Program(command, env=env, cwd=REPOSITORY, log=folder / "celery.log") as program:
        _said(program, r"( ready\.)$")
        yield program


def _said(program: Program, pattern: str) -> str:
    """What a program says once it is ready."""
    deadline = time.monotonic() + 60
    while not (found := re.search(pattern, program.log.read_text(), re.MULTILINE)):
        program.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"it was not ready in time:\n{program.tail()}")
        time.sleep(_LOOK_SECONDS)
    return found[1]
