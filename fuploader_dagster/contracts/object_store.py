"""ObjectStore: where archives end up. One implementation per file in `resources/object_stores/`.

What must always hold:

- `put` only creates, and verifies: it returns a `StoredObject` only after the service itself has
  stated a size and a digest that equal ours. It never overwrites an object.
- A `StoredObject` is the receipt without which no local data is removed.
- A `put` that succeeded can be repeated (its answer may have been lost): it succeeds again without
  sending the bytes twice, because an object under our key with our digest counts as stored.

Keys are relative, `/`-separated, UTF-8, at most 1,024 bytes, without `.` or `..` components.

Errors: `StoreUnavailable` (try again), `StoreRefused` (a person must act), `ObjectConflict` (the
key has an object with other content), `DigestMismatch` (the service holds something other than what
was sent). For a missing object `head` returns `None`, and `get_range` raises `StoreRefused`.
"""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import Lock
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


class Requests:
    """Number of requests that a block of code made of services, in all its threads."""

    def __init__(self) -> None:
        self.number = 0
        self._lock = Lock()

    def add(self) -> None:
        with self._lock:
            self.number += 1


_requests: ContextVar[Requests | None] = ContextVar("requests that are counted", default=None)


@contextmanager
def counted_requests() -> Iterator[Requests]:
    """Count what stores ask their services for, because most services bill each request. Threads
    that a store starts count if they run in a copy of the context (`contextvars.copy_context`)."""
    requests = Requests()
    before = _requests.set(requests)
    try:
        yield requests
    finally:
        _requests.reset(before)


def note_request() -> None:
    """For stores: a request is made of the service."""
    if (requests := _requests.get()) is not None:
        requests.add()


@dataclass(frozen=True)
class StoredObject:
    """Proof that the object store holds exactly this archive: the receipt of a verified put."""

    address: str
    """For people, and for reading it back: `s3://bucket/key`, `file:///path`."""
    key: str
    size_bytes: int
    sha256: str
    already_there: bool = False
    """True if an earlier attempt stored it, so that nothing was sent this time."""


@dataclass(frozen=True)
class ObjectInfo:
    """What the service says about an object."""

    key: str
    size_bytes: int
    sha256: str | None
    """The digest stored with the object, if any (ours always have one)."""


@dataclass(frozen=True)
class Retry:
    """A failed attempt that will be followed by another one."""

    error: BaseException
    attempt: int
    pause_seconds: float
    seconds: float
    """Since the last progress."""

    def __str__(self) -> str:
        return f"attempt {self.attempt} failed, next in {self.pause_seconds:.1f} s: {self.error}"


@dataclass(frozen=True)
class UnfinishedUpload:
    """What an interrupted put left at the service. It costs money until it is aborted."""

    key: str
    upload_id: str
    begun_at: datetime
    """UTC, by the service's clock."""


class ObjectStore(ABC):
    """One bucket (or folder), below an optional prefix. Thread-safe."""

    @abstractmethod
    def put(self, key: str, archive: ArchiveFile, progress: Progress | None = None) -> StoredObject:
        """Store the archive under a key that has no object yet, and verify it. Safe to repeat.

        Small archives go in one request, large ones in parts; a large upload that was interrupted
        continues with the parts that the service confirms.
        """

    @abstractmethod
    def head(self, key: str) -> ObjectInfo | None:
        """The object under the key, or None."""

    @abstractmethod
    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; fewer only at the object's end."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with the prefix, in order of keys. `sha256` may be None."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object. A missing one is no error."""

    @abstractmethod
    def check(self) -> None:
        """Raise what a put would raise if the store cannot be reached, or refuses us."""

    @abstractmethod
    def address(self, key: str) -> str:
        """The full address of a key, for people."""

    def presigned(self, key: str, seconds: int) -> str | None:
        """An http(s) address from which whoever has it can download the object for that time.

        None where there is no such thing; that is the default. Asks nobody: it may be made for an
        object that is not there.
        """
        return None

    def erase(self, key: str) -> None:
        """Remove the object with all its versions. A missing one is no error.

        The default calls `delete`, for stores that keep no versions.
        """
        self.delete(key)

    def clock(self) -> datetime | None:
        """The service's current time (UTC), or None if it has no clock of its own."""
        return None

    def unfinished(self, prefix: str = "") -> builtins.list[UnfinishedUpload]:
        """Uploads below the prefix that were begun, but neither completed nor aborted.

        Always empty for stores where an interrupted put leaves nothing.
        """
        return []

    def abort(self, upload: UnfinishedUpload) -> None:  # noqa: B027 - where nothing is left behind
        """Remove an unfinished upload with its parts. One that is gone is no error.

        A put that is using it fails and starts over: abort only old ones.
        """

    def listen(self, ear: Callable[[Retry], None]) -> None:  # noqa: B027 - nothing is tried again
        """Call `ear`, from any thread, before the pause that follows a failed attempt.

        If it raises, no more attempts are made. For stores that retry by themselves.
        """


@runtime_checkable
class OpensObjectStore(Protocol):
    """What a pipeline needs of its `store` setting, as the classes in `resources/` provide it."""

    def open(self) -> ObjectStore:
        """The store that the setting describes, with retries."""
        ...

    def describe(self) -> str:
        """The address, for people, without secrets."""
        ...


@runtime_checkable
class OpensSeveralStores(Protocol):
    """A store setting that consists of others, each of which can be opened by itself."""

    def each(self) -> Sequence[OpensObjectStore]:
        """The others, in the order in which they are read."""
        ...
