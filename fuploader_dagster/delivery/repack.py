"""Packing anew: a stored archive is fetched back and written as the settings say today.

What must always hold: every member is verified on the way (where an archive has no digests of them,
the whole of it is, by the digest in its receipt), and all are there again, in the same order; the
object that was stored first is neither changed nor removed; the partition's receipt changes only
after the store has confirmed the new object. Where the key is the same and the bytes are not, the
store refuses (`ObjectConflict`): another level needs another key or another store.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fuploader_dagster.archives.members import Member
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.archives.restore_folder import RestoreFolder
from fuploader_dagster.archives.writer import write_archive
from fuploader_dagster.catalog.rebuild import note_in_catalog
from fuploader_dagster.contracts.object_store import ArchiveFile, ObjectStore, Progress
from fuploader_dagster.delivery.failures import clear_failure
from fuploader_dagster.delivery.pack import Packed, forget_packed, keep_packed, pack_custom
from fuploader_dagster.delivery.slot_members import SegmentMembers
from fuploader_dagster.delivery.upload import make_receipt
from fuploader_dagster.disk.durable import make_dirs
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.disk.tar_headers import member_header, padding
from fuploader_dagster.disk.temporaries import temporary_file
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import DamagedArchive, PermanentError
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.user_functions import object_key
from fuploader_dagster.slots.receipts import Receipt, keep_receipt


@dataclass(frozen=True)
class Repacking:
    """The wish to pack stored archives anew, and how they are reached."""

    open_archive: Callable[[str], Archive]
    """Opens a partition's stored archive."""


def repack(before: Receipt, wish: Repacking, pipeline: Pipeline) -> Packed:
    """Fetch a stored archive and pack it anew. The caller holds the partition's lock.

    Raises `DamagedArchive`, `ForeignArchive` for what only a user's packer could read, and what
    packing raises.
    """
    layout = pipeline.layout
    make_dirs(layout.archives)
    archive = f"{before.partition}{pipeline.archive_suffix}"
    target = layout.archives / archive
    with temporary_file(layout.archives / f"{before.partition}.segment") as segment:
        with wish.open_archive(before.partition) as stored, naming_disk_trouble(segment):
            members = _fetch(stored, segment)
            if stored.unproven.count:  # or the new archive would vouch for whatever came
                stored.verify_whole(before.sha256)
        if len(members) != before.messages:
            raise DamagedArchive(
                f"{before.address} has {len(members)} members, its receipt says {before.messages}"
            )
        written = _write(segment, members, target, before.partition, pipeline)
    packed = Packed(
        partition=before.partition,
        archive=archive,
        size_bytes=written.size_bytes,
        sha256=written.sha256,
        messages=len(members),
        payload_bytes=sum(member.size_bytes for member in members),
    )
    keep_packed(layout, packed)
    return packed


def upload_again(
    before: Receipt,
    packed: Packed,
    store: ObjectStore,
    pipeline: Pipeline,
    *,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.time,
) -> Receipt:
    """Store an archive that was packed anew, and keep its receipt. The caller holds the lock."""
    partition = PartitionKey.parse(before.partition)
    if partition is None:
        raise PermanentError(f"{before.partition!r} is no partition key of ours")
    key = object_key(
        pipeline.key, pipeline=pipeline.name, partition=partition, archive=packed.archive
    )
    stored = store.put(key, packed.file(pipeline.layout), progress)
    receipt = make_receipt(packed, stored, clock())
    if pipeline.packer is None:
        path = pipeline.layout.archives / packed.archive
        note_in_catalog(receipt, lambda: _names(path), pipeline)
    keep_receipt(pipeline.layout, receipt)
    forget_packed(pipeline.layout, packed.partition, packed.archive)
    clear_failure(pipeline.layout, packed.partition)
    return receipt


def _fetch(stored: Archive, segment: Path) -> list[Member]:
    """All members, verified, as the segment that they once came from."""
    members = []
    with segment.open("wb") as file:
        for name, payload in stored.payloads(lambda _: True):
            file.write(member_header(name, len(payload)))
            file.write(payload)
            file.write(padding(len(payload)))
            members.append(Member(name, len(payload), sha256(payload).digest()))
    return members


def _write(
    segment: Path, members: list[Member], target: Path, partition: str, pipeline: Pipeline
) -> ArchiveFile:
    with SegmentMembers(segment, members) as source:
        if pipeline.packer is None:
            return write_archive(
                target, source, level=pipeline.compression_level, threads=pipeline.pack_threads
            )

        def lay_out(folder: Path) -> None:
            with RestoreFolder(folder) as restored:
                for number, (name, size, _) in enumerate(members):
                    start = len(member_header(name, size))
                    content = source.read_part(number, start, start + size)
                    restored.write(name, [memoryview(content)])

        return pack_custom(partition, lay_out, target, pipeline.packer, pipeline)


def _names(path: Path) -> list[str]:
    with Archive.open(path) as archive:
        return archive.names()
