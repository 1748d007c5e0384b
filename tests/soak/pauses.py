"""Somebody pauses and resumes the pipelines beside the kills, with the commands of the project.

What must always hold: every pause ends, and at the end nothing is paused. A command that fails,
because a server was killed just then, is given again, as people do.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from tests.soak.flow import Flow
from tests.soak.plan import Pause

COMMAND = (sys.executable, "-m", "fuploader_dagster.cli.app")
COMMAND_SECONDS = 120.0


class Pauses:
    """`start` and `stop`; `done` counts what was paused how often."""

    def __init__(
        self,
        project: Path,
        environment: Mapping[str, str],
        flow: Flow,
        plan: Iterator[Pause],
        say: Callable[[str], None],
    ) -> None:
        self.done: Counter[str] = Counter()
        self.problem: BaseException | None = None
        self._project = project
        self._environment = environment
        self._flow = flow
        self._plan = plan
        self._say = say
        self._over = threading.Event()
        self._let_go = False
        self._thread = threading.Thread(target=self._run, name="pauses", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def let_go(self) -> None:
        """No more of it, also if something is paused: everything is about to be ended."""
        self._let_go = True
        self._over.set()

    def stop(self) -> None:
        """Returns when nothing is paused any more. Raises what a command ended with."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self.problem is not None:
            raise self.problem

    def _run(self) -> None:
        try:
            for pause in self._plan:
                if self._over.wait(pause.after_seconds):
                    return
                self._do(pause)
        except BaseException as error:
            self.problem = error

    def _do(self, pause: Pause) -> None:
        with self._flow.standing():
            self._say(str(pause))
            self._command("pause", pause.pipeline, *pause.options, "--reason", "the soak")
            self._over.wait(pause.seconds)
            for options in pause.resumed:
                self._command("resume", pause.pipeline, *options)
        self.done[pause.what] += 1

    def _command(self, *arguments: str) -> None:
        done = None
        until = time.monotonic() + COMMAND_SECONDS
        while not self._let_go and (done is None or (done.returncode and time.monotonic() < until)):
            with suppress(subprocess.TimeoutExpired):
                done = subprocess.run(
                    [*COMMAND, *arguments],
                    cwd=self._project,
                    env=self._environment,
                    capture_output=True,
                    text=True,
                    timeout=COMMAND_SECONDS,
                    check=False,
                )
        if done is not None and done.returncode and not self._let_go:
            raise AssertionError(f"fuploader {' '.join(arguments)}: {done.stdout}{done.stderr}")
