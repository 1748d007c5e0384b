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
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from fuploader_dagster import errors
from fuploader_dagster.archives.manifest import FailedPart
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import append_durably, make_dirs, remove_tree, write_durably
from fuploader_dagster.disk.header_text import to_text
from fuploader_dagster.disk.layout import Layout, PartitionKey
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.disk.setting_aside import set_aside
from fuploader_dagster.disk.temporaries import is_temporary
from fuploader_dagster.slots.index import INDEX_NAME, IndexEntry, entries_by_commit, read_index
from fuploader_dagster.slots.item_folders import WORK_NAME, CheckedFile, ItemFolders
from fuploader_dagster.slots.numbered_names import numbered_name
from fuploader_dagster.slots.outcomes import Figures, Outcomes, lines_and_ends
from fuploader_dagster.slots.plain_files import FILES_NAME
from fuploader_dagster.slots.result_files import ResultFilesWriter
from fuploader_dagster.slots.sealing import SEAL_NAME, SealedSlot
from fuploader_dagster.slots.segment import SEGMENT_NAME, SegmentWriter

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
_VERSIONS = (PLAIN, WITH_FILES)


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
        found = _read(layout.processed(key.slot, key.number) / PROCESSING_NAME, Processing)
    except errors.DamagedResults:
        return ""
    return found.id if found is not None and found.partition == partition else ""


def find_processed(slot: SealedSlot, layout: Layout) -> ProcessedSlot | None:
    """The processed slot of a sealed one; None if it is not finished, or not of these inputs."""
    directory = layout.processed(slot.seal.slot, slot.seal.number)
    seal = _read_seal(directory)
    if seal is None or not _is_of(seal.processing, slot):
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


class ProcessedWriter:
    """Takes the results of one sealed slot. Use as a context manager."""

    def __init__(
        self,
        slot: SealedSlot,
        layout: Layout,
        processor: str,
        version: str,
        *,
        uses_folders: bool = False,
    ) -> None:
        """`processor`: how it is called; `version`: changes when its results may; `uses_folders`:
        its items have folders, and results can be files."""
        self._slot = slot
        self._layout = layout
        self._processor = processor
        self._version = version
        self._format = ResultFilesWriter if uses_folders else SegmentWriter
        self.directory = layout.processed(slot.seal.slot, slot.seal.number)
        self.folders = ItemFolders(self.directory) if uses_folders else None
        self.figures = Figures()
        self.resumed = False
        """Whether there was something of an earlier attempt."""
        self._names: set[str] = set()
        self._next_number: dict[str, int] = {}
        self._entries = 0
        self._bytes = 0

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def __enter__(self) -> ProcessedWriter:
        """Go on with what an earlier attempt began, or begin."""
        try:
            found = _read(self.directory / PROCESSING_NAME, Processing)
            if found is not None and self._continues(found):
                self.processing = found
                self._open()
                self.resumed = True
                return self
        except (errors.DamagedResults, errors.DamagedSlot, errors.ForeignFile) as error:
            target = set_aside(self.directory, self._layout)
            log.error(
                "%s is damaged and was moved to %s; the slot is processed again: %s",
                self.directory,
                target,
                error,
            )
        if os.path.lexists(self.directory):
            remove_tree(self.directory)
        self.processing = Processing(
            version=WITH_FILES if self.folders else PLAIN,
            id=secrets.token_hex(8),
            partition=self._slot.seal.partition,
            from_index_sha256=self._slot.seal.index_sha256,
            processor=self._processor,
            processor_version=self._version,
            slot_format=self._format.slot_format,
        )
        make_dirs(self.directory)
        write_durably(self.directory / PROCESSING_NAME, msgspec.json.encode(self.processing))
        reached(CrashPoint.PROCESSING_BEGUN)
        self._open()
        return self

    def _continues(self, found: Processing) -> bool:
        """Whether the work that was begun can go on; says why if it cannot."""
        known = found.version in _VERSIONS and found.slot_format == self._format.slot_format
        if not known or not _is_of(found, self._slot):
            log.warning("%s is of other inputs: the slot is processed again", self.directory)
            return False
        if found.processor_version != self._version:
            log.warning(
                "%s was begun by %s, which has changed since (now %s): the slot is processed again",
                self.directory,
                found.processor,
                self._processor,
            )
            return False
        return True

    def _open(self) -> None:
        self._writer = self._format(self.directory, keeps_headers=True)
        entries = self._writer.open(lambda path: set_aside(path, self._layout))
        self._names = {entry.name for entry in entries}
        self._entries = len(entries)
        self._bytes = sum(entry.size_bytes for entry in entries)
        self.figures = Figures()
        path = self.directory / OUTCOMES_NAME
        content = read_own(path) if os.path.lexists(path) else b""
        end = inputs = results = 0
        for line, stop in lines_and_ends(content):
            if line.entries > self._entries:
                break
            self.figures.add(line)
            end, inputs, results = stop, line.inputs, line.entries
        if (self.figures.inputs, self.figures.results) != (inputs, results):
            raise errors.DamagedResults(f"the lines of {path} do not add up")
        if self.figures.results != self._entries:
            raise errors.DamagedResults(f"{path} does not account for the {self._entries} results")
        if end < len(content):
            write_durably(path, content[:end])
            reached(CrashPoint.OUTCOMES_CUT)
        if self.folders is not None:
            self.folders.remove_all_before(self.figures.inputs)

    def add(self, name: str, content: bytes, headers: Mapping[str, str]) -> None:
        """Take a result into the next commit, under a free name."""
        digest = hashlib.sha256(content).digest()
        self._writer.add(self._free(name), content, digest, to_text(headers))
        self._entries += 1
        self._bytes += len(content)

    def add_file(self, name: str, file: CheckedFile, headers: Mapping[str, str]) -> None:
        """The same of a file in an item's folder. Raises `BadItem` if it has changed; after that,
        nothing can be committed."""
        assert isinstance(self._writer, ResultFilesWriter)  # noqa: S101 - it has folders
        self._writer.add_file(self._free(name), file, to_text(headers))
        self._entries += 1
        self._bytes += file.result.size_bytes

    def _free(self, name: str) -> str:
        """The name of a result; taken from now on."""
        stored_as = f"{RESULTS_PREFIX}{name}"
        while stored_as in self._names:
            number = self._next_number[name] = self._next_number.get(name, 1) + 1
            stored_as = f"{RESULTS_PREFIX}{numbered_name(name, number)}"
        self._names.add(stored_as)
        return stored_as

    def commit(
        self,
        results: list[int],
        milliseconds: list[int],
        retries: int,
        *,
        lettered: list[int],
        failures: list[FailedPart],
    ) -> None:
        """Make the results that were added durable, with what became of their inputs."""
        before = self.figures.inputs
        line = Outcomes(
            inputs=before + len(results),
            entries=self._entries,
            results=results,
            milliseconds=milliseconds,
            retries=retries,
            lettered=lettered,
            failures=failures,
        )
        append_durably(self.directory / OUTCOMES_NAME, msgspec.json.encode(line) + b"\n")
        reached(CrashPoint.OUTCOMES_KEPT)
        self._writer.commit()
        self.figures.add(line)
        if self.folders is not None:
            self.folders.remove(before, self.figures.inputs)

    def seal(self) -> ProcessedSlot:
        """Seal the directory: everything is done. Raises `DamagedResults` if inputs are missing."""
        if self.figures.inputs != self._slot.seal.messages:
            raise errors.DamagedResults(
                f"{self.directory} accounts for {self.figures.inputs} of the "
                f"{self._slot.seal.messages} inputs"
            )
        self._writer.close()
        if self.folders is not None:
            self.folders.remove_all()
        path = self.directory / OUTCOMES_NAME
        outcomes = read_own(path) if os.path.lexists(path) else b""
        seal = ProcessedSeal(
            version=WITH_FILES if self.figures.partial else self.processing.version,
            processing=self.processing,
            inputs=self.figures.inputs,
            failed=self.figures.failed,
            partial=self.figures.partial,
            failures=self.figures.failures,
            results=self.figures.results,
            retries=self.figures.retries,
            seconds_p50=self.figures.seconds_of(0.5),
            seconds_p95=self.figures.seconds_of(0.95),
            payload_bytes=self._bytes,
            index_sha256=hashlib.sha256(read_own(self.directory / INDEX_NAME)).hexdigest(),
            segment_xxh128=self._writer.xxh128() or "",
            outcomes_sha256=hashlib.sha256(outcomes).hexdigest(),
        )
        write_durably(self.directory / SEAL_NAME, msgspec.json.encode(seal))
        reached(CrashPoint.PROCESSED)
        return ProcessedSlot(self.directory, seal)


def _is_of(processing: Processing, slot: SealedSlot) -> bool:
    wanted = (slot.seal.partition, slot.seal.index_sha256)
    return (processing.partition, processing.from_index_sha256) == wanted


def _read(path: Path, kind: type[_T]) -> _T | None:
    """None if it was never written. Raises `DamagedResults`."""
    try:
        return msgspec.json.decode(read_own(path), type=kind)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (errors.ForeignFile, *errors.UNREADABLE_JSON) as error:
        raise errors.DamagedResults(f"{path} cannot be read: {error}") from error


def _read_seal(directory: Path) -> ProcessedSeal | None:
    seal = _read(directory / SEAL_NAME, ProcessedSeal)
    if seal is not None and seal.version not in _VERSIONS:
        raise errors.OtherFormat(
            f"{directory / SEAL_NAME} has version {seal.version}, this software reads {PLAIN} and "
            f"{WITH_FILES}",
            hint="use the version that wrote it, or remove the directory: the slot is then "
            "processed again",
        )
    return seal
