"""Writing an archive: a sealed slot, and what came out of it, becomes one verified `.tar.zst`.

What must always hold:

- An archive under its final name is whole, synced, and was read back.
- Identical members give identical bytes, whatever machine, source or number of threads (with the
  same zstd library: `zstandard` bundles its own, and another version may compress differently).
- Every byte was compared with what was recorded about it: the whole segment with its digest if the
  seal has one, otherwise each payload with its own. A slot that contradicts its seal or its index
  gives no archive, but a `DamagedSlot` (or what its source says) that names the member.

Format: docs/formats.md, "Archive". How it works: the members are divided into frames of about 1 MiB
at their boundaries. The frames are compressed independently, in a few threads, and written in
order. Each thread has one frame in memory, so a slot of any size takes the same few megabytes. Each
source begins with a frame of its own, so that it is compared with its own digest.

Reading back is complete and cheap: each frame is decompressed right away and compared, byte by
byte, with what was compressed; the finished file is read from the disk, and its digest compared
with that of what was written. Together this proves that the file decompresses to the members that
were checked.

Two kinds of digest: SHA-256 for what travels with the archive, XXH3-128, which takes a thirtieth of
the time, for what is compared on this machine. Both have 128 bits or more: no damage escapes them.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import zstandard
from xxhash import xxh3_128

from fuploader_dagster.archives.manifest import (
    DIGEST_BYTES,
    PLAIN,
    WITH_HEADERS,
    Manifest,
    digest,
    encode,
    encode_pages,
    pages_frame,
)
from fuploader_dagster.archives.members import MemberSource
from fuploader_dagster.archives.seek_table import seek_table
from fuploader_dagster.contracts.object_store import ArchiveFile
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import fsync_file, replace_durably
from fuploader_dagster.disk.tar_headers import END, member_header, padding
from fuploader_dagster.disk.temporaries import temporary_file
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import DamagedArchive, DamagedData, DamagedSlot

FRAME_BYTES = 2**20
"""Tar bytes per frame. Archives are 3-5 % larger than with a single frame (docs/benchmarks.md)."""

_DEFAULT_LEVEL = 3
_DEFAULT_HASH_LOG = 14
"""For zstd's default level, instead of 17: a smaller hash table leaves room in the core's cache.
Saves a seventh of zstd's time, and makes archives at most 1 % larger (docs/benchmarks.md). Other
levels use zstd's own values."""

_READ_BACK_BYTES = 2**18


def write_archive(
    path: Path,
    *sources: MemberSource,
    level: int = _DEFAULT_LEVEL,
    threads: int = 1,
    frame_bytes: int = FRAME_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> ArchiveFile:
    """Pack all members of these sources into a new archive at `path`, replacing an older one.

    `metadata` goes into the manifest and, unchanged, into the result; archives are identical only
    if it contains no times or machine names. Raises the `damage` of a source (naming the member),
    `DiskFull`, or `DamagedArchive` if the disk returns something other than what was written.
    """
    members = [m for source in sources for m in source.members]
    if len({m.name for m in members}) != len(members):
        raise DamagedSlot(f"{path} cannot be packed: two members have the same name")
    with temporary_file(path) as temporary:
        encoder = _FrameEncoder(level)
        jobs = chain.from_iterable(_jobs(source, frame_bytes, encoder) for source in sources)
        with naming_disk_trouble(path), closing(_in_order(jobs, threads)) as frames:
            end = encoder.encode(END, b"").data
            written = _write(temporary, sources, frames, end, metadata or {})
            fsync_file(temporary)
            reached(CrashPoint.ARCHIVE_SYNCED)
        _read_back(temporary, written)
        reached(CrashPoint.ARCHIVE_VERIFIED)
        replace_durably(temporary, path)
        reached(CrashPoint.ARCHIVE_NAMED)
    return ArchiveFile(path, written.size_bytes, written.sha256.hex(), dict(metadata or {}))


class _Written(NamedTuple):
    size_bytes: int
    sha256: bytes
    xxh128: str


class _Frame(NamedTuple):
    """A compressed frame, proven to decompress to its original bytes."""

    data: bytes
    tar_bytes: int
    digest: bytes
    member_digests: bytes
    """Those of the members that end in this frame."""


def _write(
    path: Path,
    sources: Sequence[MemberSource],
    frames: Iterator[_Frame],
    end_frame: bytes,
    metadata: Mapping[str, str],
) -> _Written:
    whole, quick = sha256(), xxh3_128()
    size = 0
    member_digests, frame_digests = bytearray(), bytearray()
    frame_sizes: list[int] = []
    frame_tar_sizes: list[int] = []
    with path.open("wb") as file:

        def put(data: bytes) -> None:
            nonlocal size
            file.write(data)
            whole.update(data)
            quick.update(data)
            size += len(data)

        for frame in frames:
            put(frame.data)
            reached(CrashPoint.ARCHIVE_PARTLY_WRITTEN)
            frame_sizes.append(len(frame.data))
            frame_tar_sizes.append(frame.tar_bytes)
            frame_digests += frame.digest
            member_digests += frame.member_digests
        members = [m for source in sources for m in source.members]
        lengths = [length for source in sources for length in source.lengths]
        names = [m.name for m in members]
        sizes = [m.size_bytes for m in members]
        headers = [m.headers for m in members]
        pages = encode_pages(names, sizes, lengths, bytes(member_digests), headers)
        manifest = Manifest(
            metadata=dict(sorted(metadata.items())),
            member_count=len(names),
            payload_bytes=sum(sizes),
            page_sizes=[len(page) for page in pages],
            page_digests=b"".join(digest(page) for page in pages),
            frame_sizes=frame_sizes,
            frame_tar_sizes=frame_tar_sizes,
            frame_digests=bytes(frame_digests),
            end_frame=end_frame,
        )
        put(pages_frame(pages))
        packed = encode(manifest, WITH_HEADERS if any(headers) else PLAIN)
        put(packed)
        put(end_frame)
        put(seek_table(manifest, len(packed)))
    return _Written(size, whole.digest(), quick.hexdigest())


def _read_back(path: Path, written: _Written) -> None:
    """Compare the file on the disk (not the page cache) with its digest."""
    quick = xxh3_128()
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while block := file.read(_READ_BACK_BYTES):
            quick.update(block)
        size = file.tell()
    if (size, quick.hexdigest()) != (written.size_bytes, written.xxh128):
        raise DamagedArchive(
            f"{path} was written as {written.size_bytes} bytes with XXH128 {written.xxh128}, but "
            f"the disk returns {size} bytes with {quick.hexdigest()}",
            hint="the slot is untouched; check the disk (dmesg, SMART), then pack again",
        )


# -- cutting into frames -----------------------------------------------------------------------


class FrameCut(NamedTuple):
    """`members[first:last]`, or the tar bytes from `start` to `stop` of a single member."""

    first: int
    last: int
    start: int = 0
    stop: int | None = None


def cut_frames(lengths: Sequence[int], frame_bytes: int) -> Iterator[FrameCut]:
    """Divide members into frames, given each member's length in the tar stream.

    Members share a frame while they fit. A member longer than a frame gets its own frames, up to
    four times as long (nobody reads half of it, and it compresses better).
    """
    first, filled = 0, 0
    for i, length in enumerate(lengths):
        if filled and filled + length > frame_bytes:
            yield FrameCut(first, i)
            first, filled = i, 0
        if length > frame_bytes:
            for start in range(0, length, 4 * frame_bytes):
                yield FrameCut(i, i + 1, start, min(start + 4 * frame_bytes, length))
            first = i + 1
        else:
            filled += length
    if filled:
        yield FrameCut(first, len(lengths))


class _FrameEncoder:
    """Compresses frames, and proves that they decompress. Each thread has its own contexts."""

    def __init__(self, level: int) -> None:
        self._parameters = zstandard.ZstdCompressionParameters(
            compression_level=level,
            hash_log=_DEFAULT_HASH_LOG if level == _DEFAULT_LEVEL else 0,
            write_checksum=True,
        )
        self._contexts = threading.local()

    def encode(self, raw: bytes, member_digests: bytes) -> _Frame:
        contexts = self._contexts
        if not hasattr(contexts, "compressor"):
            contexts.compressor = zstandard.ZstdCompressor(compression_params=self._parameters)
            contexts.decompressor = zstandard.ZstdDecompressor()
        data: bytes = contexts.compressor.compress(raw)
        if contexts.decompressor.decompress(data) != raw:
            raise DamagedArchive(
                "a frame did not decompress to what was compressed",
                hint="nothing was written; check this machine's memory",
            )
        return _Frame(data, len(raw), digest(data), member_digests)


def _jobs(
    source: MemberSource, frame_bytes: int, encoder: _FrameEncoder
) -> Iterator[Callable[[], _Frame]]:
    """One job per frame. Reads here, in order; a digest of the whole is compared here too."""
    if source.xxh128 is None:
        for raw, check in _frames_to_check(source, frame_bytes):
            yield lambda raw=raw, check=check: encoder.encode(raw, check())  # type: ignore[misc]
        return
    whole = xxh3_128()
    for cut in cut_frames(source.lengths, frame_bytes):
        raw = _read(source, cut)
        whole.update(raw)
        is_end = cut.stop is None or cut.stop == source.lengths[cut.first]
        ended = source.members[cut.first : cut.last] if is_end else []
        yield partial(encoder.encode, raw, b"".join(m.sha256[:DIGEST_BYTES] for m in ended))
    if whole.hexdigest() != source.xxh128:
        for _, check in _frames_to_check(source, frame_bytes):
            check()
        first = "that there are no members"
        if source.members:
            first = f"each member from {source.place(0)} on"
        raise source.damage(
            f"{first} matches the index, but all of them together do not match the seal",
            hint="nothing was packed; what changed is segment_xxh128 in the slot's seal.json",
        )


def _read(source: MemberSource, cut: FrameCut) -> bytes:
    if cut.stop is None:
        return source.read(cut.first, cut.last)
    return source.read_piece(cut.first, cut.start, cut.stop)


def _frames_to_check(
    source: MemberSource, frame_bytes: int
) -> Iterator[tuple[bytes, Callable[[], bytes]]]:
    """Each frame, with a function that compares its members one by one and returns their digests.

    The pieces of a large member are compared here, because that must happen in order.
    """
    large: _LargeMember | None = None
    for cut in cut_frames(source.lengths, frame_bytes):
        raw = _read(source, cut)
        if cut.stop is None:
            yield raw, partial(check_members, raw, source, cut.first, cut.last)
        else:
            if cut.start == 0:
                large = _LargeMember(source, cut.first)
            assert large is not None  # noqa: S101 - a large member's first frame starts at 0
            found = large.add(raw, last=cut.stop == source.lengths[cut.first])
            yield raw, partial(bytes, found)


def _in_order(jobs: Iterator[Callable[[], _Frame]], threads: int) -> Generator[_Frame, None, None]:
    """Results in the order of the jobs, with at most one finished job waiting per thread."""
    if threads <= 1:
        for job in jobs:
            yield job()
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pack")
    waiting: deque[Future[_Frame]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


# -- comparing with the index ------------------------------------------------------------------


def check_members(raw: bytes, source: MemberSource, first: int, last: int) -> bytes:
    """Compare the tar bytes of `members[first:last]` with the index; return their digests.

    Raises the source's `damage`, naming the member and where it is stored.
    """
    digests = []
    view = memoryview(raw)
    at = 0
    for i, member in enumerate(source.members[first:last], first):
        size, recorded = member.size_bytes, member.sha256
        header = member_header(member.name, size, member.headers)
        start = at + len(header)
        end = start + size
        found = sha256(view[start:end]).digest()
        if found != recorded:
            raise _damaged(source, i, _OTHER_PAYLOAD)
        fill = padding(size)
        if not raw.startswith(header, at) or not raw.startswith(fill, end):
            raise _damaged(source, i, _OTHER_HEADER)
        digests.append(found[:DIGEST_BYTES])
        at = end + len(fill)
    return b"".join(digests)


class _LargeMember:
    """The same comparison for a member that comes in pieces."""

    def __init__(self, source: MemberSource, index: int) -> None:
        self._source, self._index = source, index
        member = source.members[index]
        self._recorded = member.sha256
        self._expected_start = member_header(member.name, member.size_bytes, member.headers)
        self._left = member.size_bytes
        self._digest = sha256()

    def add(self, raw: bytes, *, last: bool) -> bytes:
        """Take the next piece; with the last one, return the digest (nothing before)."""
        start = self._expected_start
        header, self._expected_start = start[: len(raw)], start[len(raw) :]
        payload = memoryview(raw)[len(header) :][: self._left]
        self._digest.update(payload)
        self._left -= len(payload)
        fill = raw[len(header) + len(payload) :]
        if not raw.startswith(header) or fill.strip(b"\0"):
            raise _damaged(self._source, self._index, _OTHER_HEADER)
        if not last:
            return b""
        found = self._digest.digest()
        if found != self._recorded:
            raise _damaged(self._source, self._index, _OTHER_PAYLOAD)
        return found[:DIGEST_BYTES]


_OTHER_PAYLOAD = "its payload does not match the recorded digest"
_OTHER_HEADER = "its header or padding is not what was written"


def _damaged(source: MemberSource, index: int, what: str) -> DamagedData:
    return source.damage(
        f"member {source.place(index)} is damaged: {what}",
        hint="the disk is failing, or something changed a sealed slot: check dmesg and SMART",
    )
