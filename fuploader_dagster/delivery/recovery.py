"""Recovery: finds from the disk alone what dead processes and failed runs left, and finishes it.

What must always hold: looking changes nothing. The plan is a pure function of what was found and of
the time. Each of its steps may be repeated, and may be killed at any point. Only what provably no
process uses is touched, and nothing that is not recognised is ever removed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from fuploader_dagster.contracts.object_store import ObjectStore
from fuploader_dagster.delivery.failures import FAILURE_SUFFIX, Failure, all_failures, is_due
from fuploader_dagster.delivery.mended import all_mended, find_mended
from fuploader_dagster.delivery.owed_rows import OwedRows, due, look_at
from fuploader_dagster.delivery.processor_trouble import is_ready_for_rows
from fuploader_dagster.delivery.redo import remove_if_stored, stored_redos
from fuploader_dagster.delivery.sink_notes import SinkNotes, all_sinks, kept_for_sinks
from fuploader_dagster.delivery.upload import PartitionLock
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import make_dirs
from fuploader_dagster.disk.layout import REDO_MARK, Layout, PartitionKey
from fuploader_dagster.disk.own_files import file_mode
from fuploader_dagster.disk.temporaries import is_held, is_temporary, remove_unless_held
from fuploader_dagster.errors import (
    DiskFailed,
    ForeignFile,
    FuploaderError,
    OutdatedCopy,
    SlotInUse,
)
from fuploader_dagster.settings.archive_formats import without_suffix
from fuploader_dagster.settings.pipeline import Intake, Pipeline
from fuploader_dagster.slots.owned_slots import owned_for_a_while
from fuploader_dagster.slots.receipts import Receipt, find_receipts
from fuploader_dagster.slots.sealing import SealedSlot, sealed_partitions

log = logging.getLogger(__name__)

AUTOMATION_PATIENCE = 3
"""With `runs_by: automation` a new slot waits this many `recovery_base_seconds` for conditions and
backfills. Asking too early would do no harm, but cost a run."""
UNNEEDED_AFTER = timedelta(hours=1)
"""A younger unfinished upload may be in progress right now."""


@dataclass(frozen=True)
class Found:
    """What is on the disk."""

    sealed: Sequence[str] = ()
    """Partition keys of sealed directories, oldest first."""
    receipts: dict[str, Receipt] = field(default_factory=dict)
    """Those of them that the store has confirmed already."""
    failures: dict[str, Failure] = field(default_factory=dict)
    leftovers: Sequence[Path] = ()
    """Temporary files and folders, locks and notes of dead processes, and what was processed of
    slots that are gone."""
    mended: Sequence[str] = ()
    """Partitions whose slots were damaged and replaced, which no run has reported yet."""
    redone: Sequence[str] = ()
    """Partitions that were processed again and stored; their folder below `redo/` is left."""
    kept: Collection[str] = frozenset()
    """Stored ones whose local data waits for a required sink."""
    rows: Mapping[str, OwedRows] = field(default_factory=dict)
    """By sink."""


@dataclass(frozen=True)
class Plan:
    """What to do about it."""

    finish: Sequence[str] = ()
    """Stored, but the local data was not removed."""
    ask: Sequence[str] = ()
    """To be packed and uploaded."""
    remove: Sequence[Path] = ()
    finish_redo: Sequence[str] = ()
    """Stored after they were processed again, but the folder of the redo was not removed."""
    rows: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By sink, partitions whose rows are to be stored by runs of just that sink."""
    settle: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By sink, partitions whose rows are stored, but the notes about them were not removed."""


def look(pipeline: Pipeline) -> Found:
    """Read what is there; changes nothing."""
    layout = pipeline.layout
    sealed = sealed_partitions(layout)
    receipts = find_receipts(layout, sealed)
    failures = {failure.partition: failure for failure in all_failures(layout)}
    mended = [one.partition for one in all_mended(layout) if one.partition and not one.told]
    gone = tuple(key for key in mended if find_mended(layout, key))
    leftovers = _leftovers(pipeline)
    kept = kept_for_sinks(pipeline, receipts)
    ready = [key for key in sealed if key not in receipts and is_ready_for_rows(key, pipeline)]
    rows = {
        notes.sink: look_at(notes, kept if pipeline.sinks[notes.sink].required else (), ready)
        for notes in all_sinks(pipeline)
    }
    redone = stored_redos(layout)
    return Found(sealed, receipts, failures, leftovers, gone, redone, kept, rows)


def plan(
    found: Found,
    pipeline: Pipeline,
    *,
    busy: Collection[str],
    busy_rows: Mapping[str, Collection[str]] | None = None,
    ships: bool = True,
    now: float,
) -> Plan:
    """Decide. `busy` are partitions that a run is about to ship, `busy_rows` those, by sink, whose
    rows a run is about to store. Unless it `ships`, nobody will be asked to ship anything now."""
    ask = [
        key
        for key in found.sealed
        if key not in found.receipts and key not in busy and _due(key, found, pipeline, now)
    ]
    ask += [key for key in found.mended if key not in busy]
    rows = {}
    for sink, owed in found.rows.items():
        others = set((busy_rows or {}).get(sink, ()))
        if ships:
            rows[sink] = due(owed, pipeline, busy=others.union(ask), now=now)
        else:
            alone = owed.while_nothing_ships(found.sealed, ask)
            rows[sink] = due(alone, pipeline, busy=others, now=now)
    return Plan(
        [key for key in found.receipts if key not in found.kept],
        ask,
        found.leftovers,
        found.redone,
        rows,
        {sink: owed.settled for sink, owed in found.rows.items()},
    )


def _due(key: str, found: Found, pipeline: Pipeline, now: float) -> bool:
    failure = found.failures.get(key)
    if failure is not None:
        return is_due(failure.attempts, failure.failed_at, pipeline, now)
    partition = PartitionKey.parse(key)
    if partition is None:
        return False
    patience = pipeline.recovery_base_seconds
    if pipeline.runs_by == "automation":  # Dagster's own daemons come round every 30 s
        patience *= AUTOMATION_PATIENCE
    sealed_at = partition.sealed_at.timestamp()
    return now - sealed_at >= patience or sealed_at > now  # the clock was set back: it has waited


def apply(plan: Plan, pipeline: Pipeline) -> None:
    """Do what needs no run: finish removals, remove leftovers."""
    for partition in plan.finish:
        with PartitionLock(pipeline, partition):
            reached(CrashPoint.REMOVAL_FINISHED)
            log.info("removed the local data of %s, which the store has", partition)
    for partition in plan.finish_redo:
        with PartitionLock(pipeline, partition) as receipt:
            if receipt is not None and remove_if_stored(pipeline.layout, receipt):
                log.info("removed the local data of the redo of %s, which is stored", partition)
    for sink, partitions in plan.settle.items():
        for partition in partitions:
            SinkNotes(pipeline.layout, sink).settle(partition)
    for path in plan.remove:
        if remove_unless_held(path):
            reached(CrashPoint.LEFTOVER_REMOVED)
            log.info("removed %s, left by a dead process", path)


def abort_unneeded_uploads(pipeline: Pipeline, store: ObjectStore, now: datetime) -> int:
    """Abort unfinished uploads of archives that the store has; returns how many.

    A bucket may hold other programs' uploads. An upload is provably ours and not needed if its key
    ends in the name of an archive that has a receipt here; all others are left alone. That of a
    redo is needed as long as there is a folder of its partition below `redo/`.
    """
    aborted = 0
    for upload in store.unfinished():
        name = upload.key.rpartition("/")[2]
        stem = without_suffix(name, pipeline.archive_suffix)
        partition, mark, _ = stem.partition(REDO_MARK)
        needed = bool(mark) and partition in pipeline.layout.redos()
        old = now - upload.begun_at > UNNEEDED_AFTER
        if old and not needed and find_receipts(pipeline.layout, [partition]):
            store.abort(upload)
            reached(CrashPoint.UPLOAD_ABORTED)
            log.info("aborted the unfinished upload of %s, which is stored", upload.key)
            aborted += 1
    return aborted


def seal_abandoned(pipeline: Intake) -> list[SealedSlot]:
    """Seal the slots that no worker owns any more, because there were more workers once."""
    owned = pipeline.process_count * pipeline.slots_per_worker
    return seal_unowned(pipeline, [n for n in pipeline.layout.active_slots() if n >= owned])


def seal_on_request(pipeline: Intake) -> list[SealedSlot]:
    """Have all active slots sealed: live workers see the request, the other slots are sealed here.

    Returns those that were sealed here. Only workers that had their slots before the request obey
    it, so it is made after the other slots were sealed.
    """
    make_dirs(pipeline.layout.root)
    sealed = seal_unowned(pipeline, pipeline.layout.active_slots())
    pipeline.layout.seal_request.touch(file_mode(pipeline.layout.root))
    return sealed


def seal_unowned(pipeline: Intake, slots: Sequence[int]) -> list[SealedSlot]:
    """Seal the slots that no live process writes, here or with another copy of the storage root;
    those of live processes are left alone.

    Trouble with one slot is raised after the others were sealed. If there are any slots, raises
    `StateUnavailable` or `StateRefused` without the state store: who else has them is not known.
    """
    sealed: list[SealedSlot] = []
    if not slots:
        return sealed
    wrong: list[FuploaderError] = []
    with pipeline.state.opened(pipeline=pipeline.name, node=pipeline.node) as state:
        for number in slots:
            try:
                with owned_for_a_while(pipeline, number, state) as slot:
                    sealed += slot.found_sealed
                    sealed += slot.seal_divided("adopted")
            except SlotInUse as error:
                log.debug("left alone: %s", error)
            except (DiskFailed, ForeignFile, OutdatedCopy) as error:
                wrong.append(error)
    if wrong:
        raise wrong[0]
    return sealed


def _leftovers(pipeline: Intake) -> list[Path]:
    """What has one of our names, no live process holds, and no process will come back to."""
    layout = pipeline.layout
    folders = [layout.archives, layout.receipts, layout.mended, layout.workers]
    folders += [layout.root, layout.epochs, layout.redo, *_in(layout.sinks), *_in(layout.notices)]
    for name in ("sealed", "active", "processed"):
        folders += layout.root.glob(f"{name}/slot-*")
    found = [path for folder in folders for path in _in(folder) if is_temporary(path.name)]
    for folder in (layout.workers, *_in(layout.sinks)):
        found += [path for path in _in(folder) if path.suffix == ".lock"]
    found += [path for path in _in(layout.locks) if _is_over(path, ".lock", layout)]
    found += [path for path in _in(layout.archives) if _is_over(path, FAILURE_SUFFIX, layout)]
    found += [
        layout.processed(*place)
        for place in layout.processed_numbers()
        if not layout.sealed(*place).exists()
    ]
    found = [path for path in found if not path.is_symlink() and (path.is_file() or path.is_dir())]
    return [path for path in found if not is_held(path)]


def _in(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _is_over(path: Path, ending: str, layout: Layout) -> bool:
    """Whether this belongs to a partition whose slot is no longer here."""
    key = PartitionKey.parse(path.name.removesuffix(ending)) if path.name.endswith(ending) else None
    return key is not None and not layout.sealed(key.slot, key.number).exists()
