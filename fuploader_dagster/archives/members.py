"""What goes into an archive: its members, and where their tar bytes come from.

What must always hold: a source gives the same tar bytes each time it is asked, in the order of
`members`. What it reads is not trusted yet: the archive writer compares headers, payloads and
padding with what `members` says. The sources for slots are in `delivery/slot_members.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Protocol


class ArchiveMember(Protocol):
    """One file that goes into an archive."""

    @property
    def name(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def sha256(self) -> bytes | None:
        """Of the payload, 32 bytes; None where nobody recorded it (adopted directories)."""


class Member(NamedTuple):
    """A member that is known by these three values alone."""

    name: str
    size_bytes: int
    sha256: bytes | None


class MemberSource(ABC):
    """Gives the tar bytes of all members. A context manager; used from one thread."""

    members: Sequence[ArchiveMember]
    lengths: Sequence[int]
    """Of each member in the tar stream: header, payload, padding."""
    xxh128: str | None = None
    """XXH3-128 of the tar bytes of all members, in hex; None where nobody recorded it."""

    @abstractmethod
    def read(self, first: int, last: int) -> bytes:
        """The tar bytes of `members[first:last]`: headers, payloads, padding.

        Raises `DamagedSlot` if they are not there.
        """

    @abstractmethod
    def read_part(self, index: int, start: int, stop: int) -> bytes:
        """A piece of one member's tar bytes, for members too large to hold in memory."""

    @abstractmethod
    def place(self, index: int) -> str:
        """Where a member lies, for error messages."""

    @abstractmethod
    def close(self) -> None:
        """Give the open files back; may be repeated."""

    def __enter__(self) -> MemberSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
