"""An archive is whole, verified, the same for the same members, and open to any tool."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from indexed_zstd import IndexedZstdFile
from ratarmountcore.mountsource.factory import open_mount_source
from xxhash import xxh3_128

from fuploader_dagster.archives import writer as archive_module
from fuploader_dagster.archives.checked_members import cut_frames
from fuploader_dagster.archives.members import MemberSource, PlainMember
from fuploader_dagster.archives.writer import write_archive
from fuploader_dagster.contracts.object_store import ArchiveFile
from fuploader_dagster.delivery.slot_members import FolderMembers, SegmentMembers
from fuploader_dagster.disk.tar_headers import END, member_header, padding
from fuploader_dagster.errors import DamagedArchive, DamagedSlot, DiskFull
from tests.unit.archives.archives import members, payloads, segment

FRAME = 16_384  # small frames, so that little data has many of them

UTF8 = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}


def pack(folder: Path, contents: dict[str, bytes], *, threads: int = 1) -> ArchiveFile:
    with segment(folder / "segment", contents) as source:
        return write_archive(folder / "slot.tar.zst", source, threads=threads, frame_bytes=FRAME)


def tar_stream(contents: dict[str, bytes]) -> bytes:
    return (
        b"".join(member_header(n, len(b)) + b + padding(len(b)) for n, b in contents.items()) + END
    )


# -- cutting -----------------------------------------------------------------------------------


@given(
    st.lists(st.integers(min_value=1, max_value=60).map(lambda n: n * 512), max_size=80),
    st.sampled_from([512, 2048, 4096]),
)
def test_frames_cover_every_member_once_and_are_cut_between_members(
    lengths: list[int], frame_bytes: int
) -> None:
    covered: list[tuple[int, int, int]] = []
    for cut in cut_frames(lengths, frame_bytes):
        if cut.stop is None:
            assert sum(lengths[cut.first : cut.last]) <= frame_bytes
            covered += [(i, 0, lengths[i]) for i in range(cut.first, cut.last)]
        else:
            assert cut.last == cut.first + 1
            assert lengths[cut.first] > frame_bytes
            assert 0 < cut.stop - cut.start <= 4 * frame_bytes
            covered.append((cut.first, cut.start, cut.stop))
    at = 0
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    for index, start, stop in covered:
        assert starts[index] + start == at
        at += stop - start
    assert at == sum(lengths)


# -- what is written ---------------------------------------------------------------------------


def test_the_archive_is_the_tar_stream_of_its_members(tmp_path: Path) -> None:
    """Decompressed by a reader that knows nothing of us, it is header, payload, padding, end."""
    contents = payloads()
    written = pack(tmp_path, contents)
    with written.path.open("rb") as f:
        stream = zstandard.ZstdDecompressor().stream_reader(f, read_across_frames=True).read()
    assert stream == tar_stream(contents)


def test_the_result_states_size_digest_and_metadata_of_the_file(tmp_path: Path) -> None:
    with segment(tmp_path / "segment", payloads()) as source:
        written = write_archive(tmp_path / "a.tar.zst", source, metadata={"b": "2", "a": "1"})
    content = written.path.read_bytes()
    assert (written.size_bytes, written.sha256) == (len(content), sha256(content).hexdigest())
    assert written.metadata == {"a": "1", "b": "2"}


def test_no_members_make_an_empty_archive(tmp_path: Path) -> None:
    written = pack(tmp_path, {})
    assert subprocess.check_output(["tar", "--zstd", "-tf", str(written.path)]) == b""


def test_identical_members_give_identical_bytes(tmp_path: Path) -> None:
    """From a segment or from files, with gaps or without, with any number of threads."""
    contents = dict(sorted(payloads().items()))
    (tmp_path / "files").mkdir()
    for name, payload in contents.items():
        (tmp_path / "files" / name).write_bytes(payload)
    gappy, offsets = io.BytesIO(), []
    for name, payload in contents.items():
        gappy.write(b"torn" * 128 if len(payload) % 3 == 0 else b"")
        offsets.append(gappy.tell())
        gappy.write(member_header(name, len(payload)) + payload + padding(len(payload)))
    (tmp_path / "gappy").write_bytes(gappy.getvalue())

    def digest_of(source: MemberSource, threads: int) -> str:
        with source:
            path = tmp_path / "a.tar.zst"
            return write_archive(path, source, threads=threads, frame_bytes=FRAME).sha256

    digests = {
        digest_of(segment(tmp_path / "segment", contents), 1),
        digest_of(segment(tmp_path / "segment", contents), 2),
        digest_of(segment(tmp_path / "segment", contents), 5),
        digest_of(segment(tmp_path / "segment", contents, sealed=True), 1),
        digest_of(segment(tmp_path / "segment", contents, sealed=True), 2),
        digest_of(SegmentMembers(tmp_path / "gappy", members(contents), offsets), 2),
        digest_of(FolderMembers(tmp_path / "files", members(contents)), 2),
        digest_of(FolderMembers(tmp_path / "files", members(contents)), 1),
    }
    assert len(digests) == 1


def test_the_order_of_metadata_does_not_matter(tmp_path: Path) -> None:
    with segment(tmp_path / "segment", payloads(3)) as source:
        one = write_archive(tmp_path / "1", source, metadata={"a": "1", "b": "2"})
        two = write_archive(tmp_path / "2", source, metadata={"b": "2", "a": "1"})
    assert one.sha256 == two.sha256


# -- other people's tools ----------------------------------------------------------------------


@pytest.mark.parametrize("tool", [["tar", "--zstd", "-xf"], ["bsdtar", "-xf"]])
def test_tar_programs_extract_it(tool: list[str], tmp_path: Path) -> None:
    contents = payloads()
    written = pack(tmp_path, contents)
    out = tmp_path / "out"
    out.mkdir()
    done = subprocess.run(
        [*tool, str(written.path)], cwd=out, env=UTF8, capture_output=True, check=True
    )
    assert done.stderr == b""
    assert {p.name: p.read_bytes() for p in out.iterdir()} == contents


def test_zstd_finds_it_sound(tmp_path: Path) -> None:
    written = pack(tmp_path, payloads())
    subprocess.run(["zstd", "-qt", str(written.path)], check=True)


def test_tarfile_reads_it_as_a_stream(tmp_path: Path) -> None:
    contents = payloads()
    written = pack(tmp_path, contents)
    with (
        written.path.open("rb") as f,
        zstandard.ZstdDecompressor().stream_reader(f, read_across_frames=True) as stream,
        tarfile.open(fileobj=stream, mode="r|") as tar,
    ):
        found = {}
        for member in tar:
            payload = tar.extractfile(member)
            assert payload is not None
            found[member.name] = payload.read()
    assert found == contents


def test_indexed_zstd_seeks_in_it_by_the_standard_seek_table(tmp_path: Path) -> None:
    """It reads any range, and knows the number of our frames without decompressing."""
    contents = payloads()
    written = pack(tmp_path, contents)
    stream = tar_stream(contents)
    file = IndexedZstdFile(str(written.path))
    assert file.size() == len(stream)
    for start in range(0, len(stream), 37_777):
        file.seek(start)
        assert file.read(1000) == stream[start : start + 1000]
    assert file.number_of_frames() > 10
    file.close()


def test_ratarmount_shows_its_members_as_files(tmp_path: Path) -> None:
    contents = payloads()
    written = pack(tmp_path, contents)
    with open_mount_source(str(written.path), indexFilePath=":memory:") as mount:
        listed = mount.list("/")
        assert listed is not None
        assert set(listed) == set(contents)
        for name in ("消息.json", "very large.bin", "n" * 255):
            info = mount.lookup("/" + name)
            assert info is not None
            assert mount.open(info).read() == contents[name]


# -- what must not become an archive -----------------------------------------------------------


def flipped(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["one block", "very large.bin", "消息.json"])
@pytest.mark.parametrize("part", ["header", "payload"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sealed", [False, True])
def test_a_flipped_bit_in_the_segment_stops_packing_and_names_the_member(
    tmp_path: Path, name: str, part: str, threads: int, sealed: bool
) -> None:
    contents = payloads()
    offset = tar_stream(contents).index(member_header(name, len(contents[name])))
    with segment(tmp_path / "segment", contents, sealed=sealed) as source:
        header_size = len(member_header(name, len(contents[name])))
        flipped(tmp_path / "segment", offset + (100 if part == "header" else header_size + 5))
        with pytest.raises(DamagedSlot, match=f"{name!r} at offset {offset} of .*segment"):
            write_archive(tmp_path / "a.tar.zst", source, threads=threads, frame_bytes=FRAME)
    assert [p.name for p in tmp_path.iterdir()] == ["segment"]


@pytest.mark.parametrize("sealed", [False, True])
def test_nonzero_padding_is_damage_too(tmp_path: Path, sealed: bool) -> None:
    with segment(tmp_path / "segment", {"a": b"x", "b": b"y"}, sealed=sealed) as source:
        flipped(tmp_path / "segment", 1023)
        with pytest.raises(DamagedSlot, match="'a' at offset 0"):
            write_archive(tmp_path / "a.tar.zst", source)


@pytest.mark.parametrize("threads", [1, 2])
def test_members_that_do_not_match_the_seal_together_stop_packing(
    tmp_path: Path, threads: int
) -> None:
    """Each is what the index says, but the seal is of other bytes: one of the two is wrong."""
    data = tar_stream(payloads()).removesuffix(END)
    (tmp_path / "segment").write_bytes(data)
    sealed = xxh3_128(data + b"x").hexdigest()
    with (
        SegmentMembers(tmp_path / "segment", members(payloads()), xxh128=sealed) as source,
        pytest.raises(DamagedSlot, match="not match the seal"),
    ):
        write_archive(tmp_path / "a.tar.zst", source, threads=threads, frame_bytes=FRAME)
    assert [p.name for p in tmp_path.iterdir()] == ["segment"]


@pytest.mark.parametrize("sealed", [False, True])
def test_a_segment_that_is_cut_off_stops_packing(tmp_path: Path, sealed: bool) -> None:
    contents = payloads()
    with segment(tmp_path / "segment", contents, sealed=sealed) as source:
        os.truncate(tmp_path / "segment", (tmp_path / "segment").stat().st_size - 700)
        with pytest.raises(DamagedSlot, match="ends at"):
            write_archive(tmp_path / "a.tar.zst", source, frame_bytes=FRAME)


@pytest.mark.parametrize("change", [b"longer than it was", b"", None, b"{]"])
@pytest.mark.parametrize("name", ["last.json", "very large.bin"])
def test_a_file_that_changed_after_the_seal_stops_packing(
    tmp_path: Path, name: str, change: bytes | None
) -> None:
    """Longer, shorter, gone, or of the same size with other bytes."""
    contents = payloads(5)
    files = tmp_path / "files"
    files.mkdir()
    for n, payload in contents.items():
        (files / n).write_bytes(payload)
    if change is None:
        (files / name).unlink()
    elif change == b"{]":
        flipped(files / name, 1)
    else:
        (files / name).write_bytes(change + (contents[name] if change else b""))
    with (
        FolderMembers(files, members(contents)) as source,
        pytest.raises(DamagedSlot, match=f"{name!r} in "),
    ):
        write_archive(tmp_path / "a.tar.zst", source, frame_bytes=FRAME)
    assert not (tmp_path / "a.tar.zst").exists()


def test_two_members_with_the_same_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "segment").write_bytes(tar_stream({"a": b"x"}))
    member = PlainMember("a", 1, sha256(b"x").digest())
    with (
        SegmentMembers(tmp_path / "segment", [member, member], [0, 0]) as source,
        pytest.raises(DamagedSlot, match="two members have the same name"),
    ):
        write_archive(tmp_path / "a.tar.zst", source)


def test_a_disk_that_returns_other_bytes_leaves_no_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bit that turns between the sync and the reading back is found."""

    def syncing_badly(path: Path) -> None:
        flipped(path, 1000)

    monkeypatch.setattr(archive_module, "fsync_file", syncing_badly)
    with pytest.raises(DamagedArchive, match="the disk returns"):
        pack(tmp_path, payloads())
    assert [p.name for p in tmp_path.iterdir()] == ["segment"]


def test_a_full_disk_is_a_pause_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's full device stands where the archive is being written."""
    path = tmp_path / "a.tar.zst"
    monkeypatch.setattr(archive_module, "temporary_file", lambda _: nullcontext(Path("/dev/full")))
    with (
        segment(tmp_path / "segment", payloads()) as source,
        pytest.raises(DiskFull, match="no space left"),
    ):
        write_archive(path, source)
    assert [p.name for p in tmp_path.iterdir()] == ["segment"]


def test_links_and_pipes_are_refused_not_followed(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "link").symlink_to("/etc/passwd")
    content = Path("/etc/passwd").read_bytes()
    recorded = [PlainMember("link", len(content), sha256(content).digest())]
    with FolderMembers(files, recorded) as source, pytest.raises(DamagedSlot, match="'link' in"):
        write_archive(tmp_path / "a.tar.zst", source)
    (files / "link").unlink()
    os.mkfifo(files / "link")
    with FolderMembers(files, recorded) as source, pytest.raises(DamagedSlot, match="'link' in"):
        write_archive(tmp_path / "a.tar.zst", source)
