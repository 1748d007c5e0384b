"""The bytes of a local archive: parts of the file, and digests as each service states them.

What must always hold:

- What is sent is what was packed: each put reads the whole file and compares its sha256 with the
  one that was computed when it was packed. A disk that rots is noticed here.
- Memory is bounded: a part is a view of the file, read while it is sent.

Services state different digests of what they hold. The algorithms by the names used here:

    md5           of the whole object                                     (S3, one request)
    md5-of-parts  md5 of the parts' binary md5s, "-", number of parts     (S3, in parts)
    crc64ecma     CRC-64/XZ (ECMA-182, reflected), as a decimal number    (COS, OSS)
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol

from fuploader_dagster.contracts.object_store import ArchiveFile
from fuploader_dagster.errors import DamagedArchive, DiskFailed, ObjectConflict
from fuploader_dagster.resources.object_stores.crc64 import Crc64

CHUNK_BYTES = 1 << 18
BLOCK_BYTES = 1 << 20

Algorithm = Literal["md5", "md5-of-parts", "crc64ecma"]


@dataclass(frozen=True)
class Part:
    """A stretch of the archive. Numbers begin at 1, as with all three services."""

    number: int
    offset: int
    size_bytes: int


def cut(size_bytes: int, wanted_part_bytes: int, max_parts: int) -> Sequence[Part]:
    """Parts of equal size (the last at most a little smaller), at least the wanted size each.

    A single part is sent in one request. The sizes are equal because the last part shows which
    archive an upload is for, and a last part of a few bytes would show little.
    """
    count = max(1, min(size_bytes // wanted_part_bytes, max_parts))
    each = -(-size_bytes // count)
    return [
        Part(index + 1, index * each, min(each, size_bytes - index * each))
        for index in range(count)
    ]


def open_archive(archive: ArchiveFile) -> BinaryIO:
    """The file. Raises `DamagedArchive` if it is gone or has another size than when packed."""
    try:
        file = archive.path.open("rb", buffering=0)
    except FileNotFoundError:
        raise DamagedArchive(
            f"{archive.path} is gone", hint="the slot will be packed again"
        ) from None
    size = os.fstat(file.fileno()).st_size
    if size != archive.size_bytes:
        file.close()
        refuse_changed(archive, size, "not computed")
    return file


def refuse_changed(archive: ArchiveFile, size_bytes: int, sha256: str) -> None:
    """Raise `DamagedArchive` unless size and digest are those from when it was packed."""
    if (size_bytes, sha256) != (archive.size_bytes, archive.sha256):
        raise DamagedArchive(
            f"{archive.path} has {size_bytes} bytes, sha256 {sha256}; when packed it had "
            f"{archive.size_bytes} bytes, sha256 {archive.sha256}",
            hint="nothing was stored; remove the archive, then the slot will be packed again",
        )


def conflict(archive: ArchiveFile, address: str, size_bytes: int, digest: str) -> ObjectConflict:
    """The error for an object of this size and digest that has the archive's key."""
    return ObjectConflict(
        f"{address} has {size_bytes} bytes, {digest}; "
        f"{archive.path} has {archive.size_bytes} bytes, sha256 {archive.sha256}",
        hint="nothing was changed; find out who wrote it, or give the archive another key",
    )


class View(io.RawIOBase):
    """A part of the archive as a file of its own, for client libraries that read from a file."""

    def __init__(self, archive: ArchiveFile, part: Part) -> None:
        super().__init__()
        self._path = archive.path
        self._file = open_archive(archive)
        self._part = part
        self._position = 0

    def __len__(self) -> int:
        return self._part.size_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._part.size_bytes}
        self._position = max(0, base[whence] + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._part.size_bytes - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        try:
            data = os.pread(self._file.fileno(), wanted, self._part.offset + self._position)
        except OSError as error:  # otherwise the client library would blame the network
            raise DiskFailed(
                f"{self._path} cannot be read: {error.strerror}",
                hint="check the disk (dmesg); if you remove the archive, it will be packed again",
            ) from error
        self._position += len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class Blocks:
    """A view that is sent in large pieces: client libraries read a file 16 KiB at a time, which for
    256 MiB is 16,000 reads and writes between which the sending threads take turns.
    """

    def __init__(self, view: View) -> None:
        self._view = view

    def __len__(self) -> int:
        return len(self._view)

    def seek(self, offset: int) -> int:
        """A client library that sends it again, to another host, goes back to the beginning."""
        return self._view.seek(offset)

    def __iter__(self) -> Iterator[bytes]:
        while block := self._view.read(BLOCK_BYTES):
            yield block


def _chunks(descriptor: int, offset: int, size_bytes: int) -> Iterator[memoryview]:
    """The bytes of a file, through one small buffer that stays in the processor's cache."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    end = offset + size_bytes
    while offset < end:
        count = os.preadv(descriptor, [buffer[: min(CHUNK_BYTES, end - offset)]], offset)
        if count == 0:
            return  # the file has become shorter: the digest will show it
        yield buffer[:count]
        offset += count


class Hash(Protocol):
    """What `hashlib` and `Crc64` have in common."""

    def update(self, data: memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


_HASHES: dict[str, Callable[[], Hash]] = {
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "crc64ecma": Crc64,
}


class Digests:
    """Digests of one archive during one put, each computed at most once. Thread-safe."""

    def __init__(self, archive: ArchiveFile) -> None:
        self._archive = archive
        self._whole: dict[str, str] = {}
        self._parts: dict[Part, bytes] = {}

    def read_through(
        self, algorithms: Iterable[str], abandoned: threading.Event | None = None
    ) -> None:
        """Compare the file's sha256 with the archive's; compute others in the same pass.

        Returns early, without a verdict, when it is `abandoned`.
        """
        sha256, size = hashlib.sha256(), 0
        others = {name: _HASHES[name]() for name in algorithms if name in _HASHES}
        with open_archive(self._archive) as file:
            for chunk in _chunks(file.fileno(), 0, self._archive.size_bytes):
                if abandoned is not None and abandoned.is_set():
                    return
                size += len(chunk)
                for digest in (sha256, *others.values()):
                    digest.update(chunk)
        refuse_changed(self._archive, size, sha256.hexdigest())
        self._whole |= {name: digest.hexdigest() for name, digest in others.items()}

    def md5_of(self, part: Part) -> bytes:
        """Binary md5 of a part."""
        if part not in self._parts:
            digest = hashlib.md5(usedforsecurity=False)
            with open_archive(self._archive) as file:
                for chunk in _chunks(file.fileno(), part.offset, part.size_bytes):
                    digest.update(chunk)
            self._parts[part] = digest.digest()
        return self._parts[part]

    def whole(self, algorithm: Algorithm, part_bytes: int) -> str:
        """The digest as the service would state it for our bytes, in parts of `part_bytes`."""
        if algorithm == "md5-of-parts":
            size = self._archive.size_bytes
            parts = [
                Part(number + 1, offset, min(part_bytes, size - offset))
                for number, offset in enumerate(range(0, size, part_bytes))
            ]
            joined = b"".join(self.md5_of(part) for part in parts)
            return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"
        if algorithm not in self._whole:
            self.read_through([algorithm])
        return self._whole[algorithm]
