"""The partitions of a pipeline on this node, and how far each is.

What must always hold: looking changes nothing, and reads seals and receipts, never data. It costs
what is on the disk, and of what is stored as much as is asked for: the newest come first.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from fuploader_dagster.disk.layout import Layout, PartitionKey
from fuploader_dagster.lookup.found import State, Trouble
from fuploader_dagster.lookup.partitions import KnownPartition
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import Receipt, find_receipts, receipts_in
from fuploader_dagster.slots.sealing import sealed_slots


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One partition. Times are UTC, ISO 8601; sizes are bytes."""

    pipeline: str
    partition: str
    state: State
    sealed_at: str | None
    messages: int
    payload_bytes: int
    archive_bytes: int | None
    """None until it is packed."""
    key: str | None
    """Of the object; None until it has one."""
    address: str | None
    stored_at: str | None
    trouble: Trouble | None
    """Why it is not further, if an attempt failed."""


def listed(pipeline: Pipeline) -> Iterator[Listed]:
    """First those that are on this disk, then all others that were stored, each newest first."""
    slots = sorted(sealed_slots(pipeline.layout), key=lambda one: one.seal.partition, reverse=True)
    stored = find_receipts(pipeline.layout, [one.seal.partition for one in slots])
    for one in slots:
        seal = one.seal
        known = KnownPartition(pipeline, seal.partition)
        known.receipt = stored.get(seal.partition)
        if known.receipt is not None:
            yield _stored(pipeline, known.receipt)
            continue
        packed = known.packed
        yield Listed(
            pipeline=pipeline.name,
            partition=seal.partition,
            state=known.state(one),
            sealed_at=known.sealed_at,
            messages=seal.messages,
            payload_bytes=seal.payload_bytes,
            archive_bytes=packed.size_bytes if packed else None,
            key=seal.object_key,
            address=None,
            stored_at=None,
            trouble=known.trouble,
        )
    here = {one.seal.partition for one in slots}
    for receipt in _newest_first(pipeline.layout):
        if receipt.partition not in here:
            yield _stored(pipeline, receipt)


def _newest_first(layout: Layout) -> Iterator[Receipt]:
    for path in sorted(layout.receipts.glob("*.jsonl"), reverse=True):
        found = receipts_in(path)
        yield from (found[partition] for partition in sorted(found, reverse=True))


def _stored(pipeline: Pipeline, receipt: Receipt) -> Listed:
    key = PartitionKey.parse(receipt.partition)
    return Listed(
        pipeline=pipeline.name,
        partition=receipt.partition,
        state="stored",
        sealed_at=key.sealed_at.isoformat(timespec="milliseconds") if key else None,
        messages=receipt.messages,
        payload_bytes=receipt.payload_bytes,
        archive_bytes=receipt.size_bytes,
        key=receipt.key,
        address=receipt.address,
        stored_at=receipt.stored_at,
        trouble=None,
    )
