"""What became of the items of a slot that is processed: the file `outcomes`, and its figures.

What must always hold: each line says of some inputs, in their order, what became of them, and the
lines together of all that are done. A line that is not whole ends the file.

Format: docs/formats.md, "Processed slot".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from fuploader_dagster.archives.manifest import FailedPart
from fuploader_dagster.errors import UNREADABLE_JSON

FAILED = -1
"""In `Outcomes.results`: the item became a dead letter, and has no results."""


class Outcomes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of `outcomes`: what became of the inputs of one commit."""

    inputs: int
    """Number of inputs that are done after this commit."""
    entries: int
    """Number of results in the index after it."""
    results: list[int]
    """For each input of this commit: how many results it has, or `FAILED`."""
    milliseconds: list[int]
    """How long each of them took, in its last attempt."""
    retries: int
    """Attempts that failed and were repeated."""
    lettered: list[int] = []
    """Positions of the inputs that have results and a dead letter as well. Left out if none has."""
    failures: list[FailedPart] = []
    """What is missing of them. An input without any has a letter of an attempt that was killed."""


@dataclass
class Figures:
    """What became of a slot's inputs so far."""

    inputs: int = 0
    results: int = 0
    failed: int = 0
    partial: int = 0
    """Inputs with results and a dead letter as well."""
    failures: int = 0
    """Parts that are missing of these."""
    retries: int = 0
    milliseconds: list[int] = field(default_factory=list)

    def add(self, line: Outcomes) -> None:
        self.inputs += len(line.results)
        self.failed += sum(count == FAILED for count in line.results)
        self.results += sum(count for count in line.results if count != FAILED)
        self.partial += len(line.lettered)
        self.failures += len(line.failures)
        self.retries += line.retries
        self.milliseconds += line.milliseconds

    def seconds_of(self, share: float) -> float:
        """The time within which this share of the inputs was processed."""
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1000 if ordered else 0.0


def lines_and_ends(content: bytes) -> Iterator[tuple[Outcomes, int]]:
    """The whole lines, each with where it ends. What follows the last one is a torn line."""
    start = 0
    while (stop := content.find(b"\n", start) + 1) > 0:
        try:
            line = msgspec.json.decode(content[start:stop], type=Outcomes)
        except UNREADABLE_JSON:
            return
        yield line, stop
        start = stop
