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
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from xxhash import xxh3_128

from fuploader_dagster.archives.checked_members import jobs
from fuploader_dagster.archives.forms import ALL_COLUMNS, TAR, Columns, encoder_for
from fuploader_dagster.archives.frame_encoder import Frame, FrameEncoder
from fuploader_dagster.archives.manifest import (
    FORM_KEY,
    OTHER_FORM,
    PLAIN,
    WITH_HEADERS,
    FailedPart,
    Manifest,
    digest,
    encode,
)
from fuploader_dagster.archives.manifest_pages import encode_pages, pages_frame
from fuploader_dagster.archives.members import MemberSource
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.archives.zstd_frames import DEFAULT_LEVEL
from fuploader_dagster.contracts.object_store import ArchiveFile
from fuploader_dagster.disk.crash_points import CrashPoint, reached
from fuploader_dagster.disk.durable import fsync_file, replace_durably
from fuploader_dagster.disk.temporaries import temporary_file
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import DamagedArchive, DamagedSlot

_READ_BACK_BYTES = 2**18


def write_archive(
    path: Path,
    *sources: MemberSource,
    form: str = TAR,
    level: int = DEFAULT_LEVEL,
    threads: int = 1,
    frame_bytes: int = 0,
    metadata: Mapping[str, str] | None = None,
    failures: Sequence[FailedPart] = (),
    columns: Columns = ALL_COLUMNS,
) -> ArchiveFile:
    """Pack all members of these sources into a new archive at `path`, replacing an older one.

    `form`: another format than `.tar.zst` (`forms`). `frame_bytes`: of tar bytes per frame, if not
    what suits the format. `metadata` goes into the manifest and, unchanged, into the result;
    archives are identical only if it contains no times or machine names. `failures` go into the
    manifest. `columns`: those of Parquet. Raises the `damage` of a
    source (naming the member), `DiskFull`, or `DamagedArchive` if the disk returns something other
    than what was written.
    """
    members = [m for source in sources for m in source.members]
    if len({m.name for m in members}) != len(members):
        raise DamagedSlot(f"{path} cannot be packed: two members have the same name")
    encoder = encoder_for(form, level, sources, columns)
    frame_bytes = frame_bytes or encoder.frame_bytes
    with temporary_file(path) as temporary:
        work = chain.from_iterable(jobs(source, frame_bytes, encoder) for source in sources)
        in_turn = _in_order(work, threads if encoder.in_threads else 1)
        with naming_disk_trouble(path), closing(in_turn) as frames:
            written = _write(
                temporary,
                sources,
                frames,
                encoder,
                metadata=metadata or {},
                failures=failures,
            )
            fsync_file(temporary)
            reached(CrashPoint.ARCHIVE_SYNCED)
        _read_back(temporary, written)
        if encoder.checked_afterwards:
            with Archive.open(temporary) as archive:
                archive.verify(threads=1).raise_if_damaged()
        reached(CrashPoint.ARCHIVE_VERIFIED)
        replace_durably(temporary, path)
        reached(CrashPoint.ARCHIVE_NAMED)
    return ArchiveFile(path, written.size_bytes, written.sha256.hex(), dict(metadata or {}))


class _Written(NamedTuple):
    size_bytes: int
    sha256: bytes
    xxh128: str


def _write(
    path: Path,
    sources: Sequence[MemberSource],
    frames: Iterator[Frame],
    encoder: FrameEncoder,
    *,
    metadata: Mapping[str, str],
    failures: Sequence[FailedPart],
) -> _Written:
    whole, quick = sha256(), xxh3_128()
    size = 0
    member_digests, frame_digests = bytearray(), bytearray()
    frame_sizes: list[int] = []
    frame_tar_sizes: list[int] = []
    lengths: list[int] = []
    with path.open("wb") as file:

        def put(data: bytes) -> None:
            nonlocal size
            file.write(data)
            whole.update(data)
            quick.update(data)
            size += len(data)

        for frame in frames:
            encoder.placed(frame, size)
            put(frame.data)
            reached(CrashPoint.ARCHIVE_PARTLY_WRITTEN)
            frame_sizes.append(len(frame.data))
            frame_tar_sizes.append(frame.tar_bytes)
            frame_digests += frame.digest
            member_digests += frame.member_digests
            lengths += frame.lengths
        members = [m for source in sources for m in source.members]
        names = [m.name for m in members]
        sizes = [m.size_bytes for m in members]
        headers = [m.headers for m in members]
        digests = bytes(member_digests)
        pages = encode_pages(names, sizes, lengths, digests, headers, is_tar=not encoder.form)
        manifest = Manifest(
            metadata=dict(sorted({**metadata, **_form_metadata(encoder)}.items())),
            member_count=len(names),
            payload_bytes=sum(sizes),
            page_sizes=[len(page) for page in pages],
            page_digests=b"".join(digest(page) for page in pages),
            frame_sizes=frame_sizes,
            frame_tar_sizes=frame_tar_sizes,
            frame_digests=bytes(frame_digests),
            end_frame=encoder.end_frame(),
            failures=list(failures),
        )
        put(pages_frame(pages))
        version = OTHER_FORM if encoder.form else WITH_HEADERS if any(headers) else PLAIN
        packed = encode(manifest, version)
        put(packed)
        put(encoder.ending(manifest, len(packed)))
    return _Written(size, whole.digest(), quick.hexdigest())


def _form_metadata(encoder: FrameEncoder) -> Mapping[str, str]:
    return {FORM_KEY: encoder.form, **encoder.metadata} if encoder.form else {}


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


def _in_order(jobs: Iterator[Callable[[], Frame]], threads: int) -> Generator[Frame, None, None]:
    """Results in the order of the jobs, with at most one finished job waiting per thread."""
    if threads <= 1:
        for job in jobs:
            yield job()
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pack")
    waiting: deque[Future[Frame]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
