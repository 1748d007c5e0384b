"""Mending: a damaged sealed slot is replaced by one with the messages that it still proves.

What must always hold: a sealed slot never changes. So what is proven (record and data agree) is
stored as another slot, with a partition key of its own, and the damaged directory is moved to
`set-aside/`, whole. No message of it ends up in two archives: the new slot is shipped only after
the damaged one was moved, and the damaged one is not packed once its replacement is noted. A slot
that another version of this software wrote is not damaged; it is left alone.

Each step is durable before the next one, and the next attempt recognises how far the last one got:

    sealed/slot-9998/.tmp-...-dir-000001/     the replacement, with index and seal
    mended/slot-0-dir-000017.json             what becomes of the damaged slot, and where
    sealed/slot-9998/dir-000001/              renamed in one step; its seal says what it `mends`
    set-aside/...-slot-0-dir-000017/          renamed in one step

If the process is killed before the third step, nothing has happened and the next attempt does all
of it again. If it is killed after the third step, the next attempt, at either slot, does the
fourth. Redelivered messages are compared with the replacement (`dedup_window`), because at each
moment one of the two is among the sealed slots.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from fuploader_dagster.delivery.failures import clear_failure
from fuploader_dagster.delivery.mended import (
    LISTED_NAMES,
    MENDED_SLOT,
    Mended,
    all_mended,
    mended_path,
    read_mended,
)
from fuploader_dagster.delivery.slot_members import append_member
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import fsync_file, make_dirs, rename_durably, write_durably
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.locks import FileLock, waited_for
from fuploader_dagster.disk.setting_aside import place_aside, set_aside
from fuploader_dagster.disk.temporaries import temporary_folder
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import DamagedSlot, OtherFormat
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.slots import index, sealing
from fuploader_dagster.slots.formats import Salvaged, salvage
from fuploader_dagster.slots.index import INDEX_NAME, IndexEntry
from fuploader_dagster.slots.message_values import Tally
from fuploader_dagster.slots.segment import SEGMENT_NAME

log = logging.getLogger(__name__)


def unreadable_slots(layout: Layout) -> list[Path]:
    """Sealed directories whose seal is gone or damaged, so that no partition asks for them."""
    found = []
    for directory in layout.sealed_dirs():
        try:
            sealing.read_seal(directory)
        except OtherFormat as error:
            log.error("%s was left alone: %s", directory, error)
        except DamagedSlot:
            if directory.is_dir():
                found.append(directory)
    return found


def mend(slot: int, number: int, error: DamagedSlot, pipeline: Intake) -> Mended:
    """Replace a damaged sealed directory. May be repeated. Raises `OtherFormat` as it came.

    The caller holds the partition's lock, if the partition is known.
    """
    if isinstance(error, OtherFormat):
        raise error
    layout = pipeline.layout
    directory = layout.sealed(slot, number)
    with _mending(layout), naming_disk_trouble(directory):
        record = read_mended(mended_path(layout, slot, number))
        if directory.exists() and not _is_replaced(record, layout):
            record = _replace(directory, error, pipeline)
        if record is None:
            raise error
        _finish(directory, record, layout)
    log.error("%s", record.sentence(layout))
    return record


def is_replaced(layout: Layout, slot: int, number: int) -> bool:
    """Whether a sealed directory has its replacement beside it, and only has to be moved."""
    return _is_replaced(read_mended(mended_path(layout, slot, number)), layout)


def finish_mending(replacement: sealing.SealedSlot, layout: Layout) -> None:
    """Move away the damaged slot that this one replaces. Before that it must not be shipped."""
    if replacement.seal.mends is None:
        return
    slot, number = replacement.seal.mends
    with _mending(layout):
        record = read_mended(mended_path(layout, slot, number))
        if record is not None and record.stored_as == replacement.seal.partition:
            _finish(layout.sealed(slot, number), record, layout)


def _mending(layout: Layout) -> AbstractContextManager[None]:
    """One slot is mended at a time."""
    return waited_for(FileLock(layout.slot_lock(MENDED_SLOT)))


def _is_replaced(record: Mended | None, layout: Layout) -> bool:
    return (
        record is not None
        and bool(record.stored_as)
        and layout.sealed(MENDED_SLOT, record.number).is_dir()
    )


def _replace(directory: Path, error: DamagedSlot, pipeline: Intake) -> Mended:
    """The first three steps."""
    layout = pipeline.layout
    number = _free_number(layout)
    target = layout.sealed(MENDED_SLOT, number)
    make_dirs(target.parent)
    make_dirs(layout.mended)
    old = _seal_of(directory)
    with temporary_folder(target) as work:
        names, seal = _write_proven(directory, work, number, pipeline, old)
        record = Mended(
            partition=old.partition if old else "",
            error=error.message,
            sealed_messages=old.messages if old else _indexed(directory),
            stored=len(names),
            stored_as=seal.partition if seal else "",
            number=number,
            lost=_names_lost(directory, names)[:LISTED_NAMES],
            set_aside=str(place_aside(directory, layout).relative_to(layout.root)),
        )
        slot, old_number = place_of(directory)
        write_durably(mended_path(layout, slot, old_number), msgspec.json.encode(record))
        reached(CrashPoint.MENDING_NOTED)
        if seal is not None:
            rename_durably(work, target)
            reached(CrashPoint.REPLACED)
    return record


def _write_proven(
    directory: Path, work: Path, number: int, pipeline: Intake, old: sealing.Seal | None
) -> tuple[Sequence[str], sealing.Seal | None]:
    """Segment, index and seal of what is proven; returns its names, and the seal if there are any.

    It is a segment whatever format the damaged slot had: the archive is the same. The values of
    `split_by` are those of the `old` seal; if nobody can read that, those that all messages share.
    """
    entries: dict[str, IndexEntry] = {}
    tally = Tally(pipeline)
    with (work / SEGMENT_NAME).open("wb") as segment:
        for name, content, headers in _proven(directory):
            if name not in entries:
                entries[name] = append_member(segment, name, len(content), [content], headers)
                if old is None:
                    tally.add(content)
    if not entries:
        return [], None
    fsync_file(work / SEGMENT_NAME)
    index_content = index.index_of(list(entries.values()))
    write_durably(work / INDEX_NAME, index_content)
    seal = sealing.make_seal(
        pipeline,
        slot=MENDED_SLOT,
        number=number,
        slot_format="segment",
        messages=len(entries),
        payload_bytes=sum(entry.size_bytes for entry in entries.values()),
        index_content=index_content,
        reason="mended",
        now=time.time(),
        mends=place_of(directory),
        split=tally.shared() if old is None else old.split,
    )
    write_durably(work / sealing.SEAL_NAME, sealing.encode_seal(seal))
    return list(entries), seal


def _proven(directory: Path) -> Iterator[Salvaged]:
    if (directory / INDEX_NAME).exists():
        yield from salvage(directory)


def _names_lost(directory: Path, proven: Collection[str]) -> list[str]:
    """Names in the index, as far as it can be read, that are not among the proven ones."""
    path = directory / INDEX_NAME
    if not path.exists():
        return []
    known = set(proven)
    return [e.name for e in index.salvage_records(path.read_bytes()) if e.name not in known]


def _indexed(directory: Path) -> int | None:
    try:
        return len(index.read_index((directory / INDEX_NAME).read_bytes()).entries)
    except (FileNotFoundError, DamagedSlot):
        return None


def _finish(directory: Path, record: Mended, layout: Layout) -> None:
    """The fourth step, if it is not done. What was processed of the slot goes with it, first."""
    processed = layout.processed(*place_of(directory))
    if processed.exists():
        set_aside(processed, layout, layout.root / f"{record.set_aside}-processed")
    if directory.exists():
        set_aside(directory, layout, layout.root / record.set_aside)
    if record.partition:
        clear_failure(layout, record.partition)


def _free_number(layout: Layout) -> int:
    """A directory number that was never used: each that was has a record."""
    used = [record.number for record in all_mended(layout)]
    used += [number for slot, number in layout.sealed_numbers() if slot == MENDED_SLOT]
    return max(used, default=0) + 1


def _seal_of(directory: Path) -> sealing.Seal | None:
    try:
        return sealing.read_seal(directory)
    except DamagedSlot:
        return None


def place_of(directory: Path) -> tuple[int, int]:
    """Slot and number of a sealed directory."""
    slot, number = (name.rpartition("-")[2] for name in directory.parts[-2:])
    return int(slot), int(number)
