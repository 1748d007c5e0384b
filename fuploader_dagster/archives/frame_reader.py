"""Reads members of an archive by its manifest, and compares each byte with a digest.

What must always hold: each byte returned comes from a frame whose bytes in the archive match the
digest in the manifest. A member returned as whole matches its own digest too, and what the format
says of it besides (in a tar: header and padding).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

import zstandard

from fuploader_dagster.archives.entries import FrameEntry, MemberEntry
from fuploader_dagster.archives.manifest import DIGEST_BYTES, Manifest, digest
from fuploader_dagster.archives.memory_budget import too_large
from fuploader_dagster.archives.ranges import RangeSource, ReadAhead
from fuploader_dagster.disk.tar_headers import member_header, padding
from fuploader_dagster.errors import DamagedArchive

_READ_AHEAD_BYTES = 8 * 2**20
_GAP_BYTES = 4 * 2**20
"""Of the tar stream: from this size on, another request is cheaper than reading the gap."""


class FrameReader(ABC):
    """Members in a stretch of an archive. Not safe to use from several threads.

    A class for each format: `payload` finds a member in the stream of all frames, `decode_frame`
    says what a frame holds of it; unless overridden, it is a zstd frame.
    """

    stream_name = "stream"
    """What all frames together are, for error messages."""

    def __init__(
        self,
        source: RangeSource,
        manifest: Manifest,
        frames: Sequence[FrameEntry],
        start: int,
        stop: int,
        *,
        memory_bytes: int,
    ) -> None:
        """Reads what decodes to the stream from `start` to `stop` in one request, or several of 8
        MiB. `frames`: those of the manifest."""
        self.source, self.manifest = source, manifest
        self.memory_bytes = memory_bytes
        self.address = source.address
        self.frames = frames
        first = bisect_right(frames, start, key=lambda f: f.tar_offset) - 1
        last = bisect_right(frames, max(start, stop - 1), key=lambda f: f.tar_offset)
        self._frames = frames[max(first, 0) : last]
        self._starts = [f.tar_offset for f in self._frames]
        stretch = sum(f.size_bytes for f in self._frames)
        self._source = ReadAhead(source, max(1, min(stretch, _READ_AHEAD_BYTES)))
        self._decompressor = zstandard.ZstdDecompressor()
        self._last: tuple[int, bytes | DamagedArchive] = (-1, b"")

    @abstractmethod
    def payload(self, member: MemberEntry) -> Iterator[memoryview]:
        """A member's payload in pieces. Raises `DamagedArchive`, at the latest after the last
        piece, if the member does not match the manifest."""

    def check(self, member: MemberEntry) -> None:
        """Compare a member with the manifest. Raises `DamagedArchive`."""
        for _ in self.payload(member):
            pass

    def decode_frame(self, frame: FrameEntry, data: bytes) -> bytes:
        """What a frame holds of the stream, given its bytes, which match their digest. Raises
        `ValueError` if it cannot be decoded."""
        try:
            # Checked first: zstd would allocate whatever the frame states.
            as_stated = zstandard.frame_content_size(data) == frame.tar_bytes
            return self._decompressor.decompress(data) if as_stated else b""
        except zstandard.ZstdError as e:
            raise ValueError(str(e)) from e

    def stream(self, start: int, stop: int) -> Iterator[memoryview]:
        """The bytes of the stream from `start` to `stop`, in pieces."""
        while start < stop:
            index = bisect_right(self._starts, start) - 1
            frame = self._frames[index]
            begin = start - frame.tar_offset
            piece = memoryview(self._content(index))[begin : begin + stop - start]
            yield piece
            start += len(piece)

    def _content(self, index: int) -> bytes:
        """A frame's content. The last content, or damage, is kept: several members share it."""
        if self._last[0] != index:
            try:
                self._last = (index, self._decode(self._frames[index]))
            except DamagedArchive as e:
                self._last = (index, e)
        content = self._last[1]
        if isinstance(content, DamagedArchive):
            raise content
        return content

    def _decode(self, frame: FrameEntry) -> bytes:
        needed = frame.size_bytes + frame.tar_bytes
        if needed > self.memory_bytes:
            what = f"the frame at offset {frame.offset} of {self.address}"
            raise too_large(what, needed, self.memory_bytes)
        try:
            data = self._source.read(frame.offset, frame.size_bytes)
        except OSError as e:
            raise self._damaged(frame, f"it cannot be read: {e.strerror}") from e
        if len(data) != frame.size_bytes:
            raise self._damaged(frame, f"the archive ends at {frame.offset + len(data)}")
        if digest(data) != frame.digest:
            raise self._damaged(frame, "its bytes do not match the digest in the manifest")
        try:
            content = self.decode_frame(frame, data)
        except ValueError as e:
            raise self._damaged(frame, str(e)) from e
        if len(content) != frame.tar_bytes:
            raise self._damaged(frame, "its length does not match the manifest")
        return content

    def _damaged(self, frame: FrameEntry, what: str) -> DamagedArchive:
        return DamagedArchive(
            f"the frame at offset {frame.offset} of {self.address} ({frame.size_bytes} bytes) is "
            f"damaged: {what}"
        )

    def whole(self, member: MemberEntry) -> tuple[bytes, int] | None:
        """The content of the frame that holds the whole member, and where it begins there; None if
        it is in several frames."""
        index = bisect_right(self._starts, member.offset) - 1
        frame = self._frames[index]
        if member.end > frame.tar_offset + frame.tar_bytes:
            return None
        return self._content(index), member.offset - frame.tar_offset

    def wrong(self, member: MemberEntry, what: str) -> DamagedArchive:
        """The error for a member that is not what the manifest says."""
        return DamagedArchive(
            f"the member at {member.offset} of the {self.stream_name} of {self.address} is wrong: "
            f"{what}"
        )


class TarReader(FrameReader):
    """Members of a `.tar.zst`."""

    stream_name = "tar stream"

    def payload(self, member: MemberEntry) -> Iterator[memoryview]:
        if (found := self.whole(member)) is not None:
            yield self._within(found[0], member, found[1])
        else:
            yield from self._over_frames(member)

    def _within(self, content: bytes, member: MemberEntry, start: int) -> memoryview:
        """The payload of a member that is in one frame, as nearly all are: the fast way."""
        begin = start + member.header_bytes
        end = begin + member.size_bytes
        payload = memoryview(content)[begin:end]
        if content[start:begin] != member_header(member.name, member.size_bytes, member.headers):
            raise self.wrong(member, "its tar header does not match")
        if not content.startswith(padding(member.size_bytes), end):
            raise self.wrong(member, "its padding is not zero")
        if sha256(payload).digest()[:DIGEST_BYTES] != member.digest:
            raise self.wrong(member, "it does not match its digest")
        return payload

    def _over_frames(self, member: MemberEntry) -> Iterator[memoryview]:
        header = b"".join(self.stream(member.offset, member.payload_offset))
        if header != member_header(member.name, member.size_bytes, member.headers):
            raise self.wrong(member, "its tar header does not match")
        found = sha256()
        payload_end = member.payload_offset + member.size_bytes
        for piece in self.stream(member.payload_offset, payload_end):
            found.update(piece)
            yield piece
        if any(b"".join(self.stream(payload_end, member.end))):
            raise self.wrong(member, "its padding is not zero")
        if found.digest()[:DIGEST_BYTES] != member.digest:
            raise self.wrong(member, "it does not match its digest")


class Stretch(NamedTuple):
    """Members that are close together, from `start` to `stop` of the tar stream."""

    members: Sequence[MemberEntry]
    start: int
    stop: int


def stretches(
    members: Sequence[MemberEntry], frames: Sequence[FrameEntry], tar_bytes: int = 16 * 2**20
) -> Iterator[Stretch]:
    """Divide an archive into stretches of about `tar_bytes`, each to be read by one thread.

    `members` may be only some of the members; those that are far apart are not read together.
    """
    starts = {f.tar_offset for f in frames}
    first = 0
    for i in range(1, len(members) + 1):
        start, stop = members[first].offset, members[i - 1].end
        if (
            i == len(members)
            or (stop - start >= tar_bytes and stop in starts)
            or members[i].offset - stop >= _GAP_BYTES
        ):
            yield Stretch(members[first:i], start, stop)
            first = i
