"""The other formats, made to do harm or just large: an error of ours, or done, in little memory.

As in `test_evil_archives`, the digests of the evil ones are right.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from hashlib import file_digest
from pathlib import Path

import pytest

from fuploader_dagster.archives.forms import FORMS
from fuploader_dagster.archives.json_lines import decode_line
from fuploader_dagster.archives.manifest import OTHER_FORM, Manifest, digest, encode
from fuploader_dagster.archives.manifest_pages import encode_pages, pages_frame
from fuploader_dagster.archives.members import PlainMember
from fuploader_dagster.archives.placed_manifest import trailer
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.archives.seek_table import seek_table
from fuploader_dagster.archives.writer import write_archive
from fuploader_dagster.archives.zip_records import (
    DEFLATED,
    STORED,
    ZipEntry,
    central_record,
    end_records,
    local_header,
)
from fuploader_dagster.delivery.slot_members import FolderMembers
from fuploader_dagster.errors import DamagedArchive, TooLarge
from tests.unit.archives.forms import packed
from tests.unit.archives.test_evil_archives import (
    GIB,
    MEMORY_BYTES,
    bomb,
    half,
    in_little_memory,
    read_in_every_way,
)
from tests.unit.archives.test_evil_archives import packed as compressed


def manifest_of(
    form: str, frame: bytes, stream_bytes: int, *, size: int, content: bytes, end: bytes
) -> tuple[bytes, Manifest, int]:
    """Frame, pages and manifest of an archive with the member `a`; and the manifest's length."""
    pages = encode_pages(["a"], [size], [stream_bytes], half(content), is_tar=False)
    made = Manifest(
        metadata={"format": form},
        member_count=1,
        payload_bytes=size,
        page_sizes=[len(one) for one in pages],
        page_digests=b"".join(map(digest, pages)),
        frame_sizes=[len(frame)],
        frame_tar_sizes=[stream_bytes],
        frame_digests=digest(frame),
        end_frame=end,
    )
    closing = encode(made, OTHER_FORM)
    return frame + pages_frame(pages) + closing, made, len(closing)


def lines(frame: bytes, stream_bytes: int, *, size: int = 1, content: bytes = b"x") -> bytes:
    """A `.jsonl.zst` with one frame."""
    end = compressed(b"")
    data, made, length = manifest_of(
        "jsonl.zst", frame, stream_bytes, size=size, content=content, end=end
    )
    return data + end + seek_table(made, length, 0)


def zipped(
    data: bytes, *, size: int = 1, content: bytes = b"x", method: int = DEFLATED, says: int = 1
) -> bytes:
    """A zip with one entry; its header says another size than its manifest."""
    entry = ZipEntry(b"a", b"", method, 0, len(data), says, later=False)
    directory = central_record(entry, 0)
    frame = local_header(entry) + data
    before, _, length = manifest_of(
        "zip", frame, len(frame), size=size, content=content, end=digest(directory)
    )
    start = len(before) + 16
    return before + trailer(length) + directory + end_records(1, len(directory), start)


def deflated(size: int) -> bytes:
    """Zeros, made in pieces."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    parts = [deflate.compress(bytes(1 << 24)) for _ in range(size >> 24)]
    return b"".join([*parts, deflate.flush()])


DEEP = b'{"name":"a","content":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
WRONG_NEWLINES = b'{"name":"a","newlines":[0],"content":x}\n'
ENDLESS = b'{"name":"a","newlines":[' + b"1," * 1_000_000 + b'1],"content":7}\n'
LINES: dict[str, Callable[[], bytes]] = {
    "a line of a gigabyte": lambda: lines(bomb(GIB, b'{"name":"a"'), GIB),
    "a line without an end to its brackets": lambda: lines(compressed(DEEP), len(DEEP)),
    "newlines where none can be": lambda: lines(compressed(WRONG_NEWLINES), len(WRONG_NEWLINES)),
    "a million newlines": lambda: lines(compressed(ENDLESS), len(ENDLESS)),
    "no line at all": lambda: lines(compressed(b"\0" * 30), 30),
}
ZIPS: dict[str, Callable[[], bytes]] = {
    "two gigabytes in two megabytes": lambda: zipped(deflated(2 * GIB)),
    "two gigabytes that it admits": lambda: zipped(deflated(2 * GIB), size=2 * GIB, says=2 * GIB),
    "data that are no deflate": lambda: zipped(b"\xff" * 100),
    "data that end too early": lambda: zipped(deflated(1 << 24)[:-20], size=1 << 24, says=1 << 24),
    "bytes after the data": lambda: zipped(deflated(0) + b"more"),
    "a method that nobody has": lambda: zipped(b"x", method=99),
    "another size than its header": lambda: zipped(b"xy", method=STORED, says=2),
}


@pytest.mark.parametrize("evil", [*LINES, *ZIPS])
def test_an_evil_archive_is_an_error_of_ours_in_little_memory(evil: str, tmp_path: Path) -> None:
    path = tmp_path / "evil"
    path.write_bytes((LINES | ZIPS)[evil]())
    in_little_memory(lambda: read_in_every_way(path, tmp_path))
    with Archive.open(path, memory_bytes=MEMORY_BYTES) as archive:
        assert archive.manifest is not None
        with pytest.raises((DamagedArchive, TooLarge)):
            archive.verify(threads=1).raise_if_damaged()


def test_sound_archives_built_the_same_way_are_read(tmp_path: Path) -> None:
    """Else the tables would prove nothing."""
    line = b'{"name":"a","content_text":"x"}\n'
    assert decode_line(line).content == b"x"
    for content in (
        lines(compressed(line), len(line)),
        zipped(b"x", method=STORED),
        zipped(zlib.compress(b"x", 1, -15)),
    ):
        path = tmp_path / "good"
        path.write_bytes(content)
        with Archive.open(path) as archive:
            assert archive.read("a") == b"x"
            assert archive.verify().damages == []


@pytest.mark.parametrize("form", [form for form in FORMS if form != "zip"])
def test_what_takes_more_memory_than_allowed_says_how_to_lift_it(tmp_path: Path, form: str) -> None:
    path = packed(tmp_path, form, {"a": bytes(48 << 20)}, {}).path
    with Archive.open(path, memory_bytes=8 << 20) as archive, pytest.raises(TooLarge) as caught:
        archive.read("a")
        list(archive.files(lambda _: True))
    assert "--max-memory" in str(caught.value)


def test_a_large_member_passes_through_a_zip_in_little_memory(tmp_path: Path) -> None:
    size = 400 << 20
    (tmp_path / "slot").mkdir()
    with (tmp_path / "slot" / "a").open("w+b") as file:
        file.truncate(size)
        recorded = [PlainMember("a", size, file_digest(file, "sha256").digest())]

    def both_ways() -> None:
        path = tmp_path / "a.zip"
        with FolderMembers(tmp_path / "slot", recorded) as source:
            write_archive(path, source, form="zip", threads=2)
        with Archive.open(path, memory_bytes=MEMORY_BYTES) as archive:
            assert archive.verify(threads=2).size_bytes == size
            assert archive.restore(tmp_path / "out", threads=2).restored == 1

    in_little_memory(both_ways, room_bytes=GIB // 4)
    assert (tmp_path / "out" / "a").stat().st_size == size
