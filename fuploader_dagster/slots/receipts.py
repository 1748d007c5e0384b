"""Receipts: what the object store and the sinks have confirmed, kept after the local data is gone.

What must always hold: a receipt is durable before any local data of its slot is removed, so at any
moment a slot has its data, or its receipt, or both. Whoever finds both removes the data.

Format: `receipts/YYYYMMDDTHH.jsonl` by the hour of sealing, one JSON object per line, appended in
one write. A crash can leave a torn line; its slot still has its data and is uploaded again, and the
store then answers with the object that is there. A sink's receipts are in `sinks/{name}/`, in the
same form. Of several lines about one partition the last one counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Generic, Protocol, TypeVar

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
    processing: str = ""
    """`Processing.id` of what came out of them; empty if they were not processed."""

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
    requests: int = 0
    """That the upload made of the store's service, with its retries. 0: unknown, or a folder."""
    split: dict[str, str] = {}
    """As in the seal of the slot."""


class RowsReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one slot that a sink confirmed."""

    partition: str
    redo: int = 0
    """How often a person asked to store them again."""
    rows: int
    rejected: int
    """Items that became dead letters: they have no rows."""
    address: str
    stored_at: str
    """UTC, ISO 8601."""


class _OfPartition(Protocol):
    @property
    def partition(self) -> str: ...


_Receipt = TypeVar("_Receipt", bound=_OfPartition)


@dataclass(frozen=True)
class ReceiptFiles(Generic[_Receipt]):
    """A folder of receipts of one kind."""

    folder: Path
    kind: type[_Receipt]

    def keep(self, receipt: _Receipt, point: CrashPoint) -> None:
        """Make the receipt durable."""
        path = self._path(receipt.partition)
        make_dirs(path.parent)
        append_durably(path, msgspec.json.encode(receipt) + b"\n")
        reached(point)

    def find(self, partitions: Iterable[str]) -> dict[str, _Receipt]:
        """The receipts of those partitions that have one; each file is read once."""
        wanted: dict[Path, set[str]] = {}
        for partition in partitions:
            wanted.setdefault(self._path(partition), set()).add(partition)
        return {
            receipt.partition: receipt
            for path, keys in wanted.items()
            for receipt in self.lines_of(path)
            if receipt.partition in keys
        }

    def between(
        self, since: datetime | None = None, until: datetime | None = None
    ) -> dict[str, _Receipt]:
        """Receipts of slots sealed from `since` on and before `until`, in the order of sealing."""
        found = {}
        first = _hour(since) if since else ""
        for path in sorted(self.folder.glob("*.jsonl")):
            if path.stem < first:  # of an earlier hour
                continue
            for receipt in self.lines_of(path):
                key = PartitionKey.parse(receipt.partition)
                if key is None or (since and key.sealed_at < since):
                    continue
                if until is None or key.sealed_at < until:
                    found[receipt.partition] = receipt
        return dict(sorted(found.items()))

    def lines_of(self, path: Path) -> Iterator[_Receipt]:
        """All receipts in a file, also those that a later line replaces."""
        with suppress(FileNotFoundError), os.fdopen(open_own(path, os.O_RDONLY), "rb") as lines:
            for line in lines:
                with suppress(*UNREADABLE_JSON):  # torn, see the module docstring
                    yield msgspec.json.decode(line, type=self.kind)

    def _path(self, partition: str) -> Path:
        key = PartitionKey.parse(partition)
        hour = _hour(key.sealed_at) if key else "other"
        return self.folder / f"{hour}.jsonl"


def _hour(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat()[:13].replace("-", "")


def rows_receipts(layout: Layout, sink: str) -> ReceiptFiles[RowsReceipt]:
    """The receipts of a sink."""
    return ReceiptFiles(layout.sink(sink), RowsReceipt)


def keep_receipt(layout: Layout, receipt: Receipt) -> None:
    """Make the receipt of an archive durable."""
    _of_archives(layout).keep(receipt, CrashPoint.RECEIPT_KEPT)


def find_receipt(layout: Layout, partition: str) -> Receipt | None:
    """The receipt of a partition, or None if the store never confirmed it to this machine."""
    return find_receipts(layout, [partition]).get(partition)


def find_receipts(layout: Layout, partitions: Iterable[str]) -> dict[str, Receipt]:
    """The receipts of those partitions whose archive is stored; each file is read once."""
    return _of_archives(layout).find(partitions)


def receipts_in(path: Path) -> dict[str, Receipt]:
    """The receipts of archives in one file, by partition."""
    return {one.partition: one for one in ReceiptFiles(path.parent, Receipt).lines_of(path)}


def receipts_between(
    layout: Layout, since: datetime | None = None, until: datetime | None = None
) -> dict[str, Receipt]:
    """Receipts of archives whose slots were sealed in that time, in the order of sealing."""
    return _of_archives(layout).between(since, until)


def _of_archives(layout: Layout) -> ReceiptFiles[Receipt]:
    return ReceiptFiles(layout.receipts, Receipt)
