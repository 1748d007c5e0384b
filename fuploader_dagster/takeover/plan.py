"""The plan of a take-over: what FUploader left below its storage root becomes our sealed slots.

What must always hold:

- Looking changes nothing. The plan is a pure function of what was found. Each step may be repeated,
  and may be killed at any point.
- No file is lost: a file is removed only if the same name with the same bytes is in an adopted
  directory, or was just read back from the object store. What cannot be judged is moved to
  `set-aside/` and logged.
- No file is stored twice: the same name with the same bytes is adopted once, and not at all if
  FUploader had already stored it and died before removing it.
- A FUploader that still runs is left alone, with everything it has.

FUploader does not record that it has stored an archive. It packs a directory, gives the archive a
unique name, uploads it, and removes first the archive and then the directory. So whenever it dies,
it leaves one of these:

    directory, no archive             not packed yet, or stored and about to be removed
    directory, archive `dir.tar.zst`  being packed: half of one, or whole and not yet uploaded
    directory, archive `time_id...`   being uploaded, stored, or refused by the store
    archive, no directory             its own recovery has moved the files since

The first and the third can each mean two things, and the store tells which. It is asked for an
object with the archive's name, and for FUploader's newest archives, whose members are compared with
what is here.

Below its storage root (both layouts; files of any type):

    slot_0_3/   dir-000001/                       layout `flat_slot`
    active/slot-0/dir-000001/                     layout `legacy_meta`
    sealed/slot-0/dir-000001/   sealed/.pool/     `.pool` only while it recovers
    slot_0_3.tar.zst, 20261120_234501_123456_1a2b3c4d.tar.zst beside the directories

An adopted directory is first renamed to `adopting/slot-9999/dir-000001/files` in the pipeline's own
folder, then indexed, sealed with a partition key of its own, and renamed to its place among the
sealed slots. `taken-over.jsonl` keeps for ever what was adopted, from where and as which partition.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fuploader_dagster.intake.leftovers import FoundAs
from fuploader_dagster.takeover.former_redis import FormerKeys

_NUMBER = re.compile(r"[0-9]{1,18}$")

Kind = FoundAs | Literal["staged"]
ArchiveState = Literal["whole", "torn", "foreign", "unknown"]
Content = tuple[str, bytes]
"""Name and SHA-256 of a file."""
Member = tuple[str, bytes, int]
"""Name, SHA-256 and size of a file, without the directory that FUploader packed."""


@dataclass(frozen=True)
class LeftFile:
    """A file in a directory that FUploader left."""

    path: Path
    name: str
    """Relative to its directory."""
    size_bytes: int
    sha256: bytes
    changed_at: float

    @property
    def content(self) -> Content:
        return (self.name, self.sha256)


@dataclass(frozen=True)
class LeftDirectory:
    """A directory that FUploader left, or that an interrupted take-over staged."""

    path: Path
    source: str
    """Relative to FUploader's storage root, as in the journal."""
    kind: Kind
    files: tuple[LeftFile, ...] = ()
    others: tuple[Path, ...] = ()
    """Neither files nor directories: links, pipes."""
    waiting: bool = False
    """According to Redis, FUploader was filling it or had not taken it from the ready queue."""

    @property
    def maybe_stored(self) -> bool:
        """FUploader may have packed and uploaded it, and not yet removed it."""
        return self.kind != "active" and not self.waiting and bool(self.files)


@dataclass(frozen=True)
class LeftArchive:
    """An archive that FUploader left."""

    path: Path
    source: str
    state: ArchiveState
    members: tuple[Member, ...] = ()
    others: bool = False
    """It also holds links or pipes, which are not among the members."""
    directory_there: bool = False
    """The directory of its name is beside it."""
    siblings: bool = False
    """Directories with files are beside it."""
    stored_as: str = ""
    """Address of an object with this name and exactly these bytes."""
    staged: Path | None = None


@dataclass(frozen=True)
class Left:
    """Everything that was found."""

    root: Path
    directories: tuple[LeftDirectory, ...] = ()
    archives: tuple[LeftArchive, ...] = ()
    empty: tuple[Path, ...] = ()
    """Directories without any file."""
    interrupted: tuple[Path, ...] = ()
    """Sealed and still staged, by a take-over that died in between."""
    stored: Mapping[Content, str] = field(default_factory=dict)
    """Files in FUploader's newest archives in the store: content to address."""
    stored_looked_at: int = 0
    adopted: Mapping[Content, str] = field(default_factory=dict)
    """Files that earlier take-overs sealed and nobody has shipped yet: content to partition."""
    keys: tuple[FormerKeys, ...] = ()
    links: tuple[Path, ...] = ()
    """Symbolic links where FUploader has directories and archives."""
    taken_before: frozenset[str] = frozenset()
    """Sources of earlier take-overs."""
    alive: str = ""
    """Evidence that FUploader still runs; empty if there is none."""


@dataclass(frozen=True)
class Adopt:
    """Make a directory a sealed slot, without some of its files."""

    directory: LeftDirectory
    drop: Mapping[str, str] = field(default_factory=dict)
    """Name of each file that is not adopted, with the reason."""

    @property
    def kept(self) -> int:
        return len(self.directory.files) - len(self.drop)


@dataclass(frozen=True)
class TakeArchive:
    """Ship an archive whose directory is gone: as it is, or only the members that are nowhere
    else."""

    archive: LeftArchive
    only: frozenset[str] | None = None
    """Names of the members to take; None: the archive as it is."""


@dataclass(frozen=True)
class Remove:
    """Remove a file whose whole content is proven to be elsewhere."""

    path: Path
    because: str


@dataclass(frozen=True)
class SetAside:
    """Move something that cannot be judged to `set-aside/`."""

    path: Path
    because: str


@dataclass(frozen=True)
class Plan:
    """The steps, in this order."""

    alive: str = ""
    finish: tuple[Path, ...] = ()
    adopt: tuple[Adopt, ...] = ()
    archives: tuple[TakeArchive, ...] = ()
    remove: tuple[Remove, ...] = ()
    aside: tuple[SetAside, ...] = ()
    empty: tuple[Path, ...] = ()
    forget: tuple[str, ...] = ()
    """Redis keys."""
    remarks: tuple[str, ...] = ()
    """What a person should know."""
    stored: frozenset[Content] = frozenset()
    """Files that FUploader is known to have stored: their messages may come again."""

    @property
    def files(self) -> int:
        """Number of files adopted from directories."""
        return sum(step.kept for step in self.adopt)

    def __bool__(self) -> bool:
        steps = (self.finish, self.adopt, self.archives, self.remove, self.aside, self.empty)
        return any(steps) or bool(self.forget)


def plan(left: Left) -> Plan:
    """Decide what to do with everything that was found."""
    stored = dict(left.stored)
    for archive in left.archives:
        if archive.stored_as:
            stored |= {(name, digest): archive.stored_as for name, digest, _ in archive.members}
    here = dict(left.adopted)
    # Staged ones first: they keep what they hold, and copies elsewhere are dropped.
    in_order = sorted(left.directories, key=lambda one: (one.kind != "staged", one.source))
    adopt = tuple(_adopt(directory, here, stored) for directory in in_order)
    archives: list[TakeArchive] = []
    remove: list[Remove] = []
    aside = [
        SetAside(path, "it is neither a file nor a directory")
        for directory in left.directories
        for path in directory.others
    ]
    for archive in sorted(left.archives, key=lambda one: one.source):
        step = _archive(archive, here, stored)
        if isinstance(step, TakeArchive):
            archives.append(step)
            here |= {
                (name, digest): archive.source
                for name, digest, _ in archive.members
                if step.only is None or name in step.only
            }
        elif isinstance(step, Remove):
            remove.append(step)
        else:
            aside.append(step)
    forget, remarks = _keys(left)
    remarks += [
        f"{link} is a symbolic link; it is left alone, with what it leads to" for link in left.links
    ]
    if doubtful := sum(directory.maybe_stored for directory in left.directories):
        remarks.append(
            f"FUploader may have stored {doubtful:,} directories before it died. They were "
            f"compared with its {left.stored_looked_at:,} newest archives in the store; what it "
            f"stored before those, or under names of another form, is stored again"
        )
    return Plan(
        alive=left.alive,
        finish=left.interrupted,
        adopt=adopt,
        archives=tuple(archives),
        remove=tuple(remove),
        aside=tuple(aside),
        empty=left.empty,
        forget=tuple(forget),
        remarks=tuple(remarks),
        stored=frozenset(stored),
    )


def _adopt(
    directory: LeftDirectory, here: dict[Content, str], stored: Mapping[Content, str]
) -> Adopt:
    drop = {}
    for file in directory.files:
        if file.content in here:
            drop[file.name] = f"it is also in {here[file.content]}"
        elif file.content in stored:
            drop[file.name] = f"it is stored in {stored[file.content]}"
        else:
            here[file.content] = directory.source
    return Adopt(directory, drop)


def _archive(
    archive: LeftArchive, here: Mapping[Content, str], stored: Mapping[Content, str]
) -> TakeArchive | Remove | SetAside:
    if archive.stored_as:
        return Remove(archive.path, f"it is stored as {archive.stored_as}")
    if archive.state != "whole" and archive.directory_there:  # named so before any upload
        return Remove(archive.path, "it was being made from its directory, which is adopted")
    if doubt := _doubt(archive):
        return SetAside(archive.path, doubt)
    if archive.state == "foreign":
        return TakeArchive(archive)
    missing = {
        name
        for name, digest, _ in archive.members
        if (name, digest) not in here and (name, digest) not in stored
    }
    if not missing:
        known = "all of its files are adopted or stored"
        but = f"{known}, but it holds links, or names that lead elsewhere"
        return SetAside(archive.path, but) if archive.others else Remove(archive.path, known)
    # With links it is shipped as it is: better to store a file twice than to lose a link.
    whole = len(missing) == len(archive.members) or archive.others
    return TakeArchive(archive, None if whole else frozenset(missing))


def _doubt(archive: LeftArchive) -> str:
    """Why an archive cannot be shipped; empty if it can."""
    if archive.state == "torn":
        return "it is incomplete, and its directory is gone"
    if archive.state == "unknown":
        return "nothing shows whether it is complete"
    if archive.state == "foreign" and archive.siblings:
        return "it cannot be read here, and may hold files that are adopted anyway"
    return ""


def _keys(left: Left) -> tuple[list[str], list[str]]:
    """Keys to remove, if any under their prefix names something that is or was here; remarks."""
    there = set(left.taken_before)
    there |= {directory.source for directory in left.directories}
    there |= {archive.source.partition(".")[0] for archive in left.archives}
    there |= {str(path.relative_to(left.root)) for path in left.empty if left.root in path.parents}
    forget: list[str] = []
    remarks: list[str] = []
    for keys in left.keys:
        named = [
            place
            for slot, one in keys.directories()
            for name in (one, *_before(one))
            for place in _places(slot, name)
        ]
        # In the flat layout, a slot that has just begun: Redis has a name of the other layout.
        named += [f"slot_{slot}_0" for slot, one in keys.active.items() if one == "dir-000001"]
        if there.intersection(named) or (there and not named):  # killed while clearing them
            forget += keys.keys
        else:
            remarks.append(
                f"the keys {keys.prefix}* name no directory below {left.root} and are left alone"
            )
    return forget, remarks


def _places(slot: int, directory: str) -> list[str]:
    """Where a directory that Redis names can be."""
    return [directory, f"active/slot-{slot}/{directory}", f"sealed/slot-{slot}/{directory}"]


def _before(directory: str) -> list[str]:
    """The names of the two directories before this one.

    Redis names a directory before it is made, and in the flat layout with keys of style
    `legacy_meta` `slot_0_2` follows `slot_0_0`.
    """
    number = _NUMBER.search(directory)
    if number is None:
        return []
    width = len(number[0]) if number[0].startswith("0") else 0  # dir-000010, but slot_0_10
    stem, last = directory[: number.start()], int(number[0])
    return [stem + str(last - back).zfill(width) for back in (1, 2) if last >= back]


def is_waiting(source: str, keys: Iterable[FormerKeys]) -> bool:
    """Whether Redis says that no packer ever got the directory."""
    return any(
        source in _places(slot, directory) for one in keys for slot, directory in one.directories()
    )
