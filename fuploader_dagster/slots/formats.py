"""The two formats of a directory, `segment` and `files`, and what works with either."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fuploader_dagster.disk.durable import fsync_file, syncfs
from fuploader_dagster.disk.own_files import open_own, open_own_folder, read_own
from fuploader_dagster.errors import ForeignFile
from fuploader_dagster.slots import index
from fuploader_dagster.slots.directory_writer import DirectoryWriter
from fuploader_dagster.slots.index import INDEX_NAME
from fuploader_dagster.slots.plain_files import FILES_NAME, FilesWriter, is_committed
from fuploader_dagster.slots.segment import SEGMENT_NAME, SegmentWriter, content_of

WRITERS: dict[str, type[DirectoryWriter]] = {"segment": SegmentWriter, "files": FilesWriter}


def writer_for(directory: Path, default: str) -> DirectoryWriter:
    """A writer of the format that the directory has; the setting may have changed since."""
    for writer in WRITERS.values():
        if os.path.lexists(directory / writer.data_name):
            return writer(directory)
    return WRITERS[default](directory)


def salvage(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the messages of a damaged directory whose record and data agree.

    Changes nothing.
    """
    try:
        entries = index.salvage_records(read_own(directory / INDEX_NAME))
    except (FileNotFoundError, ForeignFile):
        return
    segment = directory / SEGMENT_NAME
    if not os.path.lexists(segment):
        for entry in entries:
            path = directory / FILES_NAME / entry.name
            if is_committed(path, entry):
                yield entry.name, path.read_bytes()
        return
    try:
        descriptor = open_own(segment, os.O_RDONLY)
    except ForeignFile:
        return
    try:
        for entry in entries:
            content = content_of(descriptor, entry)
            if content is not None:
                yield entry.name, content
    finally:
        os.close(descriptor)


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
