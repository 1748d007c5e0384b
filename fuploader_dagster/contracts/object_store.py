"""ObjectStore: where archives end up. One implementation per file in `resources/object_stores/`.

What must always hold:

- `put` is create-only and verified: it returns a `StoredObject` only after the service itself
  stated a size and a digest that equal ours. Nobody's object is ever overwritten.
- A `StoredObject` is the receipt without which no local data is removed.
- Repeating a `put` that succeeded (its answer may have been lost) succeeds again without sending
  the bytes twice: an object under our key with our digest counts as stored.

Keys are relative, `/`-separated, UTF-8, at most 1,024 bytes, without `.` or `..` components.

Errors: `StoreUnavailable` (try again), `StoreRefused` (a person must act), `ObjectConflict`
(another content is there), `DigestMismatch` (the service holds something else than was sent).
A missing object is `None` from `head` and `StoreRefused` from `get_range`.
"""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

Progress = Callable[[int, int], None]
"""Called with (bytes confirmed so far, total bytes) while a large archive is being sent."""


@dataclass(frozen=True)
class ArchiveFile:
    """A finished local archive, with what was computed while it was written and read back."""

    path: Path
    size_bytes: int
    sha256: str
    """Lower-case hex digest of the whole file."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Small ASCII values that travel with the object (keys: lower case, digits, hyphens)."""


@dataclass(frozen=True)
class StoredObject:
    """Proof that the object store holds exactly the archive: the receipt of a verified put."""

    address: str
    """For people and for reading back: `s3://bucket/key`, `file:///path`."""
    key: str
    size_bytes: int
    sha256: str
    already_there: bool = False
    """True when an earlier attempt had stored it and nothing was sent now."""


@dataclass(frozen=True)
class ObjectInfo:
    """What the service says about an object."""

    key: str
    size_bytes: int
    sha256: str | None
    """The digest kept with the object, if it has one (ours always have)."""


@dataclass(frozen=True)
class Retry:
    """An attempt that failed, with another one to follow."""

    error: BaseException
    attempt: int
    pause_seconds: float
    seconds: float
    """Since the last progress."""

    def __str__(self) -> str:
        return f"attempt {self.attempt} failed, next in {self.pause_seconds:.1f} s: {self.error}"


@dataclass(frozen=True)
class UnfinishedUpload:
    """What an interrupted put left at the service; it costs money until it is aborted."""

    key: str
    upload_id: str
    begun_at: datetime
    """UTC, by the service's clock."""


class ObjectStore(ABC):
    """One bucket (or folder), below an optional prefix. Thread-safe."""

    @abstractmethod
    def put(self, key: str, archive: ArchiveFile, progress: Progress | None = None) -> StoredObject:
        """Store the archive under the key, create-only and verified; safe to repeat.

        Small archives go in one request, large ones in parts; a large upload that was interrupted
        goes on with the parts that the service confirms.
        """

    @abstractmethod
    def head(self, key: str) -> ObjectInfo | None:
        """What lies under the key, or None."""

    @abstractmethod
    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`, fewer only at the object's end."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with the prefix, in key order; `sha256` may be None."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; a missing one is no error."""

    @abstractmethod
    def check(self) -> None:
        """Raise what a put would raise if the store cannot be reached or refuses us."""

    @abstractmethod
    def address(self, key: str) -> str:
        """The full address of a key, for people."""

    def erase(self, key: str) -> None:
        """Remove the object so that nothing of it stays, in a bucket with versions too.

        A missing one is no error. By default `delete`, for stores that keep no versions.
        """
        self.delete(key)

    def clock(self) -> datetime | None:
        """What time the service says it is (UTC); None where it has no clock of its own."""
        return None

    def unfinished(self, prefix: str = "") -> builtins.list[UnfinishedUpload]:
        """Uploads below the prefix that were begun and neither completed nor aborted.

        Always empty where a put leaves nothing behind.
        """
        return []

    def abort(self, upload: UnfinishedUpload) -> None:  # noqa: B027 - where nothing is left behind
        """Forget an unfinished upload with its parts; one that is gone is no error.

        A put that is just going on with it fails and begins anew: abort only old ones.
        """

    def listen(self, ear: Callable[[Retry], None]) -> None:  # noqa: B027 - nothing is tried again
        """Have `ear` called, from any thread, before the pause that follows a failed attempt.

        What it raises ends the attempts. For stores that try again by themselves.
        """


@runtime_checkable
class OpensObjectStore(Protocol):
    """What a pipeline needs of its store setting; the resources in `resources/` are such."""

    def open(self) -> ObjectStore:
        """The store behind the setting, with retries around it."""
        ...

    def describe(self) -> str:
        """Address in words, without secrets."""
        ...


@runtime_checkable
class OpensSeveralStores(Protocol):
    """A store setting that is made of others, each of which can be opened by itself."""

    def each(self) -> Sequence[OpensObjectStore]:
        """In the order in which they are read."""
        ...
