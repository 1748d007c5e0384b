"""Message headers of members: in any archive, for any reader, and nothing else changes."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.archives.writer import write_archive
from fuploader_dagster.disk.header_text import MOST_BYTES, to_text
from fuploader_dagster.errors import DamagedSlot
from tests.unit.archives.archives import InMemory, headers_for, payloads, segment

CONTENTS = payloads()
HEADERS = headers_for(CONTENTS) | {"very large.bin": to_text({"x": "y" * 9_000})}
"""The last ones are longer than a frame, if frames are as short as here."""
ALL = {name: HEADERS.get(name, "") for name in CONTENTS}


def packed(folder: Path, *, frame_bytes: int = 2**20, sealed: bool = False) -> Path:
    with segment(folder / "segment", CONTENTS, HEADERS, sealed=sealed) as source:
        return write_archive(folder / "a.tar.zst", source, frame_bytes=frame_bytes).path


def unpacked(archive: Path) -> bytes:
    data = archive.read_bytes()
    return zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()


@pytest.mark.parametrize("frame_bytes", [512, 16_384, 2**20])
@pytest.mark.parametrize("sealed", [False, True])
def test_members_and_their_headers_come_back(
    tmp_path: Path, frame_bytes: int, sealed: bool
) -> None:
    with Archive.open(packed(tmp_path, frame_bytes=frame_bytes, sealed=sealed)) as archive:
        assert {member.name: member.headers for member in archive.members} == ALL
        files = list(archive.files(lambda _: True))
        assert {file.name: file.content for file in files} == CONTENTS
        assert {file.name: file.headers for file in files} == ALL
        assert archive.read("very large.bin") == CONTENTS["very large.bin"]
        assert archive.verify().damages == []
        assert archive.restore(tmp_path / "out").damages == []
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == CONTENTS


@pytest.mark.parametrize("tool", [["tar", "-x", "-f"], ["bsdtar", "-x", "-f"]])
def test_other_programs_unpack_it_without_a_word(tool: list[str], tmp_path: Path) -> None:
    archive = packed(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    env = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    done = subprocess.run([*tool, archive], cwd=out, env=env, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == CONTENTS


def test_tarfile_has_the_headers_as_comments(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(unpacked(packed(tmp_path)))) as tar:
        found = {one.name: one.pax_headers.get("comment", "") for one in tar.getmembers()}
    assert found == ALL


def test_an_archive_without_its_end_still_gives_the_headers(tmp_path: Path) -> None:
    archive = packed(tmp_path, frame_bytes=16_384)
    archive.write_bytes(archive.read_bytes()[:-2_000])
    with Archive.open(archive) as opened:
        listing = opened.listing()
    assert listing.damages
    assert {member.name: member.headers for member in listing.members} == ALL


def test_a_plain_tar_with_our_comments_gives_the_headers(tmp_path: Path) -> None:
    (tmp_path / "plain.tar.zst").write_bytes(zstandard.compress(unpacked(packed(tmp_path))))
    with Archive.open(tmp_path / "plain.tar.zst") as archive:
        assert archive.manifest is None
        assert {file.name: file.headers for file in archive.files(lambda _: True)} == ALL


@pytest.mark.parametrize(
    "comment",
    ["built by make", '{"a":1}', "[]", '{"a":' * 9_000, '{"a":"' + "x" * MOST_BYTES + '"}', ""],
)
def test_a_comment_that_is_no_headers_is_ignored(tmp_path: Path, comment: str) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a")
        info.size, info.pax_headers = 1, {"comment": comment}
        tar.addfile(info, io.BytesIO(b"x"))
    with Archive(InMemory(zstandard.compress(made.getvalue()))) as archive:
        assert [tuple(file) for file in archive.files(lambda _: True)] == [("a", b"x", "")]


def test_a_comment_of_the_whole_tar_is_of_no_member(tmp_path: Path) -> None:
    """`git archive` writes its commit so."""
    made = io.BytesIO()
    of_all = {"comment": to_text({"cmd": "64"})}
    with tarfile.open(fileobj=made, mode="w", pax_headers=of_all) as tar:
        tar.addfile(tarfile.TarInfo("a"))
    with Archive(InMemory(zstandard.compress(made.getvalue()))) as archive:
        assert [(member.name, member.headers) for member in archive.members] == [("a", "")]


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("name", ["one block", "very large.bin"])
def test_other_headers_in_the_segment_than_recorded_stop_packing(
    tmp_path: Path, sealed: bool, name: str
) -> None:
    with segment(tmp_path / "segment", CONTENTS, HEADERS, sealed=sealed) as source:
        path = tmp_path / "segment"
        content = bytearray(path.read_bytes())
        content[content.index(HEADERS[name].encode()) + 12] ^= 1
        path.write_bytes(content)
        with pytest.raises(DamagedSlot, match=f"{name!r} at offset .*segment"):
            write_archive(tmp_path / "a.tar.zst", source, frame_bytes=16_384)


def test_headers_as_long_as_can_be_make_more_pages(tmp_path: Path) -> None:
    """Each stays small enough for any reader."""
    contents = {f"{number}.json": b"" for number in range(1200)}
    kept = {name: to_text({name: "x" * 16_000}) for name in contents}
    with segment(tmp_path / "segment", contents, kept) as source:
        written = write_archive(tmp_path / "a.tar.zst", source, threads=2)
    with Archive.open(written.path) as archive:
        assert archive.manifest is not None
        assert len(archive.manifest.page_sizes) == 3
        assert {member.name: member.headers for member in archive.members} == kept
        assert archive.read("7.json") == b""
