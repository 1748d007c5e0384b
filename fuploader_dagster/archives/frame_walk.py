"""Walks over the zstd frames of an archive from front to back, even over damage.

What must always hold: each stretch of damage is reported once, where it begins. No bytes are
returned from a frame that states its size (all of ours do) before its checksum was compared.

Frames that do not state their size (`tar --zstd`, FUploader) are returned as they are decoded; zstd
checks them only at their end. From a frame without a checksum (FUploader, bsdtar and zstd's Python
packages write none) zstd decodes many changed bytes without noticing. Such bytes are marked as not
checked; only their digest, if there is one, can prove them.

After damage, only frames that state their size are decoded: bytes may look like a frame by chance,
and must prove themselves first.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import zstandard

from fuploader_dagster.archives.manifest import FRAME_HEADER, is_manifest
from fuploader_dagster.archives.memory_budget import too_large
from fuploader_dagster.archives.ranges import RangeSource
from fuploader_dagster.errors import DamagedArchive

_ZSTD_MAGIC = 0xFD2FB528
_SKIPPABLE_MAGIC = 0x184D2A50  # to 0x184D2A5F
_MARKS = [_ZSTD_MAGIC.to_bytes(4, "little")] + [
    (_SKIPPABLE_MAGIC + n).to_bytes(4, "little") for n in range(16)
]
_FRAME_HEADER_LIMIT = 18  # the longest header of a zstd frame
_HOLD_BYTES = 64 * 2**20
"""Frames that state at most this size are decoded whole before any of it is returned."""
_STREAMED_STEP = 2**10
"""In compressed bytes. Up to one step before damage is lost. Small also because four bytes can
stand for 128 KiB, and a step is decoded at once: at most 32 MiB."""
_SEARCH_BYTES = 2**20
_LARGEST_WINDOW = 2**31
"""The largest of zstd, with `--ultra --long=31`."""


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong with an archive."""

    what: str
    """A sentence that names the offset in the archive."""
    member: str | None = None
    """The member that is lost, if its name is known."""

    def __str__(self) -> str:
        return self.what if self.member is None else f"{self.member!r}: {self.what}"


class Chunk(NamedTuple):
    """Decompressed bytes."""

    data: bytes
    starts_frame: bool
    checked: bool
    """Whether its frame has a checksum. zstd compares it before the next frame's first chunk."""


class Skipped(NamedTuple):
    """A skippable frame was skipped."""

    is_manifest: bool


def walk_frames(source: RangeSource, memory_bytes: int) -> Iterator[Chunk | Skipped | Damage]:
    """All frames in order. Each stretch of damage is reported once, where it begins.

    Raises `TooLarge` for a frame that zstd can only decode with more memory.
    """
    offset = 0
    damaged = False
    while offset < source.size_bytes:
        try:
            if damaged:
                offset = _next_frame(source, offset)
            head = source.read(offset, _FRAME_HEADER_LIMIT)
            magic = int.from_bytes(head[:4], "little")
            if magic == _ZSTD_MAGIC and len(head) > 4:
                offset = yield from _decode(source, offset, head, memory_bytes, must_hold=damaged)
                damaged = False
            elif magic & ~0xF == _SKIPPABLE_MAGIC and len(head) >= FRAME_HEADER.size:
                end = offset + FRAME_HEADER.size + FRAME_HEADER.unpack_from(head)[1]
                if end > source.size_bytes:
                    raise _cut_off(source, offset)
                yield Skipped(is_manifest(head))
                offset, damaged = end, False
            elif offset < source.size_bytes:
                raise DamagedArchive(f"{source.address} has no zstd frame at offset {offset}")
        except DamagedArchive as e:
            if not damaged:
                yield Damage(e.message)
            damaged = True
            offset += 1


def _decode(
    source: RangeSource, offset: int, head: bytes, memory_bytes: int, *, must_hold: bool
) -> Generator[Chunk, None, int]:
    """Decode one frame; returns where it ends."""
    try:
        parameters = zstandard.get_frame_parameters(head)
    except zstandard.ZstdError as e:
        raise _damaged_frame(source, offset, offset, e) from e
    content_size, checked = parameters.content_size, parameters.has_checksum
    hold = content_size <= _HOLD_BYTES  # an unknown size is a very large number
    if must_hold and not hold:
        raise DamagedArchive(f"the frame at offset {offset} of {source.address} states no size")
    window = parameters.window_size
    if not hold and memory_bytes < window <= _LARGEST_WINDOW:
        raise too_large(f"the frame at offset {offset} of {source.address}", window, memory_bytes)
    step = min(content_size // 2 + 64, 2**18) if hold else _STREAMED_STEP
    largest = min(max(memory_bytes, _HOLD_BYTES), _LARGEST_WINDOW)
    decoder = zstandard.ZstdDecompressor(max_window_size=largest).decompressobj()
    held = []
    at = offset
    first = True
    while not decoder.eof:
        block = source.read(at, step)
        if not block:
            raise _cut_off(source, offset)
        try:
            data = decoder.decompress(block)
        except zstandard.ZstdError as e:
            raise _damaged_frame(source, offset, at, e) from e
        at += len(block)
        if hold:
            held.append(data)
        elif data:
            yield Chunk(data, first, checked)
            first = False
    if hold:
        yield Chunk(b"".join(held), True, checked)
    return at - len(decoder.unused_data)


def _next_frame(source: RangeSource, offset: int) -> int:
    """Where the next thing that looks like a frame begins; the archive's end if there is none."""
    while block := source.read(offset, _SEARCH_BYTES):
        found = [at for at in map(block.find, _MARKS) if at >= 0]
        if found:
            return offset + min(found)
        if offset + len(block) >= source.size_bytes:
            break
        offset += len(block) - 3  # a mark may cross the border of two blocks
    return source.size_bytes


def _cut_off(source: RangeSource, offset: int) -> DamagedArchive:
    return DamagedArchive(
        f"{source.address} is cut off at offset {source.size_bytes}, within the frame that begins "
        f"at offset {offset}"
    )


def _damaged_frame(
    source: RangeSource, offset: int, at: int, error: zstandard.ZstdError
) -> DamagedArchive:
    return DamagedArchive(
        f"the frame at offset {offset} of {source.address} is damaged at offset {at} or later: "
        f"{error}"
    )
