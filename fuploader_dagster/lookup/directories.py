"""The directories of this disk that have a message: active, sealed, and shipped a while ago.

What must always hold: looking changes nothing, and reads indexes, never data. Directories go from
active to sealed to shipped, and are looked at in this order, so one that moves meanwhile is found
at the later place, perhaps at both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.errors import DamagedResults, DamagedSlot, ForeignFile, OtherFormat
from fuploader_dagster.lookup.wanted import Wanted
from fuploader_dagster.slots.index import INDEX_NAME, IndexEntry, entries_by_commit
from fuploader_dagster.slots.processed import ProcessedSlot, find_processed
from fuploader_dagster.slots.sealing import SealedSlot, sealed_slots
from fuploader_dagster.slots.shipped_indexes import shipped_indexes

_LEAST_BYTES = 4096
"""What a file counts as, however small: opening it takes as long as reading this much."""


class InDirectory(NamedTuple):
    """A wanted message in a directory."""

    slot: int
    number: int
    position: int
    """Among the directory's messages, from 0."""
    entry: IndexEntry
    partition: str | None = None
    """None while the directory is active."""
    sealed: SealedSlot | None = None
    """None if it is active, or not on this disk any more."""
    processed: ProcessedSlot | None = None
    """If it is not a message, but came out of some of that slot."""


@dataclass
class Reading:
    """How much may still be read, and what was left out or could not be."""

    bytes_left: float
    troubles: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    """Numbers of files that were not read, by what they are."""

    def allows(self, path: Path, what: str) -> bool:
        """Whether this file may be read. Raises `FileNotFoundError`."""
        size = max(path.stat().st_size, _LEAST_BYTES)
        if size > self.bytes_left:
            self.left_out[what] = self.left_out.get(what, 0) + 1
            return False
        self.bytes_left -= size
        return True

    def sentences(self) -> list[str]:
        """What was not looked at, and why."""
        return [
            *self.troubles,
            *(f"{count:,} {what}: too much to read" for what, count in self.left_out.items()),
        ]


def on_this_disk(layout: Layout, wanted: Wanted, reading: Reading) -> Iterator[InDirectory]:
    """The wanted messages in active and sealed directories, newest sealed ones first, each with the
    wanted results of it."""
    for slot in layout.active_slots():
        for number in layout.active_numbers(slot):
            path = layout.active(slot, number) / INDEX_NAME
            for position, entry in _found(path, "active directories", wanted, reading):
                yield InDirectory(slot, number, position, entry)
    newest_first = sorted(sealed_slots(layout), key=lambda one: one.seal.partition, reverse=True)
    for one in newest_first:
        path = one.directory / INDEX_NAME
        seal = one.seal
        for position, entry in _found(path, "sealed slots", wanted, reading, one.entries):
            yield InDirectory(seal.slot, seal.number, position, entry, seal.partition, one)
        try:
            done = find_processed(one, layout)
        except (DamagedResults, OtherFormat) as error:
            reading.troubles.append(str(error))
            continue
        if done is not None:
            path = done.directory / INDEX_NAME
            for position, entry in _found(path, "processed slots", wanted, reading, done.entries):
                found = (seal.slot, seal.number, position, entry, seal.partition, one, done)
                yield InDirectory(*found)


def shipped(layout: Layout, wanted: Wanted, reading: Reading) -> Iterator[InDirectory]:
    """The wanted messages in slots that were shipped recently, newest first."""
    for one in shipped_indexes(layout):
        what = "indexes of shipped slots"
        for position, entry in _found(one.path, what, wanted, reading):
            yield InDirectory(*one.place, position, entry, str(one.partition))


def _found(
    path: Path,
    what: str,
    wanted: Wanted,
    reading: Reading,
    entries: Callable[[], Sequence[IndexEntry]] | None = None,
) -> Iterator[tuple[int, IndexEntry]]:
    """The wanted messages of an index, with their positions. `entries` reads them, if they are to
    be compared with something."""
    try:
        if not reading.allows(path, what):
            return
        content = read_own(path)
        if wanted.may_be_in_index(content):
            for position, entry in enumerate(entries() if entries else _committed(content)):
                if wanted.fits(entry.name) or wanted.fits_headers(entry.headers):
                    yield position, entry
    except FileNotFoundError:
        return  # it has just moved, and is found there; or it is being made
    except (DamagedSlot, DamagedResults, ForeignFile) as error:
        if path.exists():  # else it was removed while it was read
            reading.troubles.append(str(error))


def _committed(content: bytes) -> Iterable[IndexEntry]:
    return (entry for committed in entries_by_commit(content) for entry in committed)
