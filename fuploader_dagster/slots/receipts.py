"""Receipts: what the object store has confirmed, kept after the local data is gone.

What must always hold: a receipt is durable before any local data of its slot is removed, so at any
moment a slot has its data, or its receipt, or both. Whoever finds both removes the data.

Format: `receipts/YYYYMMDDTHH.jsonl` by the hour of sealing, one JSON object per line, appended in
one write. A crash can leave a torn line; its slot still has its data and is uploaded again, and the
store then answers with the object that is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import msgspec

from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import append_durably, make_dirs
from fuploader_dagster.disk.layout import Layout, PartitionKey
from fuploader_dagster.disk.own_files import open_own
from fuploader_dagster.errors import UNREADABLE_JSON


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive holds: the originals of a slot, the results of its processing, or both."""

    messages: int
    """Of the slot, whether or not the archive holds them."""
    payload_bytes: int
    """Of all members."""
    results: int = 0
    """Members that came out of the processing; they follow the originals."""
    originals: bool = True
    """Whether the archive holds the messages themselves."""

    @property
    def members(self) -> int:
        """Number of files in the archive."""
        return self.messages * self.originals + self.results


class Receipt(Content, frozen=True, kw_only=True):
    """One archive that the object store confirmed by size and digest."""

    partition: str
    address: str
    key: str
    size_bytes: int
    sha256: str
    stored_at: str
    """UTC, ISO 8601."""


def keep_receipt(layout: Layout, receipt: Receipt) -> None:
    """Make the receipt durable."""
    path = _path(layout, receipt.partition)
    make_dirs(path.parent)
    append_durably(path, msgspec.json.encode(receipt) + b"\n")
    reached(CrashPoint.RECEIPT_KEPT)


def find_receipt(layout: Layout, partition: str) -> Receipt | None:
    """The receipt of a partition, or None if the store never confirmed it to this machine."""
    return find_receipts(layout, [partition]).get(partition)


def find_receipts(layout: Layout, partitions: Iterable[str]) -> dict[str, Receipt]:
    """The receipts of those partitions that have one; each file is read once."""
    wanted: dict[Path, set[str]] = {}
    for partition in partitions:
        wanted.setdefault(_path(layout, partition), set()).add(partition)
    return {
        receipt.partition: receipt
        for path, keys in wanted.items()
        for receipt in _receipts_in(path)
        if receipt.partition in keys
    }


def receipts_between(
    layout: Layout, since: datetime | None = None, until: datetime | None = None
) -> dict[str, Receipt]:
    """Receipts of slots sealed from `since` on and before `until`, in the order of sealing."""
    found = {}
    for path in sorted(layout.receipts.glob("*.jsonl")):
        for receipt in _receipts_in(path):
            key = PartitionKey.parse(receipt.partition)
            if key is None or (since and key.sealed_at < since):
                continue
            if until is None or key.sealed_at < until:
                found[receipt.partition] = receipt
    return dict(sorted(found.items()))


def _receipts_in(path: Path) -> Iterator[Receipt]:
    with suppress(FileNotFoundError), os.fdopen(open_own(path, os.O_RDONLY), "rb") as lines:
        for line in lines:
            with suppress(*UNREADABLE_JSON):  # torn, see the module docstring
                yield msgspec.json.decode(line, type=Receipt)


def _path(layout: Layout, partition: str) -> Path:
    key = PartitionKey.parse(partition)
    hour = f"{key.sealed_at:%Y%m%dT%H}" if key else "other"
    return layout.receipts / f"{hour}.jsonl"
