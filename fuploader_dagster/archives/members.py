"""What is packed into an archive: its members, and where their tar bytes come from.

What must always hold: a source gives the same tar bytes each time it is asked, in the order of
`members`. Its bytes are not trusted yet: the archive writer compares headers, payloads and padding
with what `members` says. The sources for slots are in `delivery/slot_members.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fuploader_dagster.errors import DamagedData, DamagedSlot


class MemberToPack(Protocol):
    """One file to pack into an archive. (`MemberEntry` is one of a finished archive.)"""

    @property
    def name(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def sha256(self) -> bytes:
        """Digest of the payload, 32 bytes."""

    @property
    def headers(self) -> str:
        """The message headers that are kept with it (`disk/header_text.py`); mostly empty."""


class PlainMember(NamedTuple):
    """A member to pack that is nothing but these values."""

    name: str
    size_bytes: int
    sha256: bytes
    headers: str = ""


class MemberSource(ABC):
    """Gives the tar bytes of all members. A context manager; used from one thread."""

    members: Sequence[MemberToPack]
    lengths: Sequence[int]
    """Length of each member in the tar stream: header, payload, padding."""
    xxh128: str | None = None
    """XXH3-128 of the tar bytes of all members, in hex; None if it was not recorded."""
    damage: type[DamagedData] = DamagedSlot
    """The error for members that are not what was recorded."""

    @abstractmethod
    def read(self, first: int, last: int) -> bytes:
        """The tar bytes of `members[first:last]`: headers, payloads, padding.

        Raises `damage` if they are missing.
        """

    @abstractmethod
    def read_piece(self, index: int, start: int, stop: int) -> bytes:
        """A piece of one member's tar bytes, for members too large to hold in memory."""

    @abstractmethod
    def place(self, index: int) -> str:
        """Where a member is stored, for error messages."""

    @abstractmethod
    def close(self) -> None:
        """Close the open files. May be repeated."""

    def __enter__(self) -> MemberSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
