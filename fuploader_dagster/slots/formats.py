"""The two formats of a directory, `segment` and `files`, and what works with either."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fuploader_dagster.disk.durable import fsync_file, syncfs
from fuploader_dagster.disk.own_files import open_own, open_own_folder, opened_own, read_own
from fuploader_dagster.errors import DamagedData, DamagedResults, DamagedSlot, ForeignFile
from fuploader_dagster.slots import index
from fuploader_dagster.slots.directory_writer import DirectoryWriter
from fuploader_dagster.slots.index import INDEX_NAME, IndexEntry
from fuploader_dagster.slots.plain_files import FILES_NAME, FilesWriter, is_committed
from fuploader_dagster.slots.processed import ProcessedSlot
from fuploader_dagster.slots.result_files import contents_of_files
from fuploader_dagster.slots.sealing import SealedSlot
from fuploader_dagster.slots.segment import SEGMENT_NAME, SegmentWriter, content_of, stream_contents

WRITERS: dict[str, type[DirectoryWriter]] = {"segment": SegmentWriter, "files": FilesWriter}


def writer_for(directory: Path, default: str, *, keeps_headers: bool) -> DirectoryWriter:
    """A writer of the format that the directory has; the setting may have changed since."""
    for writer in WRITERS.values():
        if os.path.lexists(directory / writer.data_name):
            return writer(directory, keeps_headers=keeps_headers)
    return WRITERS[default](directory, keeps_headers=keeps_headers)


class Salvaged(NamedTuple):
    """A message that a damaged directory still proves."""

    name: str
    content: bytes
    headers: str


def salvage(directory: Path) -> Iterator[Salvaged]:
    """The messages of a damaged directory whose record and data agree. Changes nothing."""
    entries = _salvaged_records(directory)
    if not entries:
        return
    segment = directory / SEGMENT_NAME
    if not os.path.lexists(segment):
        for entry in entries:
            path = directory / FILES_NAME / entry.name
            if is_committed(path, entry):
                yield Salvaged(entry.name, path.read_bytes(), entry.headers)
        return
    try:
        descriptor = open_own(segment, os.O_RDONLY)
    except ForeignFile:
        return
    try:
        for entry in entries:
            content = content_of(descriptor, entry)
            if content is not None:
                yield Salvaged(entry.name, content, entry.headers)
    finally:
        os.close(descriptor)


def contents(slot: SealedSlot, entries: Sequence[IndexEntry]) -> Iterator[bytes]:
    """The contents of these messages of a sealed slot, each compared with its record.

    Raises `DamagedSlot` at the first that differs.
    """
    return contents_in(slot.directory, slot.seal.slot_format, entries)


def contents_in(
    directory: Path, slot_format: str, entries: Sequence[IndexEntry]
) -> Iterator[bytes]:
    """The same of a directory that may not be sealed yet."""
    if slot_format == "files":
        for entry in entries:
            path = directory / FILES_NAME / entry.name
            if not is_committed(path, entry):
                raise _damaged(path, entry)
            yield path.read_bytes()
        return
    yield from _in_segment(directory / SEGMENT_NAME, entries, DamagedSlot)


def contents_of_results(slot: ProcessedSlot, entries: Sequence[IndexEntry]) -> Iterator[bytes]:
    """The contents of these results, each compared with its record. Raises `DamagedResults`."""
    if slot.has_files:
        return contents_of_files(slot.directory, entries)
    return _in_segment(slot.segment, entries, DamagedResults)


def all_contents(slot: SealedSlot | ProcessedSlot) -> Iterator[tuple[IndexEntry, bytes]]:
    """All messages of a sealed slot, or all its results, with their contents.

    Where the seal has a digest of the segment, contents are proven when the last one was read, and
    not before. Raises `DamagedSlot` or `DamagedResults`, at the end or sooner.
    """
    slot_format = "segment" if isinstance(slot, ProcessedSlot) else slot.seal.slot_format
    xxh128 = slot.seal.segment_xxh128
    if slot_format != "segment" or not xxh128:
        yield from _each_proven(slot)
        return
    entries = (entry for committed in slot.entries_by_commit() for entry in committed)
    try:
        with opened_own(slot.segment, os.O_RDONLY) as descriptor:
            yield from stream_contents(descriptor, entries, xxh128)
    except DamagedSlot as error:
        for _ in _each_proven(slot):  # this names the message
            pass
        if isinstance(slot, ProcessedSlot):
            raise DamagedResults(error.message, hint=error.hint) from error
        raise


def _each_proven(slot: SealedSlot | ProcessedSlot) -> Iterator[tuple[IndexEntry, bytes]]:
    for committed in slot.entries_by_commit():
        found = (
            contents_of_results(slot, committed)
            if isinstance(slot, ProcessedSlot)
            else contents(slot, committed)
        )
        yield from zip(committed, found, strict=True)


def _in_segment(
    path: Path, entries: Sequence[IndexEntry], damage: type[DamagedData]
) -> Iterator[bytes]:
    with opened_own(path, os.O_RDONLY) as descriptor:
        for entry in entries:
            content = content_of(descriptor, entry)
            if content is None:
                raise _damaged(path, entry, damage)
            yield content


def _damaged(path: Path, entry: IndexEntry, damage: type[DamagedData] = DamagedSlot) -> DamagedData:
    return damage(
        f"message {entry.name!r} in {path} is not what was sealed",
        hint="the disk is failing, or something changed the sealed slot (dmesg, SMART)",
    )


def has_headers(directory: Path) -> bool:
    """Whether a message of a damaged directory may have headers."""
    return any(entry.headers for entry in _salvaged_records(directory))


def _salvaged_records(directory: Path) -> Sequence[IndexEntry]:
    try:
        return index.salvage_records(read_own(directory / INDEX_NAME))
    except (FileNotFoundError, ForeignFile):
        return ()


def sync_directory(directory: Path) -> None:
    """Make durable what another process wrote into a directory and may still be syncing.

    Raises `FileNotFoundError` if it is not there any more: then it was sealed, which syncs it.
    """
    segment = directory / SEGMENT_NAME
    if segment.exists():
        fsync_file(segment)
    elif directory.exists():
        descriptor = open_own_folder(directory / FILES_NAME)
        try:
            syncfs(descriptor)
        finally:
            os.close(descriptor)
    fsync_file(directory / INDEX_NAME)
