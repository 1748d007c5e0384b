"""Remembers which alerts were sent: `alerts.json` in the pipeline's folder.

What must always hold: after a restart no alert is repeated or forgotten; only a power cut between
sending an alert and recording it may repeat that one. The file is replaced atomically. On a full
disk, which needs an alert itself, the file is overwritten in place: it has spare space at its end
from the start. If even that fails, this process remembers.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from fuploader_dagster.disk.durable import write_all, write_durably
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.own_files import opened_own, read_own
from fuploader_dagster.errors import UNREADABLE_JSON, FuploaderError
from fuploader_dagster.health.alerts import Memory

log = logging.getLogger(__name__)

SPARE_BYTES = 64 * 1024
"""Size of the file. Its content takes a few kilobytes."""

_unwritten: dict[Path, Memory] = {}
"""What this process could not write."""


def read_memory(layout: Layout) -> Memory | None:
    """The memory; None if there is none yet or if it is damaged. Raises `ForeignFile` and
    `OSError`."""
    if layout.alerts in _unwritten:
        return _unwritten[layout.alerts]
    try:
        return msgspec.json.decode(read_own(layout.alerts), type=Memory)
    except FileNotFoundError:
        return None
    except UNREADABLE_JSON as error:
        log.warning(
            "cannot read %s, so alerts about ongoing trouble are repeated: %s", layout.alerts, error
        )
        return None


def write_memory(layout: Layout, memory: Memory) -> None:
    """Store the memory. Never raises if the disk fails: that alert must still be sent."""
    content = msgspec.json.encode(memory)
    content += b" " * (SPARE_BYTES - len(content))
    try:
        try:
            write_durably(layout.alerts, content)
        except (FuploaderError, OSError):
            _write_over(layout.alerts, content)
    except (FuploaderError, OSError) as error:
        _unwritten[layout.alerts] = memory
        log.warning(
            "cannot record which alerts were sent, so a restart will repeat them: %s", error
        )
    else:
        _unwritten.pop(layout.alerts, None)


def _write_over(path: Path, content: bytes) -> None:
    with opened_own(path, os.O_RDWR) as descriptor:
        if os.fstat(descriptor).st_size < len(content):
            raise OSError(f"{path} has no spare space")
        write_all(descriptor, content)
        os.ftruncate(descriptor, len(content))
        os.fsync(descriptor)
