"""Crash points: a name for every point at which a process can die and leave something new.

What must always hold: if a process is killed right after any of these points, the next start, the
recovery and the next runs bring everything to where it would be without the kill. Tests kill a
process at each point, and compare every byte.

`reached(point)` reports that a point is passed. It does nothing, at the cost of a function call,
unless code in this very process set an observer: no setting, file or variable can do that. There
is one call per batch, file or archive, never per message.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum


class CrashPoint(Enum):
    """Roughly in the order of a message's way, each with what has just been made durable."""

    # Files, wherever they are: `disk/durable.py`
    DIRECTORY_MADE = "a missing directory made, not synced"
    TEMPORARY_WRITTEN = "a file written and synced under its temporary name"
    FILE_NAMED = "a file given its final name, the directory not synced"
    APPENDED = "lines appended to a file, not synced"
    MOVED = "a file or directory moved, the directories not synced"
    TREE_DOOMED = "a directory to remove given a temporary name, not yet removed"

    # A worker starts
    SLOTS_CLAIMED = "slots claimed in the state store"
    SEALED_FOUND = "sealed slots found on disk added to the state store"

    # A batch: `intake/drain.py`, `slots/segment.py`, `dead_letters/letters.py`
    NUMBER_TAKEN = "a directory number noted as used"
    DIRECTORY_OPENED = "an active directory made, with empty files"
    DATA_WRITTEN = "payloads written to an active directory, not synced"
    DATA_SYNCED = "payloads synced, not yet in the index"
    INDEX_WRITTEN = "index records written, not synced"
    INDEX_SYNCED = "index records synced: the batch is committed in this slot"
    DEAD_LETTERS_KEPT = "dead letters durable, their messages still in the queue"
    REJECTED = "dead letters rejected at the broker, the rest of the batch not acknowledged"
    SETTLED = "a batch acknowledged, not recorded in the state store"
    RECORDED = "counts of a batch recorded in the state store"

    # A seal: `slots/sealing.py`, `slots/slot.py`, `slots/dividing.py`, `intake/drain.py`
    SEAL_WRITTEN = "seal.json durable in the active directory"
    SEALED = "the directory moved to the sealed ones, its partition key not yet in the state store"
    PARTITION_PUSHED = "the partition key in the state store"
    PIECES_SYNCED = "the pieces of a directory that is divided synced, not under their names"
    PIECE_NAMED = "a piece among the sealed slots, its directory still active"
    DIVIDED = "a divided directory removed, its pieces' partition keys not in the state store"
    SLOTS_RELEASED = "claims released by a worker that exits"

    # A processed slot: `slots/processed.py`, `delivery/process.py`
    PROCESSING_BEGUN = "what is processed by what noted, no result yet"
    OUTCOMES_KEPT = "what became of some inputs noted, their results not yet written"
    OUTCOMES_CUT = "lines of an interrupted commit cut off"
    ITEM_FOLDERS_REMOVED = "the folders of committed items removed"
    PROCESSED = "a processed slot sealed"

    # An archive: `archives/writer.py`, `delivery/pack.py`
    FILES_LAID_OUT = "real files laid out for a custom packer"
    ARCHIVE_MADE = "an archive made by a custom packer, in its own place"
    ARCHIVE_PARTLY_WRITTEN = "a frame of an archive written under its temporary name"
    ARCHIVE_SYNCED = "an archive synced under its temporary name"
    ARCHIVE_VERIFIED = "an archive read back, still under its temporary name"
    ARCHIVE_NAMED = "an archive under its own name, not noted"
    ARCHIVE_NOTED = "an archive finished and noted"
    FAILURE_NOTED = "a failure counted"

    # An upload: `delivery/upload.py`, `slots/receipts.py`, the object stores
    OBJECT_KEY_KEPT = "an object key, missing in the seal, stored beside it"
    UPLOAD_BEGUN = "an upload in parts begun, without a part"
    PART_STORED = "a part of a large archive confirmed by the object store"
    OBJECT_WRITTEN = "an object written and synced in a folder, not under its key"
    OBJECT_STORED = "an object stored and verified, without a receipt"
    CATALOGED = "an archive in the catalog, without a receipt"
    RECEIPT_KEPT = "a receipt durable, all local data still there"
    FAILURE_CLEARED = "the count of failures removed, the local data still there"
    ARCHIVE_FORGOTTEN = "an archive's note removed, the archive and its slot still there"
    ARCHIVE_REMOVED = "an archive removed, its slot still there"
    PROCESSED_REMOVED = "what was processed of a stored slot removed, the slot still there"
    INDEX_KEPT = "a stored slot's index kept for the dedup window, the slot still there"
    SLOT_REMOVED = "a stored slot removed"

    # Rows of a slot: `delivery/rows.py`, `delivery/sink_notes.py`
    OWED_NOTED = "a slot's rows noted as owed to a sink, the slot still there"
    ROWS_STORED = "rows stored by a sink, without a receipt"
    ROWS_RECEIPT_KEPT = "a receipt of rows durable, what was noted about them still there"
    OWED_CLEARED = "the note that rows are owed removed"
    LETTER_STORED = "the rows of a dead letter stored, the letter not noted as sent back"

    # Notices of a task: `delivery/notices.py`, `delivery/notice_files.py`
    TASK_ENDED = "what is to be told of a task's end durable, the slot still there"
    NOTICE_SENT = "notices sent, not noted as told"
    NOTICE_NOTED = "notices noted as told"
    NOTICES_CLOSED = "nothing left to be told of a task, how much was told still noted"

    # A stored partition that is processed again: `delivery/redo.py`
    REDO_BEGUN = "the messages of a stored archive fetched, to be processed again"
    REDO_REMOVED = "what a redo needed on this disk removed"

    # A damaged sealed slot: `delivery/mend.py`
    MENDING_NOTED = "what becomes of a damaged slot noted, its replacement not under its name"
    REPLACED = "what a damaged slot proves stored as another slot, the damaged one still there"

    # What dead processes left: `slots/slot.py`, `slots/segment.py`, `delivery/recovery.py`
    TAIL_CUT = "everything after the last commit cut off"
    SET_ASIDE = "something not recognised moved to set-aside/"
    PIECE_REMOVED = "a piece removed, because its directory is still active"
    SEAL_FINISHED = "an interrupted seal finished"
    ADOPTED = "a directory without an owner sealed"
    REMOVAL_FINISHED = "an interrupted removal of stored data finished"
    LEFTOVER_REMOVED = "a temporary file of a dead process removed"
    UPLOAD_ABORTED = "an unfinished upload that nobody needs aborted"


Observer = Callable[[CrashPoint], object]

_observer: Observer | None = None


def reached(point: CrashPoint) -> None:
    """Report that this point is passed."""
    if _observer is not None:
        _observer(point)


def observe(observer: Observer | None) -> None:
    """From now on, call `observer` for each point that this process passes; None: call nobody."""
    global _observer  # noqa: PLW0603 - one process, one observer
    _observer = observer
