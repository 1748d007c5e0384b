"""The manifest: what is in an archive, where, and how each byte of it is checked.

What must always hold: the manifest and the seek table behind it vouch for every byte of the
archive. Frames carry their own digests, members theirs; the manifest carries its own; the seek
table follows from the manifest. So a change anywhere is found, and is found by name and offset.

An archive is: frames of members, manifest, end frame, seek table (docs/formats.md has the bytes).
Manifest and seek table are skippable frames, any zstd steps over them. The seek table is the
standard one of zstd's seekable format, in which the manifest appears as a frame that decompresses
to nothing. A reader starts at the end: footer, seek table, manifest. The end frame holds the tar
stream's end and comes behind the manifest, so that wherever an archive is cut off, either tar's
end is missing or the seek table that a manifest promises.

Members are kept as columns, which encode ten times as fast and compress better than records.
Digests are the first 16 bytes of SHA-256: 128 bits find any damage, and a full digest per member
would make archives of small messages 4 % larger. The digest of the whole archive is kept in full
beside the object.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import sha256
from itertools import accumulate
from typing import NamedTuple

import msgspec
import zstandard

from fuploader_dagster.errors import DamagedArchive
from fuploader_dagster.tarstream import BLOCK, END, padding

DIGEST_BYTES = 16
FORMAT_VERSION = 1

FRAME_HEADER = struct.Struct("<II")  # magic, length of what follows
MANIFEST_MAGIC = 0x184D2A5D
SEEK_TABLE_MAGIC = 0x184D2A5E
_MARK = b"FUPLMAN" + bytes([FORMAT_VERSION])
_MANIFEST_PREFIX_BYTES = FRAME_HEADER.size + len(_MARK) + 32

_SEEK_ENTRY = struct.Struct("<II")  # compressed size, decompressed size
_SEEK_FOOTER = struct.Struct("<IBI")  # number of frames, flags, magic
_SEEKABLE_MAGIC = 0x8F92EAB1
SEEK_FOOTER_BYTES = _SEEK_FOOTER.size


def digest(data: bytes | memoryview) -> bytes:
    """The first 16 bytes of SHA-256."""
    return sha256(data).digest()[:DIGEST_BYTES]


class MemberEntry(NamedTuple):
    """One member of an archive, as the manifest has it."""

    name: str
    size_bytes: int
    digest: bytes | None
    """The first 16 bytes of the payload's SHA-256; None in archives without a manifest."""
    offset: int
    """Where its header begins in the decompressed tar stream."""
    header_bytes: int

    @property
    def payload_offset(self) -> int:
        return self.offset + self.header_bytes

    @property
    def end(self) -> int:
        """Where the next member begins."""
        return self.payload_offset + self.size_bytes + len(padding(self.size_bytes))


class FrameEntry(NamedTuple):
    """One independent zstd frame of an archive."""

    offset: int
    """In the archive file."""
    size_bytes: int
    """As it lies in the archive file."""
    tar_offset: int
    tar_bytes: int
    """What it decompresses to."""
    digest: bytes
    """The first 16 bytes of the SHA-256 of the compressed bytes."""


class Manifest(msgspec.Struct, frozen=True):
    """The columns, as they are encoded. `members` and `frames` give them as records."""

    metadata: dict[str, str]
    names: list[str]
    sizes: list[int]
    header_blocks: list[int]
    """Length of each member's header in blocks of 512 bytes: 1, or more with pax."""
    member_digests: bytes
    frame_sizes: list[int]
    frame_tar_sizes: list[int]
    frame_digests: bytes
    end_frame: bytes
    """The end frame as it lies in the archive."""

    def offsets(self) -> list[int]:
        """Where each member's header begins in the tar stream."""
        lengths = (
            (blocks + (size + BLOCK - 1) // BLOCK) * BLOCK
            for blocks, size in zip(self.header_blocks, self.sizes, strict=True)
        )
        return list(accumulate(lengths, initial=0))[:-1]

    def member(self, index: int, offset: int) -> MemberEntry:
        """One member, without making a record of each."""
        at = index * DIGEST_BYTES
        return MemberEntry(
            self.names[index],
            self.sizes[index],
            self.member_digests[at : at + DIGEST_BYTES],
            offset,
            self.header_blocks[index] * BLOCK,
        )

    def members(self) -> list[MemberEntry]:
        return [self.member(i, offset) for i, offset in enumerate(self.offsets())]

    def frames(self) -> list[FrameEntry]:
        digests = self.frame_digests
        return [
            FrameEntry(offset, size, tar_offset, tar_bytes, digests[at : at + DIGEST_BYTES])
            for offset, size, tar_offset, tar_bytes, at in zip(
                accumulate(self.frame_sizes, initial=0),
                self.frame_sizes,
                accumulate(self.frame_tar_sizes, initial=0),
                self.frame_tar_sizes,
                range(0, len(digests), DIGEST_BYTES),
                strict=False,  # the running sums have one more: the end
            )
        ]

    @property
    def offset(self) -> int:
        """Where the manifest's own frame begins in the archive file."""
        return sum(self.frame_sizes)


def encode(manifest: Manifest) -> bytes:
    """The manifest's frame."""
    packed = zstandard.ZstdCompressor(level=3).compress(msgspec.msgpack.encode(manifest))
    body = _MARK + sha256(packed).digest() + packed
    return FRAME_HEADER.pack(MANIFEST_MAGIC, len(body)) + body


def seek_table(manifest: Manifest, manifest_frame_bytes: int) -> bytes:
    """The seek table's frame: the last bytes of an archive."""
    sizes = zip(
        [*manifest.frame_sizes, manifest_frame_bytes, len(manifest.end_frame)],
        [*manifest.frame_tar_sizes, 0, len(END)],
        strict=True,
    )
    body = b"".join(_SEEK_ENTRY.pack(*entry) for entry in sizes)
    body += _SEEK_FOOTER.pack(len(manifest.frame_sizes) + 2, 0, _SEEKABLE_MAGIC)
    return FRAME_HEADER.pack(SEEK_TABLE_MAGIC, len(body)) + body


def seek_table_bytes(footer: bytes) -> int | None:
    """Length of the whole seek table frame, from an archive's last 9 bytes; None if it has none."""
    count, flags, magic = _SEEK_FOOTER.unpack(footer)
    if magic != _SEEKABLE_MAGIC or flags & 0x7C:  # reserved bits
        return None
    entry_bytes = _SEEK_ENTRY.size + (4 if flags & 0x80 else 0)  # with a checksum each
    return int(FRAME_HEADER.size + count * entry_bytes + _SEEK_FOOTER.size)


def closing_frames(table: bytes) -> tuple[int, int] | None:
    """Compressed sizes of manifest and end frame, from a seek table.

    None for the seek tables of other programs: in ours, and as good as never in theirs, the last
    frame but one decompresses to nothing and the last to tar's end.
    """
    entry = _SEEK_ENTRY.size + (4 if table[-5] & 0x80 else 0)
    entries = table[FRAME_HEADER.size : -_SEEK_FOOTER.size]
    if len(entries) < 2 * entry:
        return None
    manifest_bytes, nothing = _SEEK_ENTRY.unpack_from(entries, len(entries) - 2 * entry)
    end_bytes, end = _SEEK_ENTRY.unpack_from(entries, len(entries) - entry)
    return (manifest_bytes, end_bytes) if (nothing, end) == (0, len(END)) else None


def is_manifest(frame: bytes) -> bool:
    """Whether a frame claims to be a manifest of ours, of any version; its beginning suffices."""
    at = FRAME_HEADER.size
    return (
        frame[:4] == MANIFEST_MAGIC.to_bytes(4, "little")
        and frame[at : at + len(_MARK) - 1] == _MARK[:-1]
    )


def decode(frame: bytes, *, where: str) -> Manifest:
    """The manifest in its frame. Raises `DamagedArchive` unless every byte is as it was written.

    `where` names the archive and offset for the error.
    """
    at = FRAME_HEADER.size
    mark = frame[at : at + len(_MARK)]
    if (
        not is_manifest(frame)
        or len(frame) < _MANIFEST_PREFIX_BYTES
        or FRAME_HEADER.unpack_from(frame)[1] != len(frame) - at
    ):
        raise DamagedArchive(f"no manifest at {where}")
    if mark != _MARK:
        raise DamagedArchive(
            f"the manifest at {where} has format version {mark[-1]}, this program reads "
            f"{FORMAT_VERSION}",
            hint="a newer fuploader_dagster may read it; zstd and tar do in any case",
        )
    packed = frame[_MANIFEST_PREFIX_BYTES:]
    if sha256(packed).digest() != frame[at + len(_MARK) : _MANIFEST_PREFIX_BYTES]:
        raise DamagedArchive(f"the manifest at {where} does not have its own digest")
    try:
        content = zstandard.ZstdDecompressor().decompress(packed)
        manifest = msgspec.msgpack.decode(content, type=Manifest)
    except (zstandard.ZstdError, msgspec.MsgspecError) as e:
        raise DamagedArchive(f"the manifest at {where} cannot be decoded: {e}") from e
    contradiction = _contradiction(manifest)
    if contradiction:
        raise DamagedArchive(f"the manifest at {where} contradicts itself: {contradiction}")
    return manifest


def _contradiction(manifest: Manifest) -> str | None:
    """What a manifest with a right digest can still have wrong: a faulty writer's work."""
    count, frames = len(manifest.names), len(manifest.frame_sizes)
    if not (
        len(manifest.sizes) == len(manifest.header_blocks) == count
        and len(manifest.member_digests) == count * DIGEST_BYTES
        and len(manifest.frame_tar_sizes) == frames
        and len(manifest.frame_digests) == frames * DIGEST_BYTES
    ):
        return "columns of different lengths"
    numbers: Sequence[Sequence[int]] = (
        manifest.sizes,
        manifest.header_blocks,
        manifest.frame_sizes,
        manifest.frame_tar_sizes,
    )
    if any(column and min(column) < 0 for column in numbers):
        return "a negative size"
    if len(set(manifest.names)) != count:
        return "two members with one name"
    tar_bytes = sum((size + BLOCK - 1) // BLOCK for size in manifest.sizes) * BLOCK
    tar_bytes += sum(manifest.header_blocks) * BLOCK
    if tar_bytes != sum(manifest.frame_tar_sizes):
        return "members and frames add up to different sizes"
    return None
