"""What makes an archive of one format: members in, frames and the end of the file out.

What must always hold: a frame was decoded again and compared with what went in, before it is given
out, or that is done with the finished file. The same members give the same frames, whatever thread
makes them.

An archive of any format is: frames, which hold the members; the pages and the manifest that list
them, where readers of the format look at nothing; and the format's own end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from fuploader_dagster.archives.manifest import Manifest
from fuploader_dagster.archives.members import MemberToPack
from fuploader_dagster.disk.tar_headers import header_bytes, padding
from fuploader_dagster.errors import DamagedArchive


class Frame(NamedTuple):
    """Some bytes of an archive, proven to decode to the members that went in."""

    data: bytes
    tar_bytes: int
    """Length of what they decode to, of the stream of all frames."""
    digest: bytes
    """The first 16 bytes of the SHA-256 of `data`."""
    member_digests: bytes
    """Those of the members that end in this frame."""
    lengths: Sequence[int]
    """Of these members, in the stream of all frames."""
    notes: Sequence[object] = ()
    """What the encoder wants to remember of each, for the end of the file."""


class Piece(NamedTuple):
    """A piece of the tar bytes of a member that is too large for one frame."""

    raw: bytes
    digest: bytes
    """The first 16 bytes of the SHA-256 of its payload, with the last piece; empty before."""


class FrameEncoder(ABC):
    """Used for one archive. `encode` and the jobs of `encode_large` may run in several threads."""

    form = ""
    """The name of the format in the manifest; empty for tar."""
    metadata: Mapping[str, str] = {}
    """What it adds to the manifest's."""
    in_threads = True
    """Whether frames can be made side by side."""
    frame_bytes = 2**20
    """Tar bytes per frame, unless a caller knows better."""

    checked_afterwards = False
    """Whether frames can only be decoded when the file is complete, so that this is done then."""

    @abstractmethod
    def encode(self, members: Sequence[MemberToPack], raw: bytes, digests: bytes) -> Frame:
        """A frame with these members; `raw` are their tar bytes, `digests` 16 bytes of each."""

    @abstractmethod
    def encode_large(
        self, member: MemberToPack, pieces: Iterator[Piece]
    ) -> Iterator[Callable[[], Frame]]:
        """Jobs that give the frames of one large member. Takes the pieces in order, in the thread
        that reads."""

    def placed(self, frame: Frame, offset: int) -> None:  # noqa: B027 - most have nothing to do
        """A frame was written at this offset. Called in the order of the archive."""

    @abstractmethod
    def end_frame(self) -> bytes:
        """What the manifest says of the end of the file. Called after the last frame."""

    @abstractmethod
    def ending(self, manifest: Manifest, manifest_bytes: int) -> bytes:
        """What follows the manifest, whose frame has so many bytes."""


def payloads(
    members: Sequence[MemberToPack], raw: bytes
) -> Iterator[tuple[MemberToPack, memoryview]]:
    """Each member with its payload, cut out of the tar bytes of all."""
    view = memoryview(raw)
    at = 0
    for member in members:
        start = at + header_bytes(member.name, member.size_bytes, member.headers)
        end = start + member.size_bytes
        yield member, view[start:end]
        at = end + len(padding(member.size_bytes))


def payload_of_pieces(
    member: MemberToPack, pieces: Iterator[Piece]
) -> Iterator[tuple[memoryview, bytes]]:
    """A large member's payload in pieces, with the digest after the last one."""
    skip = header_bytes(member.name, member.size_bytes, member.headers)
    left = member.size_bytes
    for piece in pieces:
        part = memoryview(piece.raw)[skip:][:left]
        skip = max(skip - len(piece.raw), 0)
        left -= len(part)
        yield part, piece.digest


def not_decoded() -> DamagedArchive:
    """The error for a frame that does not decode to what went in."""
    return DamagedArchive(
        "a frame did not decompress to what was compressed",
        hint="nothing was written; check this machine's memory",
    )
