"""Packing: a sealed slot, with what came out of its processing, becomes one archive.

What must always hold: packing the same slot twice gives the same bytes (with the built-in formats).
An archive counts only after it was read back and its `.packed.json` is beside it. Nothing in the
slot changes; a custom packer works on a copy with real files and can spoil nothing. What goes into
an archive: `archive_members`.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fuploader_dagster.archives.forms import Columns
from fuploader_dagster.archives.members import MemberSource, MemberToPack
from fuploader_dagster.archives.restore_folder import RestoreFolder
from fuploader_dagster.archives.writer import write_archive
from fuploader_dagster.contracts.functions import name_of
from fuploader_dagster.contracts.object_store import ArchiveFile
from fuploader_dagster.delivery.archive_members import ArchiveMembers, members_of
from fuploader_dagster.disk import durable
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.file_digest import digest_of
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.tar_headers import header_bytes
from fuploader_dagster.disk.temporaries import temporary_folder
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import UNREADABLE_JSON, StrategyError
from fuploader_dagster.settings.archive_formats import format_of
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.user_functions import call_packer
from fuploader_dagster.slots.receipts import Content
from fuploader_dagster.slots.sealing import SealedSlot

_SUFFIX = ".packed.json"
_PIECE_BYTES = 2**22


class Packed(Content, frozen=True, kw_only=True):
    """A finished archive that waits for its upload."""

    partition: str
    archive: str
    size_bytes: int
    sha256: str

    def file(self, layout: Layout) -> ArchiveFile:
        """The archive as an object store takes it."""
        metadata = {
            "fuploader-partition": self.partition,
            "fuploader-messages": str(self.messages),
        }
        return ArchiveFile(layout.archives / self.archive, self.size_bytes, self.sha256, metadata)


def pack(slot: SealedSlot, pipeline: Pipeline, layout: Layout | None = None) -> Packed:
    """Pack the slot, unless that was done already. The caller holds the partition's lock.

    `layout`: where the archive goes, if not to the pipeline's. Raises `DamagedSlot` if the slot
    contradicts its index or its seal, `DamagedResults` if what was processed does, `StrategyError`
    if a custom packer misbehaves, or `DiskFull`; the slot is untouched in each case.
    """
    layout = layout or pipeline.layout
    done = find_packed(layout, slot.seal.partition)
    if done is not None:
        return done
    with members_of(slot, pipeline, layout) as members:
        return pack_members(slot.seal.partition, slot.seal.archive, members, pipeline, layout)


def pack_members(
    partition: str, archive: str, members: ArchiveMembers, pipeline: Pipeline, layout: Layout
) -> Packed:
    """Make the archive of these members and note it durably. Raises as `pack` does."""
    durable.make_dirs(layout.archives)
    target = layout.archives / archive
    if pipeline.packer is None:
        written = write_archive(
            target,
            *members.sources,
            form=format_of(archive),
            level=pipeline.compression_level,
            threads=pipeline.pack_threads,
            metadata=members.metadata,
            failures=members.failures,
            columns=Columns(pipeline.parquet_columns, pipeline.parquet_content),
        )
    else:
        written = _pack_custom(partition, members, target, pipeline.packer, pipeline)
    sizes = [member.size_bytes for source in members.sources for member in source.members]
    packed = Packed(
        partition=partition,
        archive=archive,
        size_bytes=written.size_bytes,
        sha256=written.sha256,
        messages=members.messages,
        payload_bytes=sum(sizes),
        results=len(members.results.members) if members.results is not None else 0,
        originals=members.originals is not None,
        processing=members.processing,
    )
    keep_packed(layout, packed)
    return packed


def keep_packed(layout: Layout, packed: Packed) -> None:
    """Note durably that the archive is finished."""
    durable.write_durably(_path(layout, packed.partition), msgspec.json.encode(packed))
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
    """Remove the local copy of a stored archive and its note, durably. May be repeated."""
    _path(layout, partition).unlink(missing_ok=True)
    reached(CrashPoint.ARCHIVE_FORGOTTEN)
    if layout.archives.is_dir():
        durable.remove_file(layout.archives / archive)
        reached(CrashPoint.ARCHIVE_REMOVED)


def _pack_custom(
    partition: str,
    members: ArchiveMembers,
    target: Path,
    packer: Callable[..., Any],
    pipeline: Pipeline,
) -> ArchiveFile:
    """Let a user's packer make the archive, of a folder with the members as real files."""
    with temporary_folder(target.parent / partition) as work:
        folder = work / partition
        with naming_disk_trouble(work):
            folder.mkdir()
            _lay_out_files(members.sources, folder)
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
        durable.fsync_file(made)
        size, digest = digest_of(made)
        if size == 0:
            raise StrategyError(f"the packer {name_of(packer)} wrote an empty file")
        reached(CrashPoint.ARCHIVE_MADE)
        durable.replace_durably(made, target)
        reached(CrashPoint.ARCHIVE_NAMED)
    return ArchiveFile(target, size, digest.hex())


def _lay_out_files(sources: Sequence[MemberSource], folder: Path) -> None:
    """Copies of all members as files of their own, each compared with its digest."""
    with RestoreFolder(folder) as target:
        for members in sources:
            for number, member in enumerate(members.members):
                target.write(member.name, _payload(members, number, member))


def _payload(members: MemberSource, number: int, member: MemberToPack) -> Iterator[memoryview]:
    """A member in pieces. Raises its source's `damage` after the last one if they are not what was
    committed."""
    start = header_bytes(member.name, member.size_bytes, member.headers)
    digest = hashlib.sha256()
    for begin in range(start, start + member.size_bytes, _PIECE_BYTES):
        end = min(begin + _PIECE_BYTES, start + member.size_bytes)
        piece = members.read_piece(number, begin, end)
        digest.update(piece)
        yield memoryview(piece)
    if digest.digest() != member.sha256:
        raise members.damage(
            f"member {members.place(number)} is not what was committed",
            hint="the disk is failing, or something changed the sealed slot (dmesg, SMART)",
        )


def _path(layout: Layout, partition: str) -> Path:
    return layout.archives / f"{partition}{_SUFFIX}"
