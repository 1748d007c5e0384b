"""Where it is kept what was told: `alerts.json` in the pipeline's folder.

What must always hold: after a restart nothing is told twice and nothing is forgotten; only a power
cut between the delivery of an alert and its note may repeat that one. The file is replaced in one
step. On a full disk, which has to be told itself, it is written over where it is: it has spare room
at its end from its first day on. Where even that fails, this process remembers.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from fuploader_dagster.disk.durable import write_all, write_durably
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.own_files import open_own, read_own
from fuploader_dagster.errors import UNREADABLE_JSON, FuploaderError
from fuploader_dagster.health.alerts import Memory

log = logging.getLogger(__name__)

SPARE_BYTES = 64 * 1024
"""Of one file for each pipeline. What is told has a few kilobytes."""

_unwritten: dict[Path, Memory] = {}
"""What could not be written by this process."""


def read_memory(layout: Layout) -> Memory | None:
    """What was told; None if nothing ever was, or if it cannot be read any more. Raises
    `ForeignFile`, and `OSError`."""
    if layout.alerts in _unwritten:
        return _unwritten[layout.alerts]
    try:
        return msgspec.json.decode(read_own(layout.alerts), type=Memory)
    except FileNotFoundError:
        return None
    except UNREADABLE_JSON as error:
        log.warning("%s cannot be read, what goes on is told again: %s", layout.alerts, error)
        return None


def write_memory(layout: Layout, memory: Memory) -> None:
    """Note what was told. Never raises for the disk: whoever is to be told of it must be."""
    content = msgspec.json.encode(memory)
    content += b" " * (SPARE_BYTES - len(content))
    try:
        try:
            write_durably(layout.alerts, content)
        except (FuploaderError, OSError):
            _write_over(layout.alerts, content)
    except (FuploaderError, OSError) as error:
        _unwritten[layout.alerts] = memory
        log.warning("what was told could not be noted, a restart will repeat it: %s", error)
    else:
        _unwritten.pop(layout.alerts, None)


def _write_over(path: Path, content: bytes) -> None:
    descriptor = open_own(path, os.O_RDWR)
    try:
        if os.fstat(descriptor).st_size < len(content):
            raise OSError(f"{path} has no spare room")
        write_all(descriptor, content)
        os.ftruncate(descriptor, len(content))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
