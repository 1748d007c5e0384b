"""The items of a slot whose rows are stored: read from this disk, or from the stored archive.

What must always hold:

- Where the pipeline has a processor, the items are the results; else they are the messages.
- Each is verified on its way, in the same order and under the same name from either place. Those
  of a whole segment are verified together, before their end is reached.
- Memory does not grow with the slot.
- A slot may be removed while it is read, because its archive was stored meanwhile. Then `gone` is
  set, and reading raises an error; nothing was damaged, and the archive has it all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence

from fuploader_dagster.archives.manifest import RESULTS_KEY
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.contracts.processor import Item
from fuploader_dagster.delivery.stored_members import OpenArchive, has_originals, results_of
from fuploader_dagster.disk.header_text import from_text
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.errors import DamagedArchive, DamagedData, PermanentError
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.formats import all_contents, contents, contents_of_results
from fuploader_dagster.slots.index import IndexEntry
from fuploader_dagster.slots.processed import RESULTS_PREFIX, ProcessedSlot, find_processed
from fuploader_dagster.slots.receipts import Receipt, find_receipt
from fuploader_dagster.slots.sealing import SealedSlot, find_sealed

Positioned = tuple[int, Item]
"""An item and its position, from 0."""


class SlotItems(ABC):
    """The items of one slot. May be read several times."""

    gone = False
    """Whether the slot was removed from this disk while it was read."""

    @abstractmethod
    def read(self, positions: Collection[int] | None = None) -> Iterator[Positioned]:
        """The items in their order, or those at these positions."""


class ItemsHere(SlotItems):
    """Of a slot on this disk."""

    def __init__(self, slot: SealedSlot, processed: ProcessedSlot | None, layout: Layout) -> None:
        self._slot = slot
        self._processed = processed
        self._layout = layout

    def read(self, positions: Collection[int] | None = None) -> Iterator[Positioned]:
        """Raises `DamagedSlot` or `DamagedResults`; any error at all if the slot is `gone`."""
        partition = self._slot.seal.partition
        try:
            if positions is None:
                found = all_contents(self._processed or self._slot)
                for at, (entry, content) in enumerate(found):
                    yield at, _item(partition, at, entry.name, content, entry.headers)
                return
            first = 0
            for committed in (self._processed or self._slot).entries_by_commit():
                chosen = [
                    (at, entry)
                    for at, entry in enumerate(committed, start=first)
                    if at in positions
                ]
                first += len(committed)
                chosen_contents = self._contents([entry for _, entry in chosen])
                for (at, entry), content in zip(chosen, chosen_contents, strict=True):
                    yield at, _item(partition, at, entry.name, content, entry.headers)
        except (DamagedData, OSError):
            self.gone = find_receipt(self._layout, partition) is not None
            raise

    def _contents(self, entries: Sequence[IndexEntry]) -> Iterator[bytes]:
        if self._processed is not None:
            return contents_of_results(self._processed, entries)
        return contents(self._slot, entries)


class ItemsStored(SlotItems):
    """Of an archive in the object store."""

    def __init__(self, partition: str, pipeline: Pipeline, open_archive: OpenArchive) -> None:
        self._partition = partition
        self._pipeline = pipeline
        self._open = open_archive

    def read(self, positions: Collection[int] | None = None) -> Iterator[Positioned]:
        """Raises `DamagedArchive`, what opening raises, or `PermanentError` if the archive does not
        hold what the rows are made of."""
        receipt = find_receipt(self._pipeline.layout, self._partition)
        of_results = self._pipeline.process is not None
        with self._open(self._partition) as archive:
            self._require(archive, receipt, of_results=of_results)
            is_result = results_of(archive, receipt, self._pipeline)
            count = 0
            for file in archive.files(lambda name: is_result(name) is of_results):
                if positions is None or count in positions:
                    name, content, headers = file
                    yield count, _item(self._partition, count, name, content, headers)
                count += 1
            if receipt is not None:
                if archive.unproven.count:
                    archive.verify_whole(receipt.sha256)
                wanted = receipt.results if of_results else receipt.messages
                if count != wanted:
                    raise DamagedArchive(
                        f"{archive.address} has {count:,} of the {wanted:,} items that its receipt "
                        f"says"
                    )

    def _require(self, archive: Archive, receipt: Receipt | None, *, of_results: bool) -> None:
        """Raise `PermanentError` unless the archive holds the items."""
        if not of_results:
            if not has_originals(archive, receipt):
                raise PermanentError(
                    f"the archive {archive.address} holds only results, and the pipeline has no "
                    f"processor: rows would be made of messages, which it does not have",
                    hint="its rows cannot be stored any more with these settings",
                )
            return
        noted = archive.manifest is not None and RESULTS_KEY in archive.manifest.metadata
        if not noted and not (receipt is not None and receipt.results):
            raise PermanentError(
                f"the messages in {archive.address} were not processed, and rows are made of "
                f"results",
                hint="materialise the processed slot of the partition with the tag "
                "`fuploader/redo: true`, then this sink",
            )


def items_here(partition: str, pipeline: Pipeline) -> ItemsHere | None:
    """The items of a slot on this disk; None if it is only in the object store.

    Raises `PermanentError` if it is here and not processed yet, though it has to be.
    """
    layout = pipeline.layout
    slot = find_sealed(layout, partition)
    if slot is None:
        return None
    processed = find_processed(slot, layout) if pipeline.process is not None else None
    if pipeline.process is not None and processed is None:
        if find_receipt(layout, partition) is not None:  # its removal has begun
            return None
        raise PermanentError(
            f"{partition} is not processed yet, so there are no rows of it",
            hint="materialise its processed slot first, or use `fuploader ship`, which does both",
        )
    return ItemsHere(slot, processed, layout)


def _item(partition: str, position: int, name: str, content: bytes, headers: str) -> Item:
    key = f"{partition}-{position}"
    return Item(name.removeprefix(RESULTS_PREFIX), content, from_text(headers), key)
