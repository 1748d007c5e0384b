"""What became of damaged slots: the records of `mend`, for everybody who only has to know.

Apart from `mend` so that `fuploader status` loads nothing that reads or writes slots and archives.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.disk.durable import write_durably
from fuploader_dagster.disk.layout import Layout, PartitionKey
from fuploader_dagster.disk.setting_aside import directories_aside
from fuploader_dagster.disk.temporaries import whole_files
from fuploader_dagster.errors import UNREADABLE_JSON

MENDED_SLOT = 9998
"""No worker has this number, so a worker of the damaged slot goes on undisturbed."""
LISTED_NAMES = 100
_SAID_NAMES = 5


class Mended(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a damaged slot. Paths are relative to the pipeline's folder."""

    partition: str
    """Empty where its seal could not be read."""
    error: str
    """What was damaged."""
    sealed_messages: int | None
    """As its seal or its index says; None if neither can be read."""
    stored: int
    """Messages that were proven and stored again."""
    stored_as: str
    """The partition of these; empty if there are none."""
    number: int
    """Of the directory with these."""
    lost: list[str]
    """Names that could not be proven, as far as they are known, at most 100."""
    set_aside: str
    told: bool = False
    """Whether a run has reported it for its partition."""

    def sentence(self, layout: Layout) -> str:
        """What a person has to know about it."""
        aside = layout.root / self.set_aside
        proven = counted(self.stored, "message of it was", "messages of it were")
        again = f"{proven} proven and stored again"
        again += f" as {self.stored_as}" if self.stored_as else ""
        where = f"the damaged directory was moved to {aside}"
        if self.stored == self.sealed_messages:
            return f"{self.error}. All {again}; {where} and can be removed"
        names = ", ".join(map(repr, self.lost[:_SAID_NAMES])) or "names unknown"
        names += ", ..." if len(self.lost) > _SAID_NAMES else ""
        count = "others" if self.sealed_messages is None else self.sealed_messages - self.stored
        return f"{self.error}. {again}; {where}, and the only copy of {count} ({names}) is there"


def find_mended(layout: Layout, partition: str) -> Mended | None:
    """What became of a partition whose slot was damaged; None if it was not, or is still here."""
    key = PartitionKey.parse(partition)
    if key is None or layout.sealed(key.slot, key.number).exists():
        return None
    record = read_mended(mended_path(layout, key.slot, key.number))
    return record if record is not None and record.partition in ("", partition) else None


def all_mended(layout: Layout) -> Iterator[Mended]:
    """All slots that were ever found damaged, in the order of their names."""
    for path in whole_files(layout.mended, "*.json"):
        record = read_mended(path)
        if record is not None:
            yield record


def damaged_aside(layout: Layout) -> tuple[list[Mended], list[Path]]:
    """What is still in `set-aside/`: damaged sealed slots, and the other damaged directories.

    Those were found when a worker started, or after the upload: only the log says what became of
    their messages.
    """
    records = {layout.root / one.set_aside: one for one in all_mended(layout)}
    mended = [record for path, record in records.items() if path.exists()]
    return mended, [path for path in directories_aside(layout) if path not in records]


def note_told(layout: Layout, partition: str, record: Mended) -> None:
    """Note that a run has reported it: nobody has to ask for the partition again."""
    key = PartitionKey.parse(partition)
    if key is not None and not record.told:
        told = msgspec.structs.replace(record, told=True)
        write_durably(mended_path(layout, key.slot, key.number), msgspec.json.encode(told))


def mended_path(layout: Layout, slot: int, number: int) -> Path:
    return layout.mended / f"slot-{slot}-dir-{number:06d}.json"


def read_mended(path: Path) -> Mended | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Mended)
    except (FileNotFoundError, *UNREADABLE_JSON):
        return None
