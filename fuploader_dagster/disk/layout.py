"""Names on disk: folders of a pipeline, directory numbers, partition keys.

    {storage_root}/{pipeline}/
      root-id                        identity of this folder, for claims in the state store
      epochs/slot-0                  how often the slot was taken over, as this copy of it knows
      active/slot-0/dir-000001/      one writer, growing
      active/slot-0/next-number      highest directory number handed out
      active/slot-0/positions        how far the queue's messages are stored, if it numbers them
      sealed/slot-0/dir-000001/      the same directory, renamed in one step
      processed/slot-0/dir-000001/   what came out of its items, where a pipeline has a processor
      redo/{partition}/              a stored archive that is processed again, in the same folders
      sinks/{name}/                  of each sink: which rows it has, which it is owed, what failed
      notices/{key}/                 of each notifier: which tasks it is still to be told of
      archives/                      packed, not yet confirmed by the store; failures beside them
      receipts/                      what the object store has confirmed, one line per archive
      seal-log/                      which slots were sealed, until they are accounted for
      shipped/                       indexes of recent slots that are in the object store
      catalog.sqlite                 which archive holds which file
      catalog-missed/                what could not be added to it yet
      dead-letters/                  messages that could not become files
      adopting/, taken-over.jsonl    what FUploader left: being adopted, and what became of it
      mended/                        what became of damaged sealed slots
      set-aside/                     what was damaged or not recognised; never deleted
      store-trouble.json             since when the object store has not answered
      store-refusal.json             since when it has answered, and refused us
      accepted.sqlite                ids of messages that came over HTTP, to know them again
      published                      ids of messages that went from HTTP into the queue
      pause.json                     whether people want intake and shipping to be paused
      seal-request                   touched to have all active slots sealed now
      processor-trouble.json         since when the processor works for no item
      processor-answered             touched when it works for one
      suspects/                      messages whose decoding may have ended a worker
      alerts.json                    the alerts that were sent
      figures.json                   sums over receipts and dead letters, to read them only once
      workers/                       what each worker is doing, for ticks and `fuploader status`
      locks/                         lock files, which the kernel locks for live processes only

A partition key reads `20261120T234501123Z-node1-s0-000017`: sealing time in UTC with
milliseconds, node, slot, number. It stays unique even if disk and state store were wiped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

NO_NODE = "local"
"""Used in partition keys if no node id is set."""

REDO_MARK = ".redo-"
"""In the names of archives whose messages were processed again: partition, mark, UTC time."""

MAX_NUMBER_DIGITS = 15
"""A directory name with more digits is not ours, and no state store takes it."""

_PARTITION_KEY = re.compile(
    r"(?P<time>[0-9]{8}T[0-9]{9}Z)-(?P<node>[A-Za-z0-9_.-]+)"
    r"-s(?P<slot>[0-9]{1,9})-(?P<number>[0-9]{6,15})"
)
_NUMBERED_DIR = re.compile(r"dir-([0-9]{6,15})")
_SLOT_DIR = re.compile(r"slot-([0-9]{1,9})")


@dataclass(frozen=True)
class PartitionKey:
    """What a partition key says."""

    sealed_at: datetime
    node: str
    slot: int
    number: int

    def __str__(self) -> str:
        milliseconds = self.sealed_at.microsecond // 1000
        return (
            f"{self.sealed_at:%Y%m%dT%H%M%S}{milliseconds:03d}Z"
            f"-{self.node}-s{self.slot}-{self.number:06d}"
        )

    @classmethod
    def parse(cls, text: str) -> PartitionKey | None:
        """The partition key that the text is, or None if it is not one of ours."""
        match = _PARTITION_KEY.fullmatch(text)
        if match is None:
            return None
        try:
            moment = datetime.strptime(match["time"] + "000+0000", "%Y%m%dT%H%M%S%fZ000%z")
            key = cls(moment, match["node"], int(match["slot"]), int(match["number"]))
        except ValueError:  # no such date, or thousands of digits
            return None
        return key if str(key) == text else None  # strptime reads minute 61 as 6 and a rest


def utc(seconds: float) -> datetime:
    """A moment of `time.time()` as an aware datetime, cut to milliseconds.

    Cut from the microseconds, not from the float: 129.034 s times 1000 is 129033.9999....
    """
    moment = datetime.fromtimestamp(seconds, tz=timezone.utc)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


class _Below:
    """A file or folder below the pipeline's root, by its path from there."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __get__(self, layout: Layout, _: type[Layout]) -> Path:
        return layout.root / self._path


@dataclass(frozen=True)
class Layout:
    """The folders of one pipeline. Computes names; reads only listings, and creates nothing."""

    root: Path
    """`{storage_root}/{pipeline}`."""

    archives = _Below("archives")
    receipts = _Below("receipts")
    seal_log = _Below("seal-log")
    shipped = _Below("shipped")
    catalog = _Below("catalog.sqlite")
    catalog_missed = _Below("catalog-missed")
    dead_letters = _Below("dead-letters")
    mended = _Below("mended")
    set_aside = _Below("set-aside")
    suspects = _Below("suspects")
    workers = _Below("workers")
    alerts = _Below("alerts.json")
    figures = _Below("figures.json")
    root_id = _Below("root-id")
    epochs = _Below("epochs")
    seal_request = _Below("seal-request")
    """Touched to ask for all active slots to be sealed now."""
    accepted = _Below("accepted.sqlite")
    published = _Below("published")
    pause = _Below("pause.json")
    store_trouble = _Below("store-trouble.json")
    store_refusal = _Below("store-refusal.json")
    processor_trouble = _Below("processor-trouble.json")
    processor_answered = _Below("processor-answered")
    redo = _Below("redo")
    """Has a folder for each stored partition that is being processed again."""
    sinks = _Below("sinks")
    notices = _Below("notices")
    locks = _Below("locks")
    pause_lock = _Below("locks/pause.lock")
    """Held while `pause.json` is written."""
    dev_lock = _Below("locks/dev.lock")
    """Held by `fuploader dev` as long as it runs."""
    suspects_lock = _Below("locks/suspects.lock")
    store_wait_lock = _Below("locks/store-wait.lock")
    """Held by the one process that waits for an object store that does not answer."""
    look_lock = _Below("locks/commits-that-look.lock")
    """Held by a worker during a commit that looks for copies of redelivered messages."""
    redeliveries = _Below("locks/redeliveries")
    """A counter, raised whenever a worker receives redelivered messages."""

    def epoch(self, slot: int) -> Path:
        return self.epochs / f"slot-{slot}"

    def slot_lock(self, slot: int) -> Path:
        return self.locks / f"slot-{slot}.lock"

    def commit_lock(self, worker: int) -> Path:
        """Held by a worker during an ordinary commit."""
        return self.locks / f"commit-w{worker}.lock"

    def commit_locks(self) -> list[Path]:
        """The commit locks of all workers that ever ran."""
        return list(self.locks.glob("commit-w*.lock"))

    def letters_lock(self, writer: str) -> Path:
        """Held while one of several processes writes this writer's dead letters."""
        return self.locks / f"{writer}-letters.lock"

    def sink(self, name: str) -> Path:
        return self.sinks / name

    def sink_lock(self, name: str, partition: str) -> Path:
        """Held while the partition's rows are stored in the sink."""
        return self.sink(name) / f"{partition}.lock"

    def partition_lock(self, partition: str) -> Path:
        return self.locks / f"{partition}.lock"

    def locks_of(self, partition: str) -> list[Path]:
        """Locks that a process holds while it works on a partition."""
        of_sinks = (self.sink_lock(name, partition) for name in self.sink_names())
        return [self.partition_lock(partition), *of_sinks]

    def sink_names(self) -> list[str]:
        """Names of the sinks of which something is noted."""
        return sorted(path.name for path in self.sinks.iterdir()) if self.sinks.is_dir() else []

    def active_slot(self, slot: int) -> Path:
        return self.root / "active" / f"slot-{slot}"

    def active(self, slot: int, number: int) -> Path:
        return self.active_slot(slot) / f"dir-{number:06d}"

    def sealed(self, slot: int, number: int) -> Path:
        return self.root / "sealed" / f"slot-{slot}" / f"dir-{number:06d}"

    def processed(self, slot: int, number: int) -> Path:
        return self.root / "processed" / f"slot-{slot}" / f"dir-{number:06d}"

    def active_slots(self) -> list[int]:
        """Numbers of all slots that have an active folder."""
        return _numbers(self.root / "active", _SLOT_DIR)

    def active_numbers(self, slot: int) -> list[int]:
        """Numbers of a slot's active directories; more than one only after a crash."""
        return _numbers(self.active_slot(slot), _NUMBERED_DIR)

    def sealed_dirs(self) -> list[Path]:
        """All sealed directories, by slot and number."""
        return [self.sealed(slot, number) for slot, number in self.sealed_numbers()]

    def sealed_numbers(self) -> list[tuple[int, int]]:
        """Slot and number of all sealed directories, in that order."""
        return _numbers_below(self.root / "sealed")

    def processed_numbers(self) -> list[tuple[int, int]]:
        """Slot and number of all processed directories, finished or not, in that order."""
        return _numbers_below(self.root / "processed")

    def redos(self) -> list[str]:
        """Partitions that are processed again: this has begun and is not finished."""
        folders = self.redo.iterdir() if self.redo.is_dir() else ()
        return sorted(path.name for path in folders if PartitionKey.parse(path.name))


def _numbers_below(folder: Path) -> list[tuple[int, int]]:
    return [
        (slot, number)
        for slot in _numbers(folder, _SLOT_DIR)
        for number in _numbers(folder / f"slot-{slot}", _NUMBERED_DIR)
    ]


def _numbers(folder: Path, pattern: re.Pattern[str]) -> list[int]:
    """The numbers of the folder's directories, in ascending order.

    Without names with extra zeros: their directory would be looked for under another name.
    """
    if not folder.is_dir():
        return []
    names = [entry.name for entry in folder.iterdir()]
    numbers = {name: int(match[1]) for name in names if (match := pattern.fullmatch(name))}
    return sorted(number for name, number in numbers.items() if name == _name_of(number, pattern))


def _name_of(number: int, pattern: re.Pattern[str]) -> str:
    return f"slot-{number}" if pattern is _SLOT_DIR else f"dir-{number:06d}"
