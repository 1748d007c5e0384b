"""Which rows are owed to a sink, and which of them to store now.

What must always hold: looking changes nothing, and the decision is a pure function of what was
found and of the time. While a sink takes nothing, one partition is tried after each of its growing
pauses, however many wait, and one that always fails does not keep the others from being tried.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fuploader_dagster.delivery.failures import Failure, is_due
from fuploader_dagster.delivery.sink_notes import SinkNotes, SinkTrouble
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import find_receipts
from fuploader_dagster.slots.sealing import sealed_partitions


@dataclass(frozen=True)
class OwedRows:
    """What a sink still has to store, without what a run that ships stores anyway."""

    owed: Sequence[str] = ()
    """Partitions, oldest first."""
    settled: Sequence[str] = ()
    """Stored, but a crash came before the notes about them were removed."""
    shippable: Sequence[str] = ()
    """On this disk, without an archive in the object store: the next run that ships stores them."""
    failures: Mapping[str, Failure] = field(default_factory=dict)
    trouble: SinkTrouble | None = None

    def while_nothing_ships(self, on_disk: Collection[str], asked: Collection[str]) -> OwedRows:
        """What can be stored while the object store does not answer: slots on this disk, those also
        that a run would be `asked` to ship."""
        owed = {key for key in self.owed if key in on_disk} | set(self.shippable) & set(asked)
        return replace(self, owed=sorted(owed))


def look_at(notes: SinkNotes, kept: Iterable[str], shippable: Collection[str] = ()) -> OwedRows:
    """Read what is noted about a sink. `kept`: partitions whose archive is stored and whose local
    data waits for required sinks. `shippable`: those on this disk that are to be shipped."""
    failures = {failure.partition: failure for failure in notes.failures.all()}
    every = sorted(key for key in {*notes.owed(), *failures, *kept} if PartitionKey.parse(key))
    stored = notes.receipts.find({*every, *shippable})
    return OwedRows(
        [key for key in every if key not in stored],
        [key for key in every if key in stored],
        [key for key in shippable if key not in stored],
        failures,
        notes.trouble,
    )


def stored_here(pipeline: Pipeline) -> list[str]:
    """Partitions that the object store has confirmed and whose slots are still on this disk."""
    return list(find_receipts(pipeline.layout, sealed_partitions(pipeline.layout)))


def due(found: OwedRows, pipeline: Pipeline, *, busy: Collection[str], now: float) -> list[str]:
    """Which partitions to ask for now. `busy` are those that a run is about to store."""

    def is_ready(key: str) -> bool:
        failure = found.failures.get(key)
        return failure is None or is_due(failure.attempts, failure.failed_at, pipeline, now)

    def attempts(key: str) -> int:
        return found.failures[key].attempts if key in found.failures else 0

    ready = [key for key in found.owed if key not in busy and is_ready(key)]
    trouble = found.trouble
    if trouble is None or not ready:
        return ready
    if not is_due(trouble.attempts, trouble.seen_at, pipeline, now):
        return []
    return [min(ready, key=lambda key: (attempts(key), key))]
