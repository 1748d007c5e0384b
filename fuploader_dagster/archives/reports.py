"""What reading, listing, verifying and restoring an archive found."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fuploader_dagster.archives.entries import MemberEntry
from fuploader_dagster.archives.frame_walk import Damage
from fuploader_dagster.contracts.object_store import Progress
from fuploader_dagster.errors import DamagedArchive

LISTED_NAMES = 100
RESTORE_HINT = "fuploader restore recovers what is intact"


@dataclass
class Unproven:
    """Members whose bytes nothing proves: there is no manifest with their digests, and their zstd
    frames have no checksum. Most changed bytes in them go unnoticed."""

    count: int = 0
    names: list[str] = field(default_factory=list)
    """The first hundred."""

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.names) < LISTED_NAMES:
            self.names.append(name)

    def __str__(self) -> str:
        some = ", ".join(map(repr, self.names[:3])) + ", ..." * (self.count > 3)
        return (
            f"nothing proves the bytes of {self.count:,} members ({some}): their zstd frames have "
            f"no checksum, and the archive has no manifest with digests"
        )


class ArchivedFile(NamedTuple):
    """A member, whole."""

    name: str
    content: bytes
    headers: str
    """The message headers that are kept with it, as text (`disk/header_text.py`)."""


class OpenFile(NamedTuple):
    """A member, in pieces that are read before the next member. Damage may show only after the last
    one."""

    name: str
    size_bytes: int
    headers: str
    pieces: Iterator[memoryview]


class Other(NamedTuple):
    """An entry that is not a plain file: a link, a device, a sparse file."""

    name: str
    kind: str
    """A description; for a link, with its target."""


@dataclass(frozen=True)
class Listing:
    """What could be listed, and what is damaged."""

    members: Sequence[MemberEntry]
    damages: Sequence[Damage]
    others: Sequence[Other] = ()
    """Entries that can only be named. Without directories."""


@dataclass(frozen=True)
class VerifyReport:
    """What a verification found.

    Every byte is as it was written if `damages` is empty and `unproven.count` is 0.
    """

    members: int
    """Members that are whole."""
    size_bytes: int
    """Total size of their payloads."""
    damages: Sequence[Damage]
    has_digests: bool
    """False for archives without a manifest: only zstd's own checksums could be compared."""
    unproven: Unproven = field(default_factory=Unproven)
    """Members that show no damage, but that nothing proves, not even such a checksum."""

    def raise_if_damaged(self) -> None:
        """Raise `DamagedArchive` with the first damage and the number of the others."""
        if self.damages:
            more = f" (and {len(self.damages) - 1} more)" if len(self.damages) > 1 else ""
            raise DamagedArchive(f"{self.damages[0]}{more}", hint=RESTORE_HINT)


@dataclass
class RestoreReport:
    """What a restore did."""

    restored: int = 0
    """Members that are now in the folder, whole."""
    unchanged: int = 0
    """Those of them that existed with the same content."""
    size_bytes: int = 0
    damages: list[Damage] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Members that were not written, with the reason: names that lead outside, links, conflicts."""
    unproven: Unproven = field(default_factory=Unproven)
    """Members that were written, but whose bytes nothing proves."""

    @property
    def is_empty(self) -> bool:
        """Whether it found nothing at all: no member, no damage."""
        return not (self.restored or self.damages or self.refused)


class WholeMembers:
    """Counts whole members, and reports the progress. Thread-safe."""

    def __init__(self, progress: Progress | None, total_bytes: int) -> None:
        self.members = 0
        self.size_bytes = 0
        self._progress, self._total = progress, total_bytes
        self._lock = threading.Lock()

    def add(self, size_bytes: int) -> None:
        with self._lock:
            self.members += 1
            self.size_bytes += size_bytes
            if self._progress:
                self._progress(self.size_bytes, self._total)
