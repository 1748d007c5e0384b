"""Reading a `.tar.zst` from front to back: one from another tool, or what is left of a damaged one.

What must always hold: damage is never skipped in silence. A scan reports no damage only if every
byte was part of a whole frame, tar ended with its end mark, only zeros followed, and there was no
manifest: an archive with a usable manifest is not scanned.

`tar_entries` reads the headers. After damage the scan continues at the next frame that begins with
a member's header, as ours do.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import suppress

from fuploader_dagster.archives.frame_walk import Chunk, Damage, Skipped, walk_frames
from fuploader_dagster.archives.memory_budget import DEFAULT_MEMORY_BYTES
from fuploader_dagster.archives.ranges import RangeSource, ReadAhead
from fuploader_dagster.archives.tar_entries import Entry, read_entry
from fuploader_dagster.disk.tar_headers import padding
from fuploader_dagster.errors import DamagedArchive

_CHUNK_BYTES = 2**20
_ZEROS = bytes(_CHUNK_BYTES)


class _Interrupted(Exception):
    """Bytes are missing here; the next ones begin a frame."""

    def __init__(self, damage: Damage) -> None:
        self.damage = damage


class _Ended(Exception):
    """The archive has no more bytes."""


class _TarBytes:
    """The decompressed stream, in pieces of the length that the caller wants."""

    def __init__(self, source: RangeSource, memory_bytes: int) -> None:
        self._walk = walk_frames(source, memory_bytes)
        self._block = memoryview(b"")
        self._checked = True
        self._pending: list[Damage] = []
        self.position = 0
        """In the tar stream; after damage, without the missing bytes."""
        self.has_manifest = False
        """Whether one was skipped so far."""
        self.unchecked = 0
        """Number of bytes so far from frames without a checksum."""

    def _fill(self) -> Chunk:
        for event in self._walk:
            if isinstance(event, Skipped):
                self.has_manifest |= event.is_manifest
            elif isinstance(event, Damage):
                self._block = memoryview(b"")
                raise _Interrupted(event)
            elif event.data:
                self._checked = event.checked
                return event
        raise _Ended

    def some(self, limit: int) -> memoryview:
        """At least one byte, at most `limit`. Raises `_Interrupted` or `_Ended`."""
        if not self._block:
            self._block = memoryview(self._fill().data)
        part, self._block = self._block[:limit], self._block[limit:]
        self.position += len(part)
        if not self._checked:
            self.unchecked += len(part)
        return part

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        parts = []
        while count:
            part = self.some(count)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def skip_to_next_frame(self) -> None:
        while not (chunk := self._fill()).starts_frame:
            pass
        self._block = memoryview(chunk.data)


class ScannedMember:
    """One entry of the tar stream. Its payload must be read before the scan continues."""

    def __init__(self, entry: Entry, offset: int, stream: _TarBytes, unchecked: int) -> None:
        self.name, self.size_bytes, self.kind, self.headers = entry
        self.offset = offset
        """Where its (first) header begins in the tar stream."""
        self._unchecked_before = unchecked
        self.header_bytes = stream.position - offset
        self.damage: Damage | None = None
        self._stream = stream
        self._left = self.size_bytes
        self._unread = True

    @property
    def is_unproven(self) -> bool:
        """Whether it was read whole, and partly from a frame without a checksum."""
        return not (self._unread or self.damage) and self._stream.unchecked > self._unchecked_before

    def chunks(self) -> Iterator[memoryview]:
        """The payload, at most 1 MiB at a time. Raises `DamagedArchive` if it is damaged."""
        try:
            while self._left and self._unread:
                part = self._stream.some(min(self._left, _CHUNK_BYTES))
                self._left -= len(part)
                yield part
            if self._unread:
                self._stream.take(len(padding(self.size_bytes)))
        except _Interrupted as e:
            self.damage = Damage(e.damage.what, self.name)
        except _Ended:
            self.damage = Damage("the archive is cut off within this member", self.name)
        self._unread = False
        if self.damage:
            raise DamagedArchive(str(self.damage))

    def read_to_end(self) -> bool:
        """Read what is left of the payload; False if it is damaged (the scan reports that)."""
        with suppress(DamagedArchive):
            for _ in self.chunks():
                pass
        return self.damage is None


def scan(
    source: RangeSource,
    *,
    manifest_doubted: bool = False,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> Iterator[ScannedMember | Damage]:
    """Every entry that can be read, and all damage, in the order of the archive.

    Raises `TooLarge` if it needs more memory than `memory_bytes`. `manifest_doubted`: the caller
    has already reported why the manifest is not used.
    """
    source = ReadAhead(source)
    stream = _TarBytes(source, memory_bytes)
    resuming = False
    while True:
        offset, unchecked = stream.position, stream.unchecked
        try:
            entry = read_entry(stream.take)
        except _Interrupted as e:
            yield e.damage
            resuming = True
            continue
        except _Ended:
            yield Damage(
                f"{source.address} is cut off at offset {source.size_bytes}: tar's end mark is "
                "missing"
            )
            return
        except tarfile.TarError as e:
            if not resuming:
                yield Damage(
                    f"{source.address} has no tar header at {offset} of the tar stream: {e}"
                )
            resuming = True
            try:
                stream.skip_to_next_frame()
            except _Interrupted as gap:
                yield gap.damage
            except _Ended:
                return
            continue
        if entry is None:
            break
        resuming = False
        member = ScannedMember(entry, offset, stream, unchecked)
        yield member
        if not member.read_to_end() and member.damage:
            yield member.damage
            resuming = True
    yield from _after_the_end(source, stream, manifest_doubted)


def _after_the_end(source: RangeSource, stream: _TarBytes, doubted: bool) -> Iterator[Damage]:
    """Only zeros and skippable frames may follow tar's end mark."""
    found = False
    while True:
        try:
            part = bytes(stream.some(_CHUNK_BYTES))
            if part != _ZEROS[: len(part)]:  # many times as fast as strip
                yield Damage(f"{source.address} has data after the end of its tar stream")
                return
        except _Interrupted as e:
            yield e.damage
            found = True
        except _Ended:
            break
    if stream.has_manifest and not found and not doubted:
        yield Damage(
            f"{source.address} has a manifest, but no seek table at its end (offset "
            f"{source.size_bytes}) leads to it"
        )
