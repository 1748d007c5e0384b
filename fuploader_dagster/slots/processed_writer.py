"""Writes the results of a sealed slot, in the form that `slots/processed.py` describes.

What must always hold: a commit is a line of outcomes, then data, then index records, each synced
before the next. After a crash the work goes on behind the last whole commit, with what items in
work had in their folders.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import Mapping

import msgspec

from fuploader_dagster import errors
from fuploader_dagster.archives.manifest import FailedPart
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import append_durably, make_dirs, remove_tree, write_durably
from fuploader_dagster.disk.header_text import to_text
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.disk.setting_aside import set_aside
from fuploader_dagster.slots.index import INDEX_NAME
from fuploader_dagster.slots.item_folders import CheckedFile, ItemFolders
from fuploader_dagster.slots.numbered_names import numbered_name
from fuploader_dagster.slots.outcomes import Figures, Outcomes, lines_and_ends
from fuploader_dagster.slots.processed import (
    OUTCOMES_NAME,
    PLAIN,
    PROCESSING_NAME,
    RESULTS_PREFIX,
    VERSIONS,
    WITH_FILES,
    ProcessedSeal,
    ProcessedSlot,
    Processing,
    is_of,
    read_noted,
)
from fuploader_dagster.slots.result_files import ResultFilesWriter
from fuploader_dagster.slots.sealing import SEAL_NAME, SealedSlot
from fuploader_dagster.slots.segment import SegmentWriter

log = logging.getLogger(__name__)


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
            found = read_noted(self.directory / PROCESSING_NAME, Processing)
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
        known = found.version in VERSIONS and found.slot_format == self._format.slot_format
        if not known or not is_of(found, self._slot):
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
