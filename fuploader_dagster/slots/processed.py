"""Processed slots: what came out of the items of a sealed slot, and how far its processing is.

    processed/slot-0/dir-000017/
      processing.json        what is processed by what; written before anything else
      segment.tar, index     the results, as in any slot; their names begin with `results/`
      files/, index          the same where results may be files (`result_files`)
      work/3/                the folder of the item at position 3, while it is in work
      outcomes               one line of JSON for each commit: what became of its inputs
      seal.json              at the end; from then on nothing changes

What must always hold:

- Results are committed in the order of the inputs, so how far the work is, is one number. A commit
  is a line in `outcomes`, synced, then the results' bytes, then their index records. A line counts
  only if the index holds the results that it announces: what a crash leaves of the last commit is
  cut off, and its inputs are processed again.
- All results of a directory are of one processor and one index of inputs. If either has changed,
  the work begins again, in an empty directory.
- What an item has in its folder stays there until its results are committed.
- Everything here can be made again from the sealed slot. So a damaged directory is moved to
  `set-aside/`, and the work begins again.

Format: docs/formats.md, "Processed slot". The caller holds the partition's lock.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from fuploader_dagster import errors
from fuploader_dagster.archives.manifest import FailedPart
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import remove_tree
from fuploader_dagster.disk.layout import Layout, PartitionKey
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.disk.setting_aside import set_aside
from fuploader_dagster.disk.temporaries import is_temporary
from fuploader_dagster.slots.index import INDEX_NAME, IndexEntry, entries_by_commit, read_index
from fuploader_dagster.slots.item_folders import WORK_NAME
from fuploader_dagster.slots.outcomes import Outcomes, lines_and_ends
from fuploader_dagster.slots.plain_files import FILES_NAME
from fuploader_dagster.slots.result_files import ResultFilesWriter
from fuploader_dagster.slots.sealing import SEAL_NAME, SealedSlot
from fuploader_dagster.slots.segment import SEGMENT_NAME

log = logging.getLogger(__name__)

_T = TypeVar("_T")

RESULTS_PREFIX = "results/"
"""What the names of results begin with, here and in archives."""
PROCESSING_NAME = "processing.json"
OUTCOMES_NAME = "outcomes"
_NAMES = {
    *(PROCESSING_NAME, SEGMENT_NAME, FILES_NAME, INDEX_NAME),
    *(OUTCOMES_NAME, SEAL_NAME, WORK_NAME),
}
PLAIN = 1
"""The version of a directory with a segment."""
WITH_FILES = 2
"""The version of one with files; and of the seal of one where an item has results and a letter."""
VERSIONS = (PLAIN, WITH_FILES)


class Processing(msgspec.Struct, frozen=True, kw_only=True):
    """`processing.json`: what is processed by what."""

    version: int = PLAIN
    id: str
    """Random, so that dead letters and idempotency keys of a later processing differ."""
    partition: str
    from_index_sha256: str
    """Of the sealed slot's index, which commits to every input."""
    processor: str
    processor_version: str
    slot_format: Literal["segment", "files"] = "segment"


class ProcessedSeal(msgspec.Struct, frozen=True, kw_only=True):
    """`seal.json` of a processed slot. Sizes are bytes."""

    version: int = PLAIN
    processing: Processing
    inputs: int
    failed: int
    """Inputs that became dead letters, and have no results."""
    partial: int = 0
    """Inputs that have results and a dead letter as well."""
    failures: int = 0
    """Parts that are missing of these."""
    results: int
    retries: int
    seconds_p50: float
    seconds_p95: float
    payload_bytes: int
    """Of the results."""
    index_sha256: str
    segment_xxh128: str
    """Empty if the results are files."""
    outcomes_sha256: str


@dataclass(frozen=True)
class ProcessedSlot:
    """The results of a sealed slot. Never changes again."""

    directory: Path
    seal: ProcessedSeal

    @property
    def segment(self) -> Path:
        return self.directory / SEGMENT_NAME

    @property
    def has_files(self) -> bool:
        """Whether the results are files (`result_files`), not members of the segment."""
        return self.seal.processing.slot_format == ResultFilesWriter.slot_format

    @property
    def data(self) -> Path:
        """The file or folder that has the results."""
        return self.directory / (FILES_NAME if self.has_files else SEGMENT_NAME)

    def entries(self) -> Sequence[IndexEntry]:
        """All results, in the order of the inputs. Raises `DamagedResults`."""
        return read_index(self._sealed(INDEX_NAME, self.seal.index_sha256)).entries

    def entries_by_commit(self) -> Iterator[Sequence[IndexEntry]]:
        """The same in pieces, for whom the memory of a large slot would be too much."""
        return entries_by_commit(self._sealed(INDEX_NAME, self.seal.index_sha256))

    def outcomes(self) -> Iterator[Outcomes]:
        """What became of the inputs. Raises `DamagedResults`."""
        for line, _ in lines_and_ends(self._sealed(OUTCOMES_NAME, self.seal.outcomes_sha256)):
            yield line

    def failures(self) -> Iterator[FailedPart]:
        """What is missing of items that have other results. Raises `DamagedResults`."""
        if self.seal.failures:
            for line in self.outcomes():
                yield from line.failures

    def _sealed(self, name: str, sha256: str) -> bytes:
        content = read_own(self.directory / name)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise errors.DamagedResults(f"{self.directory / name} is not what was sealed")
        return content


def processing_here(partition: str, layout: Layout) -> str:
    """`Processing.id` of the work on a partition that is on this disk, finished or not; empty if
    there is none, or it cannot be read."""
    key = PartitionKey.parse(partition)
    if key is None:
        return ""
    try:
        found = read_noted(layout.processed(key.slot, key.number) / PROCESSING_NAME, Processing)
    except errors.DamagedResults:
        return ""
    return found.id if found is not None and found.partition == partition else ""


def find_processed(slot: SealedSlot, layout: Layout) -> ProcessedSlot | None:
    """The processed slot of a sealed one; None if it is not finished, or not of these inputs."""
    directory = layout.processed(slot.seal.slot, slot.seal.number)
    seal = _read_seal(directory)
    if seal is None or not is_of(seal.processing, slot):
        return None
    return ProcessedSlot(directory, seal)


def remove_processed(slot: int, number: int, layout: Layout) -> None:
    """Remove what was processed of a stored slot, finished or not. May be repeated.

    What somebody else put there is moved to `set-aside/`. The caller holds the partition's lock.
    """
    directory = layout.processed(slot, number)
    if not os.path.lexists(directory):
        return
    for path in sorted(directory.iterdir()):
        if path.name not in _NAMES and not is_temporary(path.name):
            set_aside(path, layout)
    remove_tree(directory)
    reached(CrashPoint.PROCESSED_REMOVED)


def is_of(processing: Processing, slot: SealedSlot) -> bool:
    """Whether this was made of the slot's inputs."""
    wanted = (slot.seal.partition, slot.seal.index_sha256)
    return (processing.partition, processing.from_index_sha256) == wanted


def read_noted(path: Path, kind: type[_T]) -> _T | None:
    """None if it was never written. Raises `DamagedResults`."""
    try:
        return msgspec.json.decode(read_own(path), type=kind)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (errors.ForeignFile, *errors.UNREADABLE_JSON) as error:
        raise errors.DamagedResults(f"{path} cannot be read: {error}") from error


def _read_seal(directory: Path) -> ProcessedSeal | None:
    seal = read_noted(directory / SEAL_NAME, ProcessedSeal)
    if seal is not None and seal.version not in VERSIONS:
        raise errors.OtherFormat(
            f"{directory / SEAL_NAME} has version {seal.version}, this software reads {PLAIN} and "
            f"{WITH_FILES}",
            hint="use the version that wrote it, or remove the directory: the slot is then "
            "processed again",
        )
    return seal
