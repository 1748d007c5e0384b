"""Re-packing: a stored archive is fetched back and packed as the settings say today.

What must always hold: every member is verified on the way (`stored_members`), and all are there
again, in the same order, originals and results. The object that was stored first is neither changed
nor removed. The partition's receipt changes only after the store has confirmed the new object.
Where the key is the same and the bytes are not, the store refuses (`ObjectConflict`): another level
needs another key or another store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.contracts.object_store import ObjectStore, Progress
from fuploader_dagster.delivery.archive_members import ArchiveMembers
from fuploader_dagster.delivery.attempts import Done, Outcome, attempt
from fuploader_dagster.delivery.pack import Packed, find_packed, forget_packed, pack_members
from fuploader_dagster.delivery.slot_members import SegmentMembers
from fuploader_dagster.delivery.store_trouble import Patience, ProgressOf
from fuploader_dagster.delivery.stored_members import OpenArchive, fetch
from fuploader_dagster.delivery.upload import PartitionLock, store_archive
from fuploader_dagster.disk.durable import make_dirs
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.disk.temporaries import temporary_file
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import PermanentError
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.user_functions import object_key
from fuploader_dagster.slots.index import IndexEntry
from fuploader_dagster.slots.receipts import Receipt

log = logging.getLogger(__name__)


def repack_partitions(
    partitions: Sequence[str],
    pipeline: Pipeline,
    store: ObjectStore,
    open_archive: OpenArchive,
    progress: ProgressOf | None = None,
    *,
    tell: Callable[[str], None] = log.warning,
) -> Iterator[Outcome]:
    """Re-pack stored archives one after the other, and upload each under today's key.

    `tell` gets a sentence for each attempt that is repeated. A partition that fails keeps the
    archive and the receipt that it has.
    """
    with Patience(pipeline.layout, store, tell) as patience:

        def steps(key: PartitionKey) -> Done:
            with patience.upload(str(key), progress) as report:
                return _repack_one(key, pipeline, store, open_archive, report)

        for partition in partitions:
            yield attempt(partition, steps)


def _repack_one(
    key: PartitionKey,
    pipeline: Pipeline,
    store: ObjectStore,
    open_archive: OpenArchive,
    progress: Progress,
) -> Done:
    layout, partition = pipeline.layout, str(key)
    with naming_disk_trouble(layout.root), PartitionLock(pipeline, partition) as before:
        if before is None:
            raise PermanentError(
                f"partition {partition} has no stored archive that could be re-packed",
                hint="ship it first: materialise the partition, which packs it as the settings "
                "say today",
            )
        packed = find_packed(layout, partition) or repack(before, open_archive, pipeline)
        path = layout.archives / packed.archive
        receipt = store_archive(
            packed,
            store,
            pipeline,
            key=object_key(
                pipeline.key,
                pipeline=pipeline.name,
                partition=key,
                archive=packed.archive,
                zone=pipeline.zone,
                split=before.split,
            ),
            split=before.split,
            names=None if pipeline.packer else lambda: _names(path),
            progress=progress,
        )
        forget_packed(layout, partition, packed.archive)
        return Done(partition, packed, receipt)


def repack(before: Receipt, open_archive: OpenArchive, pipeline: Pipeline) -> Packed:
    """Fetch a stored archive and pack it again. The caller holds the partition's lock.

    Raises `DamagedArchive`, `ForeignArchive` for what only a user's packer could read, and what
    packing raises.
    """
    layout, partition = pipeline.layout, before.partition
    make_dirs(layout.archives)
    with temporary_file(layout.archives / f"{partition}.segment") as segment:
        fetched = fetch(before, open_archive, segment, pipeline)
        with (
            _source(segment, fetched.originals) as originals,
            _source(segment, fetched.results) as results,
        ):
            members = ArchiveMembers(
                before.messages,
                originals if before.originals else None,
                results if fetched.results else None,
                processed=fetched.processed,
                processing=before.processing,
                failures=fetched.failures,
                failure_count=fetched.failure_count,
            )
            return pack_members(
                partition, f"{partition}{pipeline.archive_suffix}", members, pipeline, layout
            )


def _source(segment: Path, entries: Sequence[IndexEntry]) -> SegmentMembers:
    return SegmentMembers(segment, entries, [entry.offset for entry in entries])


def _names(path: Path) -> list[str]:
    with Archive.open(path) as archive:
        return archive.names()
