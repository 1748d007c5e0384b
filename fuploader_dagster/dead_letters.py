"""Dead letters: messages that can never become files, kept whole.

What must always hold: a dead letter is durable here before its message leaves the queue, with its
raw bytes, the queue's headers and properties, and the reason.

Format: `dead-letters/YYYYMMDD-w{worker}.jsonl`, one JSON object a line; `body` is base64. A crash
can leave a torn last line: its message was not acknowledged and comes again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fuploader_dagster.fileio import append_durably, ends_whole, make_dirs
from fuploader_dagster.layout import Layout, utc

log = logging.getLogger(__name__)


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One message that could not become a file."""

    time: str
    """UTC, ISO 8601."""
    reason: str
    redelivered: bool
    message_id: str | None
    attributes: dict[str, Any]
    body: bytes


class DeadLetterBox:
    """The dead letters that one worker writes."""

    def __init__(
        self, layout: Layout, worker: int, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = layout.dead_letters
        self._worker = worker
        self._clock = clock

    def keep(self, letters: Sequence[DeadLetter]) -> None:
        """Make the letters durable."""
        if not letters:
            return
        make_dirs(self._folder)
        lines = b"".join(msgspec.json.encode(letter) + b"\n" for letter in letters)
        path = self.path()
        append_durably(path, lines if ends_whole(path) else b"\n" + lines)

    def path(self) -> Path:
        """The file that is written today."""
        return self._folder / f"{utc(self._clock()):%Y%m%d}-w{self._worker}.jsonl"

    def now(self) -> str:
        """The moment, as a letter's `time` states it."""
        return utc(self._clock()).isoformat(timespec="milliseconds")


def read_dead_letters(layout: Layout) -> Iterator[DeadLetter]:
    """All dead letters of a pipeline, by day. A torn line is passed over, with a warning."""
    if not layout.dead_letters.is_dir():
        return
    for path in sorted(layout.dead_letters.glob("*.jsonl")):
        with path.open("rb") as lines:
            for line in lines:
                try:
                    letter = msgspec.json.decode(line, type=DeadLetter)
                except msgspec.DecodeError as error:
                    log.warning("passed over a torn line in %s: %s", path, error)
                else:
                    yield letter
