"""Sealed slots that are made here, without a queue."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.contenders import Ours
from benchmarks.documents import documents_of
from fuploader_dagster.slots.slot import SlotOwner


def sealed(ours: Ours, items: int, slots: int, kind: str = "document") -> Iterator[str]:
    """The partitions of new slots, which have all items together. Their names begin with `kind`."""
    documents, intake = documents_of(2000), ours.pipeline.intake()
    with SlotOwner(intake, 0) as slot:
        for part in range(slots):
            for number in range(part, items, slots):
                slot.add(f"{kind}-{number:09d}.json", documents.content(number))
                if slot.count.messages % intake.commit_messages == 0:
                    slot.commit()
            made = slot.seal("count")
            assert made is not None
            yield str(made.partition)
