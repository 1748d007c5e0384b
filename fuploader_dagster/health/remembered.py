"""What is remembered between two looks: sums over receipts and dead letters, and the last readings.

What must always hold: reading changes nothing. A file of lines whose size is the one that is
remembered is not read again. What is remembered is in this process, and in `figures.json` where
somebody called `remember`: losing that costs reading everything once, and the rates of an hour.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from fuploader_dagster.dead_letters.letters import requeued_ids
from fuploader_dagster.disk.durable import write_for_readers
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.own_files import open_own, read_own
from fuploader_dagster.errors import UNREADABLE_JSON, ForeignFile, FuploaderError
from fuploader_dagster.slots.receipts import Receipt, receipts_in

DRAIN_STAGE = "drain"
KEPT_SECONDS = 3600.0
_SINK = "sink-"


class Stored(msgspec.Struct, frozen=True):
    """What receipts say together."""

    archives: int = 0
    messages: int = 0
    payload_bytes: int = 0
    archive_bytes: int = 0
    requests: int = 0
    last_stored_at: str = ""
    """UTC, ISO 8601; empty if nothing is stored."""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one moment that later ones are compared with."""

    at: float
    waiting: int | None
    """In the queue."""
    messages_in: int | None
    stored_messages: int
    archive_bytes: int
    free_bytes: int


class _Hour(msgspec.Struct, frozen=True):
    size_bytes: int
    stored: Stored


class _Lines(msgspec.Struct, frozen=True):
    size_bytes: int
    lines: int


class _Memory(msgspec.Struct):
    hours: dict[str, _Hour] = {}
    letters: dict[str, _Lines] = {}
    readings: list[Reading] = []


_memories: dict[Path, _Memory] = {}


def stored_so_far(layout: Layout) -> Stored:
    """All archives that the object store has confirmed to this node."""
    memory = _memory(layout)
    hours: dict[str, _Hour] = {}
    for path in sorted(layout.receipts.glob("*.jsonl")):
        size = _size(path)
        known = memory.hours.get(path.stem)
        if known is None or known.size_bytes != size:
            known = _Hour(size, _sum_of(list(receipts_in(path).values())))
        hours[path.stem] = known
    memory.hours = hours
    parts = [one.stored for one in hours.values()]
    return Stored(
        sum(one.archives for one in parts),
        sum(one.messages for one in parts),
        sum(one.payload_bytes for one in parts),
        sum(one.archive_bytes for one in parts),
        sum(one.requests for one in parts),
        max((one.last_stored_at for one in parts), default=""),
    )


def letters_waiting(layout: Layout) -> dict[str, int]:
    """Dead letters that nobody has sent back, by what failed: `drain`, `process`, `sink:rows`.

    Letters that are settled, because another attempt stored their items, count too.
    """
    memory = _memory(layout)
    letters: dict[str, _Lines] = {}
    waiting: dict[str, int] = {}
    for path in sorted(layout.dead_letters.glob("*.jsonl")):
        size = _size(path)
        known = memory.letters.get(path.stem, _Lines(0, 0))
        if known.size_bytes > size:
            known = _Lines(0, 0)
        if known.size_bytes < size:
            known = _counted_on(path, known)
        letters[path.stem] = known
        stage = _stage_of(path.stem)
        waiting[stage] = waiting.get(stage, 0) + known.lines
    memory.letters = letters
    for letter_id in requeued_ids(layout):
        stem = letter_id.rpartition(":")[0]
        if stem in letters:
            waiting[_stage_of(stem)] -= 1
    return waiting


def readings(layout: Layout) -> list[Reading]:
    """Those of the last hour that somebody remembered, the oldest first."""
    return _read(layout.figures).readings


def remember(layout: Layout, reading: Reading) -> None:
    """Keep the reading, and what this process knows, for those that follow. Not needed: a failure
    is ignored."""
    memory = _memory(layout)
    recent = [one for one in readings(layout) if 0 < reading.at - one.at <= KEPT_SECONDS]
    memory.readings = [*recent, reading]
    with suppress(OSError, FuploaderError):
        write_for_readers(layout.figures, msgspec.json.encode(memory))


def _memory(layout: Layout) -> _Memory:
    known = _memories.get(layout.root)
    if known is None:
        known = _memories[layout.root] = _read(layout.figures)
    return known


def _read(path: Path) -> _Memory:
    try:
        return msgspec.json.decode(read_own(path), type=_Memory)
    except (OSError, ForeignFile, *UNREADABLE_JSON):
        return _Memory()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # somebody has just moved it away
        return 0


def _sum_of(receipts: list[Receipt]) -> Stored:
    return Stored(
        len(receipts),
        sum(one.messages for one in receipts),
        sum(one.payload_bytes for one in receipts),
        sum(one.size_bytes for one in receipts),
        sum(one.requests for one in receipts),
        max((one.stored_at for one in receipts), default=""),
    )


def _counted_on(path: Path, known: _Lines) -> _Lines:
    """Whole lines, going on behind those that are known."""
    size, lines = known.size_bytes, known.lines
    with suppress(FileNotFoundError), os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
        file.seek(size)
        for line in file:
            if not line.endswith(b"\n"):  # being written, or torn
                break
            size += len(line)
            lines += line != b"\n"
    return _Lines(size, lines)


def _stage_of(stem: str) -> str:
    """What failed, by the name of a file of letters: `20261121-w0`, `20261121-sink-rows`."""
    writer = stem.partition("-")[2]
    if writer.startswith(_SINK):
        return f"sink:{writer.removeprefix(_SINK)}"
    return DRAIN_STAGE if writer[1:].isdigit() else writer
