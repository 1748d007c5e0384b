"""Dividing: a full directory becomes several sealed slots, one for each value of `split_by`, or
one for each message (`seal_each`).

What must always hold:

- The pieces hold the messages of the directory, each once and byte for byte, in their order.
- It is one step: as long as the directory is among the active ones, its pieces do not exist for
  anybody else (`sealing.is_whole`). They do as soon as it has gone, and then they are durable.
- After a crash before that, the next owner of the slot removes the pieces and goes on with the
  directory, as if nothing had happened. Their numbers are not used again.

A piece is a sealed slot like any other: a directory, a partition, an archive. Its seal has the
values and says of which directory it is a piece.

    sealed/slot-0/.tmp-...-dir-000017/dir-000018/     each piece, with index and seal: then synced
    sealed/slot-0/dir-000018/                         renamed, one after the other
    active/slot-0/dir-000017/                         removed, by one rename

A directory of one value, or of one message, is sealed as it is. However many pieces there are, the
number of syncs is the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xxhash import xxh3_128

from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import fsync_dir, make_dirs, remove_tree, syncfs, write_all
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.own_files import (
    closed_after,
    folder_mode,
    open_own_folder,
    opened_own,
    read_own,
)
from fuploader_dagster.disk.tar_headers import member_header, padding
from fuploader_dagster.disk.temporaries import temporary_folder
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import DamagedSlot
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.slots.formats import contents_in
from fuploader_dagster.slots.index import INDEX_NAME, IndexEntry, index_of, read_index
from fuploader_dagster.slots.message_values import Piece, Tally
from fuploader_dagster.slots.plain_files import FILES_NAME
from fuploader_dagster.slots.seal_log import Noted, note_sealed
from fuploader_dagster.slots.sealing import (
    SEAL_NAME,
    Reason,
    Seal,
    SealedSlot,
    encode_seal,
    make_seal,
    read_seal,
)
from fuploader_dagster.slots.segment import SEGMENT_NAME

log = logging.getLogger(__name__)

SlotFormat = Literal["segment", "files"]
_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Full:
    """A committed directory that is to be sealed, and how its messages are divided."""

    directory: Path
    slot_format: SlotFormat
    entries: Sequence[IndexEntry]
    pieces: Sequence[Piece]

    @classmethod
    def read(cls, directory: Path, slot_format: SlotFormat, pipeline: Intake) -> Full:
        """Read what is there; changes nothing."""
        with naming_disk_trouble(directory):
            entries = read_index(read_own(directory / INDEX_NAME)).entries
            each = pipeline.seal_each == "message"
            tally = Tally(pipeline, each=each)
            if each and not pipeline.split_by:
                alone = [Piece({}, [at]) for at in range(len(entries))]
                return cls(directory, slot_format, entries, alone)
            if slot_format == "files":
                for entry in entries:
                    with opened_own(directory / FILES_NAME / entry.name, os.O_RDONLY) as file:
                        tally.add(os.pread(file, entry.size_bytes, 0))
            else:
                with opened_own(directory / SEGMENT_NAME, os.O_RDONLY) as file:
                    for entry in entries:
                        start = entry.offset + entry.header_bytes
                        tally.add(os.pread(file, entry.size_bytes, start))
        return cls(directory, slot_format, entries, tally.pieces())


def divide(
    full: Full, numbers: Sequence[int], pipeline: Intake, *, reason: Reason, now: float
) -> list[SealedSlot]:
    """Replace an active directory that is closed by its pieces, sealed under these numbers.

    Raises `DamagedSlot` if a message is not what was committed; the directory is untouched then.
    """
    slot, _ = place_of(full.directory)
    targets = [pipeline.layout.sealed(slot, number) for number in numbers]
    folder = targets[0].parent
    with naming_disk_trouble(full.directory):
        make_dirs(folder)
        with temporary_folder(folder / full.directory.name) as work:
            sealed = []
            for piece, target in zip(full.pieces, targets, strict=True):
                made = work / target.name
                made.mkdir(folder_mode(work))
                seal = _write_piece(made, full, piece, pipeline, reason=reason, now=now)
                sealed.append(SealedSlot(target, seal))
            _sync(work)
            reached(CrashPoint.PIECES_SYNCED)
            for target in targets:
                (work / target.name).rename(target)
                reached(CrashPoint.PIECE_NAMED)
            fsync_dir(folder)
        remove_tree(full.directory)
    note_sealed(pipeline.layout, (Noted(one.seal.partition, one.seal.messages) for one in sealed))
    reached(CrashPoint.DIVIDED)
    log.info("divided %s into %d slots, %s", full.directory, len(sealed), reason)
    return sealed


def _write_piece(
    made: Path, full: Full, piece: Piece, pipeline: Intake, *, reason: Reason, now: float
) -> Seal:
    """Data, index and seal of one piece, not synced."""
    slot, piece_of = place_of(full.directory)
    entries = [full.entries[at] for at in piece.positions]
    digest = None
    if full.slot_format == "files":
        _write_files(made, full.directory, entries)
    else:
        entries, digest = _write_segment(made, full.directory, entries)
    index = index_of(entries)
    seal = make_seal(
        pipeline,
        slot=slot,
        number=number_of(made),
        slot_format=full.slot_format,
        messages=len(entries),
        payload_bytes=sum(entry.size_bytes for entry in entries),
        index_content=index,
        segment_xxh128=digest,
        reason=reason,
        now=now,
        split=piece.split,
        piece_of=piece_of,
    )
    _write(made / INDEX_NAME, index)
    _write(made / SEAL_NAME, encode_seal(seal))
    return seal


def undo_divisions(layout: Layout, slot: int) -> None:
    """Remove the pieces of directories that are still among the active ones. The caller owns the
    slot."""
    active = layout.active_numbers(slot)
    later = [n for at, n in layout.sealed_numbers() if at == slot and active and n > active[0]]
    for number in later:  # pieces have higher numbers; usually no sealed directory has
        directory = layout.sealed(slot, number)
        try:
            seal = read_seal(directory)
        except DamagedSlot:
            continue
        if seal.piece_of in active:
            remove_tree(directory)
            reached(CrashPoint.PIECE_REMOVED)
            log.info("removed %s: dividing %s did not end", directory, seal.piece_of)


def place_of(directory: Path) -> tuple[int, int]:
    """Slot and number of a directory."""
    return number_of(directory.parent), number_of(directory)


def number_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _write_segment(
    made: Path, directory: Path, entries: Sequence[IndexEntry]
) -> tuple[list[IndexEntry], str]:
    """Write the segment of a piece; returns its index entries, and its XXH3-128."""
    index: list[IndexEntry] = []
    digest, end = xxh3_128(), 0
    pieces: list[bytes] = []
    block_bytes = 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with opened_own(made / SEGMENT_NAME, flags) as file:
        for entry, content in zip(entries, contents_in(directory, "segment", entries), strict=True):
            index.append(entry._replace(offset=end))
            head = member_header(entry.name, entry.size_bytes, entry.headers)
            pieces += (head, content, padding(entry.size_bytes))
            member_bytes = sum(map(len, pieces[-3:]))
            end += member_bytes
            block_bytes += member_bytes
            if block_bytes >= _BLOCK_BYTES or len(index) == len(entries):
                block = b"".join(pieces)
                digest.update(block)
                write_all(file, block)
                pieces, block_bytes = [], 0
    return index, digest.hexdigest()


def _write_files(made: Path, directory: Path, entries: Sequence[IndexEntry]) -> None:
    """Give the piece the files of the directory: by a link, where the file system has them."""
    folder, there = made / FILES_NAME, directory / FILES_NAME
    folder.mkdir(folder_mode(made))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    for entry in entries:
        try:
            os.link(there / entry.name, folder / entry.name)
        except OSError:
            (content,) = contents_in(directory, "files", [entry])
            with closed_after(os.open(folder / entry.name, flags, 0o644)) as file:
                write_all(file, content)


def _write(path: Path, content: bytes) -> None:
    with opened_own(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
        write_all(file, content)


def _sync(folder: Path) -> None:
    """Sync all pieces at once: hundreds of files, one commit of the file system's journal."""
    with closed_after(open_own_folder(folder)) as descriptor:
        syncfs(descriptor)
