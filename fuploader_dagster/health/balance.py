"""The balance: is everything that was acknowledged still somewhere?

What is acknowledged is in an active directory, whose messages the state store counts with each
commit, or it was sealed, which the seal log notes. Each of them has to be found:

    active    its directory is on the disk, with at least that many bytes
    waiting   the sealed directory is on the disk, or is being made
    stored    the object store has confirmed its archive (a receipt)
    replaced  the slot was damaged; what it proves was stored again, and it is in set-aside/
    aside     the whole directory is in set-aside/
    lost      none of these

What must always hold: nothing is called lost that is only on its way. A slot moves from active to
sealed to stored, so the places are looked at in this order, and what was found in none of them is
looked for once more. What nobody can count honestly is left out: dead letters, which people
remove, and what a state store or a log that was emptied does not know.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.state import SlotCount, Snapshot
from fuploader_dagster.delivery.mended import find_mended
from fuploader_dagster.disk.layout import MAX_NUMBER_DIGITS, Layout, PartitionKey, utc
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.disk.setting_aside import directories_aside
from fuploader_dagster.errors import ForeignFile
from fuploader_dagster.slots.receipts import find_receipts, receipts_between
from fuploader_dagster.slots.seal_log import Noted, hour_of, log_files, note_sealed, read_log
from fuploader_dagster.slots.segment import SEGMENT_NAME

SETTLED_AFTER = timedelta(hours=2)
"""An hour's file stays this long: its slots are still listed by whoever looks."""
LISTED = 10
PLACES = ("waiting", "stored", "replaced", "aside", "lost")


@dataclass(frozen=True)
class Lost:
    """Messages that were acknowledged and are nowhere."""

    what: str
    """`slot PARTITION`, or `active slot 0, directory 17`."""
    messages: int
    log: Path | None = None
    """Where it is noted, if it was sealed."""


@dataclass
class Day:
    """The sealed slots of one day on this node, and what became of them, by count."""

    slots: int = 0
    messages: int = 0
    places: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PLACES, 0))
    """Messages by place."""


@dataclass(frozen=True)
class Balance:
    days: Mapping[str, Day]
    """By day of sealing (UTC), as far as the seal log goes back."""
    active_messages: int
    lost: Sequence[Lost]

    def total(self, place: str) -> int:
        """Messages of all days in this place."""
        return sum(day.places[place] for day in self.days.values())

    @property
    def sealed_messages(self) -> int:
        return sum(day.messages for day in self.days.values())


def lost_in_words(lost: Sequence[Lost]) -> str:
    """What is missing, in a sentence."""
    messages = sum(one.messages for one in lost)
    listed = ", ".join(f"{one.what} ({counted(one.messages, 'message')})" for one in lost[:LISTED])
    more = f" and {len(lost) - LISTED:,} more" if len(lost) > LISTED else ""
    return (
        f"{counted(messages, 'acknowledged message is', 'acknowledged messages are')} neither "
        f"on the disk nor stored: {listed}{more}"
    )


def what_to_do(lost: Sequence[Lost]) -> str:
    """Where to look for it, and how to accept that it is gone."""
    files = sorted({one.log.name for one in lost if one.log})
    hint = "look for it in set-aside/ and in backups of the disk"
    if files:
        hint += f"; if it was removed on purpose, remove its line from seal-log/{', '.join(files)}"
    return hint


def balance(layout: Layout, snapshot: Snapshot | None) -> Balance:
    """Look for everything. `snapshot` has to be older than this look."""
    logged = {path: read_log(path) for path in log_files(layout)}
    noted = {one: path for path, slots in logged.items() for one in slots.values()}
    lost = _lost_active(layout, snapshot, noted)
    places = _places(layout, noted)
    days: dict[str, Day] = {}
    for slot, path in sorted(noted.items(), key=lambda pair: pair[0].partition):
        place = places[slot.partition]
        day = days.setdefault(slot.partition[:8], Day())
        day.slots += 1
        day.messages += slot.messages
        day.places[place] += slot.messages
        if place == "lost":
            lost.append(Lost(f"slot {slot.partition}", slot.messages, path))
    active = sum(one.messages for one in snapshot.slots) if snapshot else 0
    return Balance(days, active, lost)


def tidy(layout: Layout, sealed: Iterable[Noted], now: float | None = None) -> None:
    """Note sealed slots that the log lacks, and remove files whose slots are all accounted for."""
    files = log_files(layout)
    known = {partition for path in files for partition in read_log(path)}
    note_sealed(layout, [one for one in sealed if one.partition not in known])
    moment = utc(time.time() if now is None else now)
    for path in files:
        hour = hour_of(path)
        if hour is None or moment - hour < SETTLED_AFTER:
            continue
        slots = read_log(path)
        places = _places(layout, slots.values())
        if not {"waiting", "lost"} & set(places.values()):
            path.unlink(missing_ok=True)


def _places(layout: Layout, slots: Iterable[Noted]) -> dict[str, str]:
    """Where each slot is."""
    noted = list(slots)
    found: dict[str, str] = {}
    for one in noted:
        if _is_on_disk(layout, one.partition):
            found[one.partition] = "waiting"
    stored = find_receipts(layout, [one.partition for one in noted])
    aside = _aside(layout)
    for one in noted:
        if one.partition in stored:
            found[one.partition] = "stored"
        elif one.partition not in found:
            found[one.partition] = _elsewhere(layout, one.partition, aside)
    return found


def _elsewhere(layout: Layout, partition: str, aside: set[str]) -> str:
    if find_mended(layout, partition):
        return "replaced"
    key = PartitionKey.parse(partition)
    if key is not None and _aside_name(key.slot, key.number) in aside:
        return "aside"
    if _is_on_disk(layout, partition):  # its rename was under way
        return "waiting"
    return "stored" if find_receipts(layout, [partition]) else "lost"


def _is_on_disk(layout: Layout, partition: str) -> bool:
    key = PartitionKey.parse(partition)
    if key is None:
        return False
    places = layout.active(key.slot, key.number), layout.sealed(key.slot, key.number)
    return any(path.is_dir() for path in places)


def _lost_active(layout: Layout, snapshot: Snapshot | None, noted: Iterable[Noted]) -> list[Lost]:
    """Active directories that the state store knows and that are nowhere."""
    missing = [
        one
        for one in (snapshot.slots if snapshot else ())
        if one.messages and not _has_data(layout, one) and not _is_former(layout, one)
    ]
    sealed = {_place(one.partition) for one in noted}
    return [
        Lost(f"active slot {one.slot}, directory {one.number}", one.messages)
        for one in missing
        if (one.slot, one.number) not in sealed and not _was_sealed(layout, one)
    ]


def _is_former(layout: Layout, count: SlotCount) -> bool:
    """Whether the slot has begun a later directory: then the count is one that a worker, which was
    killed after a seal, did not replace."""
    try:
        highest = read_own(layout.active_slot(count.slot) / "next-number")
    except (FileNotFoundError, ForeignFile):
        return False
    return highest.isdigit() and len(highest) <= MAX_NUMBER_DIGITS and int(highest) > count.number


_sealed_before: set[tuple[Path, int, int]] = set()
"""Directories of which a receipt was found."""


def _was_sealed(layout: Layout, count: SlotCount) -> bool:
    place = (layout.root, count.slot, count.number)
    if place in _sealed_before or layout.sealed(count.slot, count.number).is_dir():
        return True
    if _aside_name(count.slot, count.number) in _aside(layout) or _has_data(layout, count):
        return True
    if any(_place(one) == place[1:] for one in receipts_between(layout)):
        _sealed_before.add(place)
    return place in _sealed_before


def _has_data(layout: Layout, count: SlotCount) -> bool:
    """Whether the directory is there, with at least the bytes that were acknowledged."""
    directory = layout.active(count.slot, count.number)
    try:
        return (directory / SEGMENT_NAME).stat().st_size >= count.size_bytes
    except FileNotFoundError:  # the `files` format, or it is gone
        return directory.is_dir()


def _aside(layout: Layout) -> set[str]:
    return {path.name.partition("-")[2] for path in directories_aside(layout)}


def _aside_name(slot: int, number: int) -> str:
    return f"slot-{slot}-dir-{number:06d}"


def _place(partition: str) -> tuple[int, int] | None:
    key = PartitionKey.parse(partition)
    return (key.slot, key.number) if key else None
