"""Sealing: an active directory becomes a sealed slot, which never changes.

What must always hold:

- `seal.json` is written into the active directory, durably, and then the directory is renamed: one
  step. A crash in between leaves an active directory with a seal in it; the next owner renames it.
- From then on nothing in it changes. The seal holds its partition key and object key, the digest of
  the index, which holds the digest of every message, and the digest of the whole segment, which
  takes a fraction of the time to compare.
- `SealedSlot` is the only way to reach the data of a sealed directory, and it has no `append`.

A slot whose key generator failed is sealed without an object key. The generator is called again
when the slot is shipped, and its result is stored in `object-key` beside the seal.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec

from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import rename_durably, write_durably
from fuploader_dagster.disk.layout import Layout, PartitionKey, utc
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.disk.temporaries import is_temporary
from fuploader_dagster.disk.trouble import MOVE_IT_AWAY
from fuploader_dagster.errors import (
    UNREADABLE_JSON,
    DamagedSlot,
    ForeignFile,
    OtherFormat,
    StrategyError,
)
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.settings.split import NO_SPLIT
from fuploader_dagster.settings.user_functions import object_key
from fuploader_dagster.slots.index import INDEX_NAME, IndexEntry, entries_by_commit, read_index
from fuploader_dagster.slots.plain_files import FILES_NAME
from fuploader_dagster.slots.seal_log import Noted, note_sealed
from fuploader_dagster.slots.segment import SEGMENT_NAME

log = logging.getLogger(__name__)

SEAL_NAME = "seal.json"
OBJECT_KEY_NAME = "object-key"
SEAL_VERSION = 1
PIECE_VERSION = 2
"""Of pieces of a directory: software that does not know them would ship them too early."""

Reason = Literal[
    "count", "bytes", "age", "request", "shutdown", "adopted", "mended", "requeued", "redo"
]


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """What `seal.json` says. Times are UTC, ISO 8601; sizes are bytes."""

    version: int = SEAL_VERSION
    partition: str
    pipeline: str
    node: str
    slot: int
    number: int
    sealed_at: str
    reason: Reason
    slot_format: Literal["segment", "files"]
    messages: int
    payload_bytes: int
    index_sha256: str
    segment_xxh128: str | None = None
    """XXH3-128 of the segment, in hex; None in the `files` format, and in older seals."""
    archive: str
    """The archive's file name."""
    object_key: str | None
    key_problem: str = ""
    """Why there is no object key, if there is none."""
    mends: tuple[int, int] | None = None
    """Slot and number of the damaged directory that this one replaces (`mend`)."""
    split: dict[str, str] = {}
    """The values of `split_by` that all its messages share (`settings/split.py`)."""
    piece_of: int | None = None
    """Number of the directory that was divided (`dividing`); none if it was sealed as a whole."""


def seal_due(
    *, messages: int, size_bytes: int, age_seconds: float, pipeline: Intake
) -> Reason | None:
    """Which limit an active directory has reached, if any. An empty one is never sealed."""
    if messages == 0:
        return None
    if messages >= pipeline.seal_messages or pipeline.seal_each == "message":
        return "count"
    if size_bytes >= pipeline.seal_bytes:
        return "bytes"
    if age_seconds >= pipeline.seal_age_seconds:
        return "age"
    return None


def make_seal(
    pipeline: Intake,
    *,
    slot: int,
    number: int,
    slot_format: Literal["segment", "files"],
    messages: int,
    payload_bytes: int,
    index_content: bytes,
    segment_xxh128: str | None = None,
    reason: Reason,
    now: float,
    mends: tuple[int, int] | None = None,
    split: Mapping[str, str] = NO_SPLIT,
    piece_of: int | None = None,
) -> Seal:
    """Decide everything that a sealed slot fixes: partition key, archive name, object key."""
    partition = PartitionKey(utc(now), pipeline.node, slot, number)
    archive = f"{partition}{pipeline.archive_suffix}"
    key, problem = None, ""
    try:
        key = object_key(
            pipeline.key,
            pipeline=pipeline.name,
            partition=partition,
            archive=archive,
            zone=pipeline.zone,
            split=split,
        )
    except StrategyError as error:
        problem = str(error)
        log.error(
            "sealed %s without an object key, shipping asks for it again: %s", partition, error
        )
    return Seal(
        version=SEAL_VERSION if piece_of is None else PIECE_VERSION,
        partition=str(partition),
        pipeline=pipeline.name,
        node=pipeline.node,
        slot=slot,
        number=number,
        sealed_at=partition.sealed_at.isoformat(timespec="milliseconds"),
        reason=reason,
        slot_format=slot_format,
        messages=messages,
        payload_bytes=payload_bytes,
        index_sha256=hashlib.sha256(index_content).hexdigest(),
        segment_xxh128=segment_xxh128,
        archive=archive,
        object_key=key,
        key_problem=problem,
        mends=mends,
        split=dict(split),
        piece_of=piece_of,
    )


def encode_seal(seal: Seal) -> bytes:
    return msgspec.json.format(msgspec.json.encode(seal), indent=1) + b"\n"


def seal_directory(directory: Path, seal: Seal, layout: Layout) -> SealedSlot:
    """Write the seal into a committed, closed active directory and move it to the sealed ones."""
    write_durably(directory / SEAL_NAME, encode_seal(seal))
    reached(CrashPoint.SEAL_WRITTEN)
    return finish_seal(directory, layout)


def finish_seal(directory: Path, layout: Layout) -> SealedSlot:
    """The second half of sealing, also where a crash interrupted it.

    Raises `DamagedSlot` where the seal belongs to another directory, or the target exists: somebody
    copied directories.
    """
    seal = read_seal(directory)
    target = layout.sealed(seal.slot, seal.number)
    if directory != layout.active(seal.slot, seal.number) or target.exists():
        raise DamagedSlot(
            f"{directory} has the seal of {target}" + ", which exists" * target.exists(),
            hint="somebody copied the directory; compare the two",
        )
    note_sealed(layout, [Noted(seal.partition, seal.messages)])
    rename_durably(directory, target)
    return SealedSlot(target, seal)


def read_seal(directory: Path) -> Seal:
    """Read `seal.json`. Raises `DamagedSlot` if it is missing or unreadable."""
    path = directory / SEAL_NAME
    try:
        seal = msgspec.json.decode(read_own(path), type=Seal)
    except FileNotFoundError:
        raise DamagedSlot(f"{path} is missing", hint="the directory was not sealed by us") from None
    except NotADirectoryError:
        raise DamagedSlot(f"{directory} is not a folder", hint=MOVE_IT_AWAY) from None
    except ForeignFile as error:
        raise DamagedSlot(error.message, hint=error.hint) from error
    except UNREADABLE_JSON as error:
        raise DamagedSlot(f"{path} cannot be read: {error}") from error
    if seal.version not in (SEAL_VERSION, PIECE_VERSION):
        raise OtherFormat(
            f"{path} has version {seal.version}, this software reads {SEAL_VERSION} and "
            f"{PIECE_VERSION}",
            hint="use the version that wrote it to ship the slot",
        )
    _check_place(seal, directory)
    return seal


def _check_place(seal: Seal, directory: Path) -> None:
    """A seal that names another directory is damaged: obeying it would rename the wrong one."""
    key = PartitionKey.parse(seal.partition)
    place = (f"slot-{seal.slot}", f"dir-{seal.number:06d}")
    if (
        key is None
        or (key.node, key.slot, key.number) != (seal.node, seal.slot, seal.number)
        or place != directory.parts[-2:]
    ):
        raise DamagedSlot(
            f"{directory / SEAL_NAME} names slot {seal.slot}, directory {seal.number}, "
            f"partition {seal.partition!r}",
            hint="somebody changed it, or the disk is failing; the directory is untouched",
        )


@dataclass(frozen=True)
class SealedSlot:
    """A directory that never changes again."""

    directory: Path
    seal: Seal

    @property
    def partition(self) -> PartitionKey:
        partition = PartitionKey.parse(self.seal.partition)
        if partition is None:
            raise DamagedSlot(f"{self.directory} is sealed as {self.seal.partition!r}")
        return partition

    @property
    def segment(self) -> Path:
        """The tar stream without its end; only in the `segment` format."""
        return self.directory / SEGMENT_NAME

    @property
    def files(self) -> Path:
        """The folder of files; only in the `files` format."""
        return self.directory / FILES_NAME

    def unrecognised(self) -> list[Path]:
        """Paths in the directory that are not ours: somebody put them there."""
        ours = {INDEX_NAME, SEAL_NAME, OBJECT_KEY_NAME}
        ours.add(FILES_NAME if self.seal.slot_format == "files" else SEGMENT_NAME)
        found = [
            path
            for path in self.directory.iterdir()
            if path.name not in ours and not is_temporary(path.name)
        ]
        if self.seal.slot_format == "files" and self.files.is_dir():
            names = {entry.name for entry in self.entries()}
            folders = {str(above) for name in names for above in PurePosixPath(name).parents}
            found_above: set[Path] = set()
            for path in self.files.rglob("*"):  # adopted directories may have subfolders
                relative = path.relative_to(self.files).as_posix()
                known = relative in (folders if path.is_dir() else names)
                if not known and found_above.isdisjoint(path.parents):
                    found_above.add(path)
            found += sorted(found_above)
        return found

    def entries(self) -> Sequence[IndexEntry]:
        """All messages, in the order in which they arrived.

        Raises `DamagedSlot` if the index is not the one that was sealed.
        """
        return read_index(self._index()).entries

    def entries_by_commit(self) -> Iterator[Sequence[IndexEntry]]:
        """The same in pieces, for whom the memory of a large slot would be too much."""
        return entries_by_commit(self._index())

    def _index(self) -> bytes:
        content = read_own(self.directory / INDEX_NAME)
        if hashlib.sha256(content).hexdigest() != self.seal.index_sha256:
            raise DamagedSlot(
                f"the index in {self.directory} is not the one that was sealed",
                hint="somebody changed a sealed directory, or the disk is failing",
            )
        return content

    def object_key(self, key: Any, zone: tzinfo) -> str:
        """The object key from the seal; if the generator failed then, it is called and stored now.

        Raises `StrategyError` if it fails again.
        """
        if self.seal.object_key is not None:
            return self.seal.object_key
        late = self.directory / OBJECT_KEY_NAME
        if not os.path.lexists(late):
            made = object_key(
                key,
                pipeline=self.seal.pipeline,
                partition=self.partition,
                archive=self.seal.archive,
                zone=zone,
                split=self.seal.split,
            )
            write_durably(late, made.encode("utf-8"))
            reached(CrashPoint.OBJECT_KEY_KEPT)
        return read_own(late).decode("utf-8")


def find_sealed(layout: Layout, partition: str) -> SealedSlot | None:
    """The sealed slot of a partition key on this disk, or None if it is not (or no longer) here."""
    key = PartitionKey.parse(partition)
    if key is None:
        return None
    directory = layout.sealed(key.slot, key.number)
    seal = _seal_if_there(directory, layout)
    return SealedSlot(directory, seal) if seal and seal.partition == partition else None


def sealed_partitions(layout: Layout) -> list[str]:
    """Partition keys of everything sealed on this disk, oldest first.

    A directory whose seal cannot be read is logged and left out: it must not hold up the others.
    """
    return sorted(slot.seal.partition for slot in sealed_slots(layout))


def sealed_slots(layout: Layout) -> Iterator[SealedSlot]:
    """The same as slots, by slot and number."""
    for directory in layout.sealed_dirs():
        try:
            seal = _seal_if_there(directory, layout)
        except DamagedSlot as error:
            log.error("skipped a damaged slot: %s", error)
        else:
            if seal is not None:
                yield SealedSlot(directory, seal)


def _seal_if_there(directory: Path, layout: Layout) -> Seal | None:
    """The seal, or None where the directory is not there: runs remove directories."""
    try:
        seal = read_seal(directory)
    except DamagedSlot:
        if directory.is_dir():
            raise
        return None
    return seal if is_whole(seal, layout) else None


def is_whole(seal: Seal, layout: Layout) -> bool:
    """False of a piece whose directory is still being divided: it does not count yet."""
    return seal.piece_of is None or not layout.active(seal.slot, seal.piece_of).exists()
