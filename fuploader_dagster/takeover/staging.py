"""Directories that a take-over has staged, and the journal of all that it took over.

What must always hold: a staged directory says where it comes from, and has a number that was never
used before. Nothing is removed from the journal; a line that a crash tore belongs to a directory
that is still staged.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from fuploader_dagster.disk.durable import append_durably, make_dirs, write_durably
from fuploader_dagster.disk.layout import Layout, PartitionKey, utc
from fuploader_dagster.errors import UNREADABLE_JSON
from fuploader_dagster.intake import leftovers
from fuploader_dagster.slots.shipped_indexes import shipped_indexes

ORIGIN_NAME = "origin.json"
ARCHIVE_NAME = "archive"


class TakenOver(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `taken-over.jsonl`."""

    source: str
    """Relative to FUploader's storage root."""
    partition: str
    """Empty if nothing of it had to be sealed."""
    files: int
    at: str
    """UTC, ISO 8601."""


class Origin(msgspec.Struct, frozen=True):
    """`origin.json` in a staged directory: where it comes from."""

    source: str
    maybe_stored: bool


def taken_over(layout: Layout) -> Iterator[TakenOver]:
    """What was taken over so far."""
    path = leftovers.journal(layout)
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            yield msgspec.json.decode(line, type=TakenOver)
        except UNREADABLE_JSON:
            continue


def record_taken_over(source: str, partition: str, files: int, layout: Layout) -> None:
    """Record in the journal what was taken over."""
    at = utc(time.time()).isoformat(timespec="milliseconds")
    line = TakenOver(source=source, partition=partition, files=files, at=at)
    append_durably(leftovers.journal(layout), msgspec.json.encode(line) + b"\n")


def new_directory(source: str, layout: Layout, *, maybe_stored: bool = True) -> Path:
    """A new staged directory."""
    staged = leftovers.adopting(layout) / f"dir-{next_number(layout):06d}"
    make_dirs(staged)
    write_durably(staged / ORIGIN_NAME, msgspec.json.encode(Origin(source, maybe_stored)))
    return staged


def directories(layout: Layout) -> list[Path]:
    """All staged directories."""
    found = leftovers.children(leftovers.adopting(layout))
    return [path for path in found if path.is_dir() and leftovers.NUMBERED_DIR.fullmatch(path.name)]


def origin_of(staged: Path) -> Origin:
    """Where a staged directory comes from."""
    try:
        return msgspec.json.decode((staged / ORIGIN_NAME).read_bytes(), type=Origin)
    except (FileNotFoundError, *UNREADABLE_JSON):  # a crash came first
        return Origin(staged.name, maybe_stored=True)


def next_number(layout: Layout) -> int:
    """A directory number that was never used."""
    used = [number_of(path) for path in directories(layout)]
    used += [number for slot, number in layout.sealed_numbers() if slot == leftovers.ADOPTED_SLOT]
    partitions = [PartitionKey.parse(one.partition) for one in taken_over(layout)]
    partitions += [one.partition for one in shipped_indexes(layout)]
    used += [
        one.number for one in partitions if one is not None and one.slot == leftovers.ADOPTED_SLOT
    ]
    return max(used, default=0) + 1


def number_of(staged: Path) -> int:
    """The number of a staged directory."""
    return int(staged.name.rpartition("-")[2])
