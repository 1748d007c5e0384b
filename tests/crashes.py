"""Lives of a pipeline that end with kill -9 behind a durable step that a test names.

`Lives` starts `python -m tests.crashes`, which imports everything once and forks a process for each
life. Only such a forked process has an observer, and only that kills it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict

from fuploader_dagster.disk.crash_points import CrashPoint, observe
from fuploader_dagster.settings.pipeline import Pipeline
from tests.lives import (
    abandoned,
    half_packed,
    half_stored,
    interrupted_seal,
    large,
    not_removed,
    processing,
    processing_into_files,
    redoing,
    rotten,
    settings_in,
    to_process,
    to_process_into_files,
    torn_commit,
    torn_commit_of_files,
    unsealed,
    whole,
    without_key,
)
from tests.notice_lives import telling, to_tell
from tests.row_lives import storing, storing_letters, to_store

ROOT = Path(__file__).parents[1]
EVERY_HIT = bool(os.environ.get("EVERY_HIT"))
"""Kill behind each step, each time that it is done, instead of some: half an hour."""
SAMPLE = 25


class Kill(TypedDict):
    """Behind which step, and which time it is done. No step: whichever is the `hit`-th of all."""

    step: str | None
    hit: int


LIVES: dict[str, Callable[[Pipeline], None]] = {
    each.__name__: each
    for each in (
        whole,
        torn_commit,
        torn_commit_of_files,
        abandoned,
        interrupted_seal,
        without_key,
        half_packed,
        half_stored,
        not_removed,
        large,
        rotten,
        unsealed,
        to_process,
        processing,
        to_process_into_files,
        processing_into_files,
        redoing,
        to_store,
        storing,
        storing_letters,
        to_tell,
        telling,
    )
}

RESIDUE: dict[str, Kill | None] = {
    "torn_commit": {"step": "DATA_SYNCED", "hit": 2},
    "torn_commit_of_files": {"step": "DATA_WRITTEN", "hit": 2},
    "abandoned": None,
    "interrupted_seal": {"step": "SEAL_WRITTEN", "hit": 1},
    "without_key": None,
    "half_packed": {"step": "ARCHIVE_PARTLY_WRITTEN", "hit": 1},
    "half_stored": {"step": "OBJECT_WRITTEN", "hit": 1},
    "not_removed": {"step": "RECEIPT_KEPT", "hit": 1},
}
"""Lives that leave what recovery is for, each with its own end."""


class Lives:
    """The process that forks the others. Use as a context manager."""

    def __enter__(self) -> Lives:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crashes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=ROOT,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def live(
        self, life: str, folder: Path, kill: Kill | None = None, **values: Any
    ) -> list[str] | None:
        """Run one; the steps that it did, in their order, or None if it was killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"life": life, "folder": str(folder), "kill": kill, "values": values}
        self._process.stdin.write(json.dumps(asked) + "\n")
        answer = json.loads(self._process.stdout.readline())
        assert answer["code"] in (0, -signal.SIGKILL), f"{life} ended with {answer['code']}"
        done: list[str] | None = answer["steps"]
        assert (done is None) == (answer["code"] != 0)
        return done


def copied(made: Path, folder: Path) -> Path:
    """What was made, again, for a life of its own."""
    return Path(shutil.copytree(made, folder / "life", symlinks=True))


def some_hits(steps: int, dice: random.Random) -> Sequence[int]:
    """Behind which of so many steps to kill: some, or all if `EVERY_HIT` is set."""
    hits = range(1, steps + 1)
    return hits if EVERY_HIT else sorted(dice.sample(hits, SAMPLE))


def main() -> None:
    """Fork a life for each line of stdin, and answer how it ended."""
    for line in sys.stdin:
        asked = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os._exit(_live(asked, writer))
        os.close(writer)
        with os.fdopen(reader) as said:
            steps = said.read()
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        answer = {"code": code, "steps": json.loads(steps) if steps else None}
        print(json.dumps(answer), flush=True)


def _live(asked: dict[str, Any], answer: int) -> int:
    steps: list[str] = []
    observe(_observer(asked["kill"], steps))
    try:
        os.environ.update(asked["values"].pop("environment", {}))
        LIVES[asked["life"]](settings_in(Path(asked["folder"]), **asked["values"]))
        os.write(answer, json.dumps(steps).encode())
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _observer(kill: Kill | None, steps: list[str]) -> Callable[[CrashPoint], None]:
    def observer(step: CrashPoint) -> None:
        steps.append(step.name)
        if kill is None:
            return
        hit = steps.count(step.name) if kill["step"] == step.name else len(steps)
        if kill["step"] in (None, step.name) and hit == kill["hit"]:
            os.kill(os.getpid(), signal.SIGKILL)

    return observer


if __name__ == "__main__":
    main()
