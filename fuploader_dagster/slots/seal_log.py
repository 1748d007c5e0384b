"""Which slots were sealed: the witness that none of them went missing (`health/balance.py`).

What must always hold: a slot is noted here before it is a sealed slot, so whoever removes the
slot's directory does not remove what is known of it. Nothing depends on the log but this check: it
is not synced, and a disk that takes no line holds up no sealing. What is missing in it is added
while the slot is on the disk.

Format: `seal-log/YYYYMMDDTHH.jsonl` by the hour of sealing, a line of JSON per slot. The file goes
when all its slots are accounted for: from then on their receipts say what was sealed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from fuploader_dagster.disk.durable import write_all
from fuploader_dagster.disk.layout import Layout, PartitionKey
from fuploader_dagster.disk.own_files import folder_mode, opened_own, read_own
from fuploader_dagster.errors import UNREADABLE_JSON, ForeignFile, FuploaderError

log = logging.getLogger(__name__)


class Noted(msgspec.Struct, frozen=True):
    """A slot that was sealed."""

    partition: str
    messages: int


def note_sealed(layout: Layout, slots: Iterable[Noted]) -> None:
    """Note that these are sealed, or about to be. May be repeated. Never raises for the disk."""
    lines: dict[Path, bytes] = {}
    for slot in slots:
        path = _path(layout, slot.partition)
        lines[path] = lines.get(path, b"") + msgspec.json.encode(slot) + b"\n"
    for path, content in lines.items():
        try:
            with suppress(FileExistsError):
                path.parent.mkdir(folder_mode(layout.root))
            with opened_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as descriptor:
                write_all(descriptor, content)
        except (OSError, FuploaderError) as error:
            log.warning("%s takes no line, so nobody would miss its slots: %s", path, error)


def log_files(layout: Layout) -> Sequence[Path]:
    """The files whose slots are not all accounted for, the oldest first."""
    return sorted(layout.seal_log.glob("*.jsonl"))


def read_log(path: Path) -> dict[str, Noted]:
    """What a file says, by partition; lines that are torn or not ours are skipped."""
    found: dict[str, Noted] = {}
    try:
        lines = read_own(path).splitlines()
    except (FileNotFoundError, ForeignFile):
        return found
    for line in lines:
        with suppress(*UNREADABLE_JSON):
            noted = msgspec.json.decode(line, type=Noted)
            if PartitionKey.parse(noted.partition) is not None:
                found[noted.partition] = noted
    return found


def hour_of(path: Path) -> datetime | None:
    """When the hour of a file begins; None if it is not named for one."""
    try:
        return datetime.strptime(path.stem, "%Y%m%dT%H").replace(tzinfo=timezone.utc)
    except ValueError:
        return None


def _path(layout: Layout, partition: str) -> Path:
    key = PartitionKey.parse(partition)
    hour = f"{key.sealed_at:%Y%m%dT%H}" if key else "other"
    return layout.seal_log / f"{hour}.jsonl"
