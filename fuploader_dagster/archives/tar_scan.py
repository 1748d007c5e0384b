"""Reading a `.tar.zst` from front to back: what other tools wrote, what is left of damaged ones.

What must always hold: nothing that is damaged is passed over in silence. A scan ends well only if
every byte was part of a whole frame, tar ended with its end mark, nothing but zeros followed, and
no manifest was met: whoever has one that can be used does not scan.

What the headers say is read in `tar_headers`. Behind damage the tar stream is taken up again at
the next frame that begins with a member's header, as ours do.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator

from fuploader_dagster.archives.frame_walk import Chunk, Damage, Skipped, walk_frames
from fuploader_dagster.archives.memory_budget import DEFAULT_MEMORY_BYTES
from fuploader_dagster.archives.ranges import RangeSource, ReadAhead
from fuploader_dagster.archives.tar_entries import Header, read_header
from fuploader_dagster.disk.tar_headers import padding
from fuploader_dagster.errors import DamagedArchive

_CHUNK_BYTES = 2**20
_ZEROS = bytes(_CHUNK_BYTES)


class _Interrupted(Exception):
    """Bytes are missing here; the next ones begin a frame."""

    def __init__(self, damage: Damage) -> None:
        self.damage = damage


class _Ended(Exception):
    """There is nothing more."""


class _TarBytes:
    """The decompressed stream, by the number of bytes that the caller wants."""

    def __init__(self, source: RangeSource, memory_bytes: int) -> None:
        self._walk = walk_frames(source, memory_bytes)
        self._block = memoryview(b"")
        self._checked = True
        self._pending: list[Damage] = []
        self.position = 0
        """In the tar stream; behind damage, counted without what is missing."""
        self.has_manifest = False
        """Whether one was stepped over so far."""
        self.unchecked = 0
        """Bytes that were given out of frames without a checksum."""

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
    """One entry of the tar stream. Its payload must be read before the scan goes on."""

    def __init__(self, header: Header, offset: int, stream: _TarBytes, unchecked: int) -> None:
        self.name, self.size_bytes, self.kind = header
        self.offset = offset
        """Of its (first) header in the tar stream."""
        self._unchecked_before = unchecked
        self.header_bytes = stream.position - offset
        self.damage: Damage | None = None
        self._stream = stream
        self._left = self.size_bytes
        self._unread = True

    @property
    def is_unproven(self) -> bool:
        """Whether it was read whole, and part of it came from a frame without a checksum."""
        return not (self._unread or self.damage) and self._stream.unchecked > self._unchecked_before

    def chunks(self) -> Iterator[memoryview]:
        """The payload, at most 1 MiB at a time. Raises `DamagedArchive` if it is not whole."""
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


def scan(
    source: RangeSource,
    *,
    manifest_doubted: bool = False,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> Iterator[ScannedMember | Damage]:
    """Every entry that can be read, and everything that is wrong, in the order of the archive.

    Raises `TooLarge` where it would need more memory than that.

    `manifest_doubted`: that the manifest is not used was said already, with the reason.
    """
    source = ReadAhead(source)
    stream = _TarBytes(source, memory_bytes)
    resuming = False
    while True:
        offset, unchecked = stream.position, stream.unchecked
        try:
            header = read_header(stream.take)
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
        if header is None:
            break
        resuming = False
        member = ScannedMember(header, offset, stream, unchecked)
        yield member
        try:
            for _ in member.chunks():  # what the caller left
                pass
        except DamagedArchive:
            pass
        if member.damage:
            yield member.damage
            resuming = True
    yield from _behind_the_end(source, stream, manifest_doubted)


def _behind_the_end(source: RangeSource, stream: _TarBytes, doubted: bool) -> Iterator[Damage]:
    """Behind tar's end mark there may only be zeros, and frames that are stepped over."""
    found = False
    while True:
        try:
            part = bytes(stream.some(_CHUNK_BYTES))
            if part != _ZEROS[: len(part)]:  # many times as fast as strip
                yield Damage(f"{source.address} has data behind the end of its tar stream")
                return
        except _Interrupted as e:
            yield e.damage
            found = True
        except _Ended:
            break
    if stream.has_manifest and not found and not doubted:
        yield Damage(
            f"{source.address} has a manifest, but no seek table at its end (offset "
            f"{source.size_bytes}) that leads to it"
        )
