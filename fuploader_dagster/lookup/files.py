"""The file of a name, from wherever its newest copy is: this disk, or an archive.

What must always hold: every byte is compared with the digest that was recorded for it. A small file
is, before any of it is returned; of a large one the last piece comes only after that. A copy that
moves on meanwhile is read where it is then.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.disk.header_text import from_text
from fuploader_dagster.disk.own_files import opened_own
from fuploader_dagster.errors import DamagedData, DamagedResults, StoreRefused
from fuploader_dagster.lookup.directories import InDirectory, Reading, on_this_disk
from fuploader_dagster.lookup.found import Copy
from fuploader_dagster.lookup.search import Search
from fuploader_dagster.lookup.wanted import Wanted
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.formats import contents_in, contents_of_results
from fuploader_dagster.slots.result_files import file_of
from fuploader_dagster.slots.segment import SEGMENT_NAME

SMALL_BYTES = 4 * 1024 * 1024
"""Up to this size a file is read whole, before any of it is returned."""
_PIECE_BYTES = 1024 * 1024


class NoSuchFile(StoreRefused):
    """No file of this name is known here."""


@dataclass
class OpenFile:
    """A file that can be read. Close it; a context manager."""

    name: str
    size_bytes: int
    digest: bytes
    """The first 16 bytes of its SHA-256; empty if nothing recorded it."""
    headers: Mapping[str, str]
    """What is kept with it; a result's `content-type`, too."""
    partition: str | None
    address: str | None
    """Of the archive that it is read from; None if that is this disk."""
    pieces: Callable[[], Iterator[bytes | memoryview]]
    """Its content. Of a large file, damage raises `DamagedData` in place of the last piece."""
    _open: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_file(
    pipeline: Pipeline,
    name: str,
    finder: ArchiveFinder,
    *,
    partition: str | None = None,
    most_bytes: float,
) -> OpenFile:
    """The newest file of exactly this name, or that of one partition.

    `most_bytes`: of indexes, that are read to find it. Raises `NoSuchFile` if there is none,
    `DamagedData` if it is damaged, and what opening an archive raises.
    """
    wanted = Wanted(name)
    found: OpenFile | None = None
    while found is None:
        place = _newest_here(pipeline, wanted, partition, most_bytes)
        if place is None:
            break
        try:
            found = _from_disk(place, pipeline)
        except (DamagedData, FileNotFoundError):
            if _directory(place, pipeline).exists():
                raise
            # It has moved on, which directories do at most twice.
    return found or _newest_stored(pipeline, wanted, finder, partition, most_bytes)


def _newest_here(
    pipeline: Pipeline, wanted: Wanted, partition: str | None, most_bytes: float
) -> InDirectory | None:
    found = [
        place
        for place in on_this_disk(pipeline.layout, wanted, Reading(most_bytes))
        if place.entry.name == wanted.text and partition in (None, place.partition)
    ]
    return max(found, key=lambda one: (one.partition is None, one.partition or ""), default=None)


def _newest_stored(
    pipeline: Pipeline,
    wanted: Wanted,
    finder: ArchiveFinder,
    partition: str | None,
    most_bytes: float,
) -> OpenFile:
    name = wanted.text
    search = Search(pipeline, wanted, most_bytes=most_bytes)
    stored = [
        copy
        for copy in search.copies()
        if copy.member == name and copy.address and partition in (None, copy.partition)
    ]
    if not stored:
        unseen = "; ".join([*search.incomplete(), str(search.catalog_trouble or "")]).strip("; ")
        raise NoSuchFile(
            f"there is no file {name!r} here{f' in {partition}' if partition else ''}",
            hint=f"not looked at: {unseen}"
            if unseen
            else "its message may still wait in the queue",
        )
    newest = max(stored, key=lambda copy: (copy.current is not False, copy.sealed_at or ""))
    return _from_archive(newest, finder)


def _directory(place: InDirectory, pipeline: Pipeline) -> Path:
    if place.processed is not None:
        return place.processed.directory
    if place.sealed is not None:
        return place.sealed.directory
    return pipeline.layout.active(place.slot, place.number)


def _from_disk(place: InDirectory, pipeline: Pipeline) -> OpenFile:
    entry = place.entry
    pieces: Callable[[], Iterator[bytes | memoryview]]
    if place.processed is not None and place.processed.has_files:
        pieces = partial(_pieces_of_result, place)
        if entry.size_bytes <= SMALL_BYTES:
            content = b"".join(pieces())
            pieces = partial(_whole, content)
    else:
        pieces = partial(_whole, _content(place, pipeline))
    return OpenFile(
        name=entry.name,
        size_bytes=entry.size_bytes,
        digest=entry.sha256[:16],
        headers=from_text(entry.headers),
        partition=place.partition,
        address=None,
        pieces=pieces,
    )


def _content(place: InDirectory, pipeline: Pipeline) -> bytes:
    """The content of a message, or of a result in a segment: these fit into memory."""
    if place.processed is not None:
        return next(contents_of_results(place.processed, [place.entry]))
    directory = _directory(place, pipeline)
    slot_format = "segment" if (directory / SEGMENT_NAME).exists() else "files"
    return next(contents_in(directory, slot_format, [place.entry]))


def _whole(content: bytes) -> Iterator[bytes | memoryview]:
    yield content


def _pieces_of_result(place: InDirectory) -> Iterator[bytes | memoryview]:
    """A result that is a file, of any size."""
    assert place.processed is not None  # noqa: S101 - its caller has seen to it
    path = file_of(place.processed.directory, place.entry)
    digest = hashlib.sha256()
    held = b""
    with opened_own(path, os.O_RDONLY) as descriptor:
        while piece := os.read(descriptor, _PIECE_BYTES):
            digest.update(piece)
            if held:
                yield held
            held = piece
    if digest.digest() != place.entry.sha256:
        raise DamagedResults(
            f"{path}, the result {place.entry.name!r}, is not what was sealed",
            hint="the disk is failing, or something changed it (dmesg, SMART)",
        )
    yield held


def _from_archive(copy: Copy, finder: ArchiveFinder) -> OpenFile:
    assert copy.address is not None  # noqa: S101 - its caller has seen to it
    with ExitStack() as stack:
        archive = stack.enter_context(finder.open(copy.address))
        member = archive.member(copy.name)
        if member is None:  # made by a packer that writes no manifest: it is found by reading
            file = next(archive.files(lambda name: name == copy.name), None)
            if file is None:
                raise StoreRefused(f"{archive.address} has no member {copy.name!r}")
            size, digest, headers = len(file.content), b"", file.headers
            pieces = partial(_whole, file.content)
        else:
            size, digest, headers = member.size_bytes, member.digest or b"", member.headers
            pieces = partial(_pieces_of_member, archive, copy.name)
            if size <= SMALL_BYTES:
                pieces = partial(_whole, b"".join(pieces()))
        return OpenFile(
            name=copy.name,
            size_bytes=size,
            digest=digest,
            headers=from_text(headers),
            partition=copy.partition,
            address=copy.address,
            pieces=pieces,
            _open=stack.pop_all(),
        )


def _pieces_of_member(archive: Archive, name: str) -> Iterator[bytes | memoryview]:
    held: bytes | memoryview = b""
    for piece in archive.stream(name):
        if held:
            yield held
        held = bytes(piece)  # its buffer may be used again for the next one
    yield held
