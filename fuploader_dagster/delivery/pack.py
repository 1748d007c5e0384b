"""Packing: a sealed slot becomes one archive.

What must always hold: packing the same slot twice gives the same bytes (with the built-in packer),
an archive counts only once it was read back and its `.packed.json` lies beside it, and nothing in
the sealed slot changes. A custom packer works on a copy with real files and can spoil nothing.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fuploader_dagster.archives.members import MemberSource
from fuploader_dagster.archives.restore_folder import RestoreFolder
from fuploader_dagster.archives.writer import write_archive
from fuploader_dagster.contracts.object_store import ArchiveFile
from fuploader_dagster.delivery.slot_members import FolderMembers, SegmentMembers
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import (
    fsync_file,
    make_dirs,
    remove_file,
    replace_durably,
    write_durably,
)
from fuploader_dagster.disk.file_digest import digest_of
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.tar_headers import header_bytes
from fuploader_dagster.disk.temporaries import temporary_folder
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import UNREADABLE_JSON, DamagedSlot, PermanentError, StrategyError
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.user_functions import call_packer, name_of
from fuploader_dagster.slots.index import INDEX_NAME, IndexEntry
from fuploader_dagster.slots.plain_files import find_by_content
from fuploader_dagster.slots.sealing import SealedSlot

_SUFFIX = ".packed.json"
_PIECE_BYTES = 2**22


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """An archive that is finished and waits for its upload."""

    partition: str
    archive: str
    size_bytes: int
    sha256: str
    messages: int
    payload_bytes: int

    def file(self, layout: Layout) -> ArchiveFile:
        """The archive as an object store takes it."""
        metadata = {
            "fuploader-partition": self.partition,
            "fuploader-messages": str(self.messages),
        }
        return ArchiveFile(layout.archives / self.archive, self.size_bytes, self.sha256, metadata)


def pack(slot: SealedSlot, pipeline: Pipeline) -> Packed:
    """Pack the slot, unless that was done already. The caller holds the partition's lock.

    Raises `DamagedSlot` where the slot contradicts its index or its seal, `StrategyError` where a
    custom packer misbehaves, `DiskFull`; the slot is untouched in each case.
    """
    layout = pipeline.layout
    done = find_packed(layout, slot.seal.partition)
    if done is not None:
        return done
    make_dirs(layout.archives)
    target = layout.archives / slot.seal.archive
    entries = _sealed_entries(slot, target)
    if pipeline.packer is None:
        written = _pack_built_in(slot, entries, target, pipeline)
    else:
        written = pack_custom(
            slot.seal.partition,
            lambda folder: _lay_out_files(slot, entries, folder),
            target,
            pipeline.packer,
            pipeline,
        )
    packed = Packed(
        partition=slot.seal.partition,
        archive=slot.seal.archive,
        size_bytes=written.size_bytes,
        sha256=written.sha256,
        messages=slot.seal.messages,
        payload_bytes=slot.seal.payload_bytes,
    )
    keep_packed(layout, packed)
    return packed


def keep_packed(layout: Layout, packed: Packed) -> None:
    """Note durably that the archive is finished."""
    write_durably(_path(layout, packed.partition), msgspec.json.encode(packed))
    reached(CrashPoint.ARCHIVE_NOTED)


def find_packed(layout: Layout, partition: str) -> Packed | None:
    """The finished archive of a partition, or None if it has to be packed (again)."""
    try:
        packed = msgspec.json.decode(_path(layout, partition).read_bytes(), type=Packed)
        size = (layout.archives / packed.archive).stat().st_size
    except (FileNotFoundError, *UNREADABLE_JSON):
        return None
    return packed if size == packed.size_bytes else None


def forget_packed(layout: Layout, partition: str, archive: str) -> None:
    """Remove a stored archive and what is noted about it, durably. May be repeated."""
    _path(layout, partition).unlink(missing_ok=True)
    reached(CrashPoint.ARCHIVE_FORGOTTEN)
    if layout.archives.is_dir():
        remove_file(layout.archives / archive)
        reached(CrashPoint.ARCHIVE_REMOVED)


def _pack_built_in(
    slot: SealedSlot, entries: Sequence[IndexEntry], target: Path, pipeline: Pipeline
) -> ArchiveFile:
    with _members(slot, entries) as members:
        return write_archive(
            target, members, level=pipeline.compression_level, threads=pipeline.pack_threads
        )


def _sealed_entries(slot: SealedSlot, archive: Path) -> Sequence[IndexEntry]:
    """The slot's entries. Raises `DamagedSlot` if they are not what its seal says, or have no data.

    An archive of FUploader's that was taken over as it is has a slot without data.
    """
    data = slot.segment if slot.seal.slot_format == "segment" else slot.files
    if not data.exists() and archive.exists():
        raise PermanentError(
            f"{slot.directory} has no data, and its archive {archive} is not the one that was "
            f"noted beside it",
            hint="something changed the archive: put the one that was taken over in its place",
        )
    for path in (slot.directory / INDEX_NAME, data):
        if not path.exists():
            raise DamagedSlot(f"{path} is missing", hint="somebody removed it from a sealed slot")
    entries = slot.entries()
    sealed = (slot.seal.messages, slot.seal.payload_bytes)
    if (len(entries), sum(entry.size_bytes for entry in entries)) != sealed:
        raise DamagedSlot(f"the seal in {slot.directory} has other numbers than its index")
    if slot.seal.slot_format == "files":
        find_by_content(slot.files, entries)  # written under another locale, by a version of before
    return entries


def _members(slot: SealedSlot, entries: Sequence[IndexEntry]) -> MemberSource:
    if slot.seal.slot_format == "segment":
        offsets = [entry.offset for entry in entries]
        return SegmentMembers(slot.segment, entries, offsets, slot.seal.segment_xxh128)
    return FolderMembers(slot.files, entries)


def pack_custom(
    partition: str,
    lay_out: Callable[[Path], None],
    target: Path,
    packer: Callable[..., Any],
    pipeline: Pipeline,
) -> ArchiveFile:
    """Let a user's packer make the archive, of a folder that `lay_out` fills with real files."""
    with temporary_folder(pipeline.layout.archives / partition) as work:
        folder = work / partition
        with naming_disk_trouble(work):
            folder.mkdir()
            lay_out(folder)
            reached(CrashPoint.FILES_LAID_OUT)
        made = call_packer(packer, folder)
        if not made.name.endswith(pipeline.archive_suffix):
            raise StrategyError(
                f"the packer {name_of(packer)} wrote {made.name}, which does not end in "
                f"{pipeline.archive_suffix}",
                hint="set archive_suffix to the ending that the packer produces",
            )
        with naming_disk_trouble(work):  # the packer may have written to another file system
            made = Path(shutil.move(made.resolve(), work / f"made{pipeline.archive_suffix}"))
        fsync_file(made)
        size, digest = digest_of(made)
        if size == 0:
            raise StrategyError(f"the packer {name_of(packer)} wrote an empty file")
        reached(CrashPoint.ARCHIVE_MADE)
        replace_durably(made, target)
        reached(CrashPoint.ARCHIVE_NAMED)
    return ArchiveFile(target, size, digest.hex())


def _lay_out_files(slot: SealedSlot, entries: Sequence[IndexEntry], folder: Path) -> None:
    """Copies of all messages as files of their own, each compared with the index."""
    with _members(slot, entries) as members, RestoreFolder(folder) as target:
        for number, entry in enumerate(entries):
            target.write(entry.name, _payload(members, number, entry))


def _payload(members: MemberSource, number: int, entry: IndexEntry) -> Iterator[memoryview]:
    """A message in pieces. Raises `DamagedSlot` behind the last one if they are not what was
    committed."""
    start = header_bytes(entry.name, entry.size_bytes)
    digest = hashlib.sha256()
    for begin in range(start, start + entry.size_bytes, _PIECE_BYTES):
        end = min(begin + _PIECE_BYTES, start + entry.size_bytes)
        piece = members.read_piece(number, begin, end)
        digest.update(piece)
        yield memoryview(piece)
    if digest.digest() != entry.sha256:
        raise DamagedSlot(
            f"message {members.place(number)} is not what was committed",
            hint="the disk is failing, or something changed a sealed slot (dmesg, SMART)",
        )


def _path(layout: Layout, partition: str) -> Path:
    return layout.archives / f"{partition}{_SUFFIX}"
