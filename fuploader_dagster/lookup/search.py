"""Where is message X? One answer, wherever it is.

    waiting in the queue, or in a worker's hand     nothing is found: nobody here has seen it
    in an active directory                          active
    sealed, and what has become of the slot since   sealed, processed, packed, stored
    in an archive, also of another node             stored
    not a file, or not processed, or without rows   a dead letter

What must always hold:

- Looking changes nothing, creates nothing and waits for nobody.
- It reads indexes, notes, the catalog and dead letters, never the data; and not more than it may
  (`Reading`). What was left out is said.
- A copy on this disk is found also while it moves on: places are looked at in the order in which
  messages go through them, and of two answers about one copy the later one counts.

An archive is found by the catalog, by what waits to be added to it, and, for what was shipped
recently, by the index that is kept of it; that one knows messages of which the archive has only
results, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from fuploader_dagster.catalog.catalog import Catalog, CatalogedArchive, CatalogUnusable, Hit
from fuploader_dagster.catalog.missed import missed_archives
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.lookup.directories import InDirectory, Reading, on_this_disk, shipped
from fuploader_dagster.lookup.found import STATES, AtSink, Copy, Letter
from fuploader_dagster.lookup.letters import letters_about
from fuploader_dagster.lookup.partitions import KnownPartition
from fuploader_dagster.lookup.wanted import Wanted
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.processed import RESULTS_PREFIX

_Identity = tuple[str | None, str]
"""Partition and name."""
_MOST_REMEMBERED = 10_000
"""Partitions; each takes about a kilobyte."""


class Search:
    """One question to one pipeline."""

    def __init__(self, pipeline: Pipeline, wanted: Wanted, *, most_bytes: float = math.inf) -> None:
        """`most_bytes`: of indexes and dead letters, each, that are read."""
        self._pipeline = pipeline
        self._wanted = wanted
        self._indexes = Reading(most_bytes)
        self._for_letters = Reading(most_bytes)
        self._partitions: dict[str, KnownPartition] = {}
        self._rejected: set[tuple[str, str, str]] = set()
        """Sink, partition and name of each file of which a sink has no rows."""
        self.catalog_trouble: CatalogUnusable | None = None
        """Why the catalog was not looked into, or not to its end."""

    def letters(self) -> list[Letter]:
        """The dead letters. Copies that are looked for after this say which sinks refused them."""
        found = letters_about(self._pipeline, self._wanted, self._for_letters)
        self._rejected |= {
            (one.stage.removeprefix("sink:"), one.partition, one.name)
            for one in found
            if one.waits and one.stage.startswith("sink:") and one.partition and one.name
        }
        return found

    def copies(self) -> Iterator[Copy]:
        """The copies of the file; of one name oldest first, those that are still here last."""
        if self._wanted.pattern is not None:
            yield from self._of_a_pattern()
            return
        found: dict[object, Copy] = {}
        for place in on_this_disk(self._pipeline.layout, self._wanted, self._indexes):
            found[place.slot, place.number, place.entry.name] = self._here(place)
        in_archives = [self._in_archive(hit) for hit in self._in_catalog()]
        known = {(copy.partition, copy.name) for copy in in_archives}
        for place in shipped(self._pipeline.layout, self._wanted, self._indexes):
            found[place.slot, place.number, place.entry.name] = self._shipped(place)
        by_name = {(copy.partition, copy.name): copy for copy in found.values()}
        merged = [_with_content(copy, by_name) for copy in in_archives]
        here = [
            copy
            for copy in found.values()
            if copy.partition is None or (copy.partition, copy.name) not in known
        ]
        yield from sorted([*merged, *here], key=_order)

    def incomplete(self) -> list[str]:
        """What was not looked at, and why; nothing if all was. `catalog_trouble` says more."""
        said = [*self._indexes.sentences(), *self._for_letters.sentences()]
        layout = self._pipeline.layout
        if not layout.catalog.exists() and layout.receipts.exists():
            said.append(
                "older archives: there is no catalog of them (`fuploader catalog rebuild` makes it)"
            )
        return said

    def _of_a_pattern(self) -> Iterator[Copy]:
        """What is not stored yet, then what the catalog has: there may be millions."""
        seen: set[_Identity] = set()
        for place in on_this_disk(self._pipeline.layout, self._wanted, self._indexes):
            copy = self._here(place)
            if copy.state != "stored":
                seen.add((copy.partition, copy.name))
                yield copy
        for hit in self._in_catalog():
            if (hit.archive.partition, hit.name) not in seen:
                yield self._in_archive(hit)

    def _in_catalog(self) -> Iterator[Hit]:
        layout, wanted = self._pipeline.layout, self._wanted
        for archive, names in missed_archives(layout):
            yield from (Hit(name, archive) for name in names if wanted.fits(name))
        if not layout.catalog.exists():
            return
        try:
            with Catalog.to_read(layout.catalog) as catalog:
                if wanted.pattern is not None:
                    yield from catalog.find(wanted.text)
                else:
                    yield from catalog.find_message(wanted.text)
                    yield from catalog.find_message(wanted.result)
        except CatalogUnusable as error:
            self.catalog_trouble = error

    def _partition(self, partition: str) -> KnownPartition:
        known = self._partitions.get(partition)
        if known is None:
            if len(self._partitions) >= _MOST_REMEMBERED:
                self._partitions.clear()
            known = self._partitions[partition] = KnownPartition(self._pipeline, partition)
        return known

    def _here(self, place: InDirectory) -> Copy:
        entry = place.entry
        copy = Copy(
            name=entry.name,
            pipeline=self._pipeline.name,
            state="active",
            node=self._pipeline.node,
            slot=place.slot,
            directory=place.number,
            size_bytes=entry.size_bytes,
            sha256=entry.sha256.hex(),
        )
        if place.sealed is None or place.partition is None:
            return copy
        known = self._partition(place.partition)
        copy = msgspec.structs.replace(
            self._of_partition(copy, known),
            state=known.state(place.sealed),
            sealed_at=place.sealed.seal.sealed_at,
            results=known.results_of(place.sealed, place.position)
            if place.processed is None
            else None,
            trouble=known.trouble,
        )
        return self._by_receipt(copy, known)

    def _shipped(self, place: InDirectory) -> Copy:
        """A message of a slot that was removed; what had it was stored before."""
        assert place.partition is not None  # noqa: S101 - shipped indexes are named by theirs
        known = self._partition(place.partition)
        copy = Copy(
            name=place.entry.name,
            pipeline=self._pipeline.name,
            state="stored",
            node=known.node,
            sealed_at=known.sealed_at,
            slot=place.slot,
            directory=place.number,
            size_bytes=place.entry.size_bytes,
            sha256=place.entry.sha256.hex(),
        )
        return self._by_receipt(self._of_partition(copy, known), known)

    def _by_receipt(self, copy: Copy, known: KnownPartition) -> Copy:
        """With the archive that the partition's receipt names."""
        receipt = known.receipt
        if receipt is None:
            return copy
        return msgspec.structs.replace(
            copy,
            address=receipt.address,
            key=receipt.key,
            member=copy.name if receipt.originals else None,
            stored_at=receipt.stored_at,
            current=True,
        )

    def _in_archive(self, hit: Hit) -> Copy:
        archive: CatalogedArchive = hit.archive
        copy = Copy(
            name=hit.name,
            pipeline=self._pipeline.name,
            state="stored",
            node=None,
            sealed_at=archive.sealed_at or None,
            address=archive.address,
            key=archive.key,
            member=hit.name,
        )
        if PartitionKey.parse(archive.partition) is None:
            return copy
        known = self._partition(archive.partition)
        copy = self._of_partition(copy, known)
        if (receipt := known.receipt) is None:
            return copy
        is_current = receipt.address == archive.address
        stored_at = receipt.stored_at if is_current else None
        return msgspec.structs.replace(copy, current=is_current, stored_at=stored_at)

    def _of_partition(self, copy: Copy, known: KnownPartition) -> Copy:
        item = copy.name.removeprefix(RESULTS_PREFIX)
        sinks = {
            sink: AtSink(state="rejected", stored_at=at.stored_at)
            if (sink, known.partition, item) in self._rejected
            else at
            for sink, at in known.sinks.items()
        }
        return msgspec.structs.replace(
            copy,
            partition=known.partition,
            node=known.node,
            redo=known.is_redone,
            sinks=sinks,
        )


def _with_content(copy: Copy, here: dict[_Identity, Copy]) -> Copy:
    """With what only an index or the disk knows of this copy."""
    same = here.get((copy.partition, copy.name)) if copy.partition is not None else None
    if same is None:
        return copy
    return msgspec.structs.replace(
        copy,
        slot=same.slot,
        directory=same.directory,
        size_bytes=same.size_bytes,
        sha256=same.sha256,
        results=same.results,
    )


def _order(copy: Copy) -> tuple[bool, str, int, bool, str, str]:
    sealed_at = copy.sealed_at or ""
    return (
        copy.state == "active",
        sealed_at,
        STATES.index(copy.state),
        copy.name.startswith(RESULTS_PREFIX),
        copy.name,
        copy.address or "",
    )
