"""Where the bytes of an archive come from when it is read: a local file, or an object in a store.

What must always hold: `read` returns exactly the bytes asked for; fewer only at the end. Each read
of a stored object is one range request, so readers make few requests, and small ones.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Protocol

from fuploader_dagster.contracts.object_store import ObjectInfo, ObjectStore
from fuploader_dagster.errors import StoreRefused


class RangeSource(Protocol):
    """Random access to the bytes of one archive. Safe to use from several threads."""

    @property
    def address(self) -> str:
        """Path or URL, for error messages."""

    @property
    def size_bytes(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; fewer only at the end."""

    def close(self) -> None:
        """Close open files. May be repeated."""


class _Wrapper:
    """A source that reads from another one, which it closes."""

    def __init__(self, source: RangeSource) -> None:
        self.address, self.size_bytes, self._source = source.address, source.size_bytes, source

    def close(self) -> None:
        self._source.close()


class LocalFile:
    """An archive on this machine."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise StoreRefused(f"there is no archive {path}") from None
        self.size_bytes = os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        assert self._descriptor is not None, "closed"  # noqa: S101
        parts = []
        while length > 0:
            part = os.pread(self._descriptor, length, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class StoredArchive:
    """An archive in an object store. Asks the store for its size, unless a listing gave `info`."""

    def __init__(self, store: ObjectStore, key: str, info: ObjectInfo | None = None) -> None:
        self.address = store.address(key)
        self._store, self._key = store, key
        info = info or store.head(key)
        if info is None:
            raise StoreRefused(f"there is no archive {self.address}")
        self.size_bytes = info.size_bytes
        self.sha256 = info.sha256
        """The digest stored with the object, if any."""

    def read(self, offset: int, length: int) -> bytes:
        return self._store.get_range(self._key, offset, length)

    def close(self) -> None:
        """The store belongs to the caller."""


class CountedReads(_Wrapper):
    """A source that counts its reads. Safe to use from several threads."""

    def __init__(self, source: RangeSource) -> None:
        super().__init__(source)
        self.reads = 0
        self.bytes_read = 0
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        data = self._source.read(offset, length)
        with self._lock:
            self.reads += 1
            self.bytes_read += len(data)
        return data


class ReadAhead(_Wrapper):
    """Reads a source from front to back in large steps: one request per `step_bytes`.

    Not safe to use from several threads: each reader makes its own.
    """

    def __init__(self, source: RangeSource, step_bytes: int = 4 * 2**20) -> None:
        super().__init__(source)
        self._step, self._offset, self._block = step_bytes, 0, b""

    def read(self, offset: int, length: int) -> bytes:
        start = offset - self._offset
        if start < 0 or start + length > len(self._block):
            if length >= self._step:
                return self._source.read(offset, length)
            self._offset, self._block = offset, self._source.read(offset, self._step)
            start = 0
        return self._block[start : start + length]

    def close(self) -> None:
        """The source belongs to the caller."""


class WithTail(_Wrapper):
    """Reads the end of a source once, so that later reads there cost no request."""

    def __init__(self, source: RangeSource, tail_offset: int) -> None:
        super().__init__(source)
        self._tail_offset = tail_offset
        self._tail = source.read(tail_offset, source.size_bytes - tail_offset)

    def read(self, offset: int, length: int) -> bytes:
        if offset >= self._tail_offset:
            start = offset - self._tail_offset
            return self._tail[start : start + length]
        return self._source.read(offset, length)
