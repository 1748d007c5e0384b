"""An archive gives back what went in, with few requests; archives of other tools do so too."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard
from file_uploader.packers import tar_zstd_packer

from fuploader_dagster.archives.foreign import ForeignArchive
from fuploader_dagster.archives.ranges import StoredArchive
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.archives.writer import write_archive
from fuploader_dagster.contracts.object_store import ObjectInfo
from fuploader_dagster.delivery.slot_members import FolderMembers
from fuploader_dagster.errors import DamagedArchive, StoreRefused
from tests.unit.archives.archives import InMemory, members, payloads, segment

FRAME = 16_384


def packed(folder: Path, contents: dict[str, bytes], frame_bytes: int = FRAME) -> Path:
    path = folder / "a.tar.zst"
    with segment(folder / "segment", contents) as source:
        write_archive(path, source, frame_bytes=frame_bytes, metadata={"slot": "7"})
    return path


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


# -- our own archives --------------------------------------------------------------------------


def test_members_come_from_the_manifest_with_name_size_and_place(tmp_path: Path) -> None:
    contents = payloads()
    path = packed(tmp_path, contents)
    stream = zstandard.ZstdDecompressor().stream_reader(path.read_bytes(), read_across_frames=True)
    tar = stream.read()
    with Archive.open(path) as archive:
        assert {m.name: m.size_bytes for m in archive.members} == {
            n: len(b) for n, b in contents.items()
        }
        for m in archive.members:
            assert tar[m.payload_offset : m.payload_offset + m.size_bytes] == contents[m.name]
        assert archive.manifest is not None
        assert archive.manifest.metadata == {"slot": "7"}


@pytest.mark.parametrize("frame_bytes", [512, FRAME, 2**20])
def test_every_member_is_read_by_name(tmp_path: Path, frame_bytes: int) -> None:
    contents = payloads()
    with Archive.open(packed(tmp_path, contents, frame_bytes)) as archive:
        for name, payload in contents.items():
            assert archive.read(name) == payload
            assert b"".join(archive.stream(name)) == payload


def test_a_member_of_a_remote_archive_takes_three_small_reads(tmp_path: Path) -> None:
    """Tail, page, and the frames of the member: however many members there are."""
    contents = payloads(20_000)
    content = packed(tmp_path, contents, 2**16).read_bytes()
    for name in ("消息.json", next(iter(contents)), "very large.bin"):
        source = InMemory(content)
        archive = Archive.open(source)
        assert archive.manifest is not None
        assert len(archive.manifest.page_sizes) == 5
        assert archive.read(name) == contents[name]
        assert len(source.reads) == 3
        assert sum(length for _, length in source.reads) < len(contents[name]) + 300_000
        assert archive.read(name) == contents[name]
        assert len(source.reads) == 4  # the page is known by now


def test_listing_a_remote_archive_takes_two_reads(tmp_path: Path) -> None:
    contents = payloads(9000)
    source = InMemory(packed(tmp_path, contents).read_bytes())
    assert [m.name for m in Archive.open(source).members] == list(contents)
    assert len(source.reads) == 2


def test_a_small_remote_archive_takes_one_read(tmp_path: Path) -> None:
    source = InMemory(packed(tmp_path, {"a": b"1", "b": b"2"}).read_bytes())
    archive = Archive.open(source)
    assert archive.read("b") == b"2"
    assert source.reads == [(0, source.size_bytes)]


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    with (
        Archive.open(packed(tmp_path, payloads(2))) as archive,
        pytest.raises(StoreRefused, match=r"a\.tar\.zst has no member 'nothing'"),
    ):
        archive.read("nothing")
    with pytest.raises(StoreRefused, match="there is no archive"):
        Archive.open(tmp_path / "missing.tar.zst")


def test_verify_reads_everything_and_reports_progress(tmp_path: Path) -> None:
    contents = payloads()
    seen: list[tuple[int, int]] = []
    with Archive.open(packed(tmp_path, contents)) as archive:
        report = archive.verify(progress=lambda done, total: seen.append((done, total)))
    total = sum(map(len, contents.values()))
    assert (report.members, report.size_bytes) == (len(contents), total)
    assert (report.damages, report.has_digests) == ([], True)
    assert seen[-1] == (total, total)


def test_an_empty_archive_reads_as_empty(tmp_path: Path) -> None:
    with Archive.open(packed(tmp_path, {})) as archive:
        assert list(archive.members) == []
        with pytest.raises(StoreRefused, match="has no member 'a'"):
            archive.read("a")
        assert archive.verify().damages == []


class FolderStore:
    """The two methods of a store that reading needs; counts requests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests = 0

    def address(self, key: str) -> str:
        return f"folder://{key}"

    def head(self, key: str) -> ObjectInfo | None:
        self.requests += 1
        path = self.folder / key
        return ObjectInfo(key, path.stat().st_size, None) if path.exists() else None

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        self.requests += 1
        return (self.folder / key).read_bytes()[offset : offset + length]


def test_an_object_in_a_store_is_read_by_range(tmp_path: Path) -> None:
    contents = payloads(6000)
    packed(tmp_path, contents, 2**16)
    store = FolderStore(tmp_path)
    archive = Archive.open(StoredArchive(store, "a.tar.zst"))  # type: ignore[arg-type]
    assert archive.read("消息.json") == contents["消息.json"]
    assert store.requests == 4  # its size, tail, page, frame
    with pytest.raises(StoreRefused, match="there is no archive folder://b"):
        StoredArchive(store, "b")  # type: ignore[arg-type]


# -- restoring ---------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 4])
def test_restore_gives_back_the_files(tmp_path: Path, threads: int) -> None:
    contents = payloads()
    with Archive.open(packed(tmp_path, contents)) as archive:
        report = archive.restore(tmp_path / "out", threads=threads)
    assert files_below(tmp_path / "out") == contents
    assert (report.restored, report.unchanged) == (len(contents), 0)
    assert (report.damages, report.refused) == ([], [])


def test_restore_takes_what_matches_the_pattern(tmp_path: Path) -> None:
    contents = payloads()
    with Archive.open(packed(tmp_path, contents)) as archive:
        archive.restore(str(tmp_path / "out"), "*.bin")
    assert set(files_below(tmp_path / "out")) == {"large.bin", "very large.bin"}


def test_restoring_by_pattern_does_not_fetch_members_in_between(tmp_path: Path) -> None:
    contents = {"first": b"1", "between": os.urandom(20 * 2**20), "last": b"2"}
    source = InMemory(packed(tmp_path, contents).read_bytes())
    report = Archive.open(source).restore(tmp_path / "out", "*st")
    assert report.restored == 2
    assert sum(length for _, length in source.reads) < 2**20


def test_a_restore_may_be_repeated_and_changes_no_existing_file(tmp_path: Path) -> None:
    contents = payloads()
    out = tmp_path / "out"
    with Archive.open(packed(tmp_path, contents)) as archive:
        archive.restore(out)
        (out / "one block").write_bytes(b"x" * 511 + b"y")
        (out / "empty.json").write_bytes(b"more")
        (out / "last.json").unlink()
        report = archive.restore(out)
    assert files_below(out) == contents | {"one block": b"x" * 511 + b"y", "empty.json": b"more"}
    assert (report.restored, report.unchanged) == (len(contents) - 2, len(contents) - 3)
    assert len(report.refused) == 2
    assert all("already exists with other content" in line for line in report.refused)


def hostile_tar(folder: Path) -> Path:
    """What an attacker would put into an archive."""
    path = folder / "hostile.tar.zst"
    with zstandard.open(path, "wb") as raw, tarfile.open(fileobj=raw, mode="w|") as tar:

        def add(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            tar.addfile(info)

        add("../above")
        add("/tmp/fuploader-absolute")
        add("a/../../above")
        add("way", tarfile.SYMTYPE, str(folder / "elsewhere"))
        add("way/through")
        add("hard", tarfile.LNKTYPE, "/etc/passwd")
        add("pipe", tarfile.FIFOTYPE)
        add("there/through")
        add("./good/file")
        add("empty-directory", tarfile.DIRTYPE)
    return path


def test_restore_never_leaves_its_folder(tmp_path: Path) -> None:
    """No `..`, no absolute name, no way through a link: one in the archive or one in the folder."""
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    out = tmp_path / "x" / "out"
    out.mkdir(parents=True)
    (out / "there").symlink_to(outside)
    with Archive.open(hostile_tar(tmp_path)) as archive:
        report = archive.restore(out)
    assert list(outside.iterdir()) == []
    assert not (tmp_path / "x" / "above").exists()
    assert not (tmp_path / "above").exists()
    assert not Path("/tmp/fuploader-absolute").exists()
    assert files_below(out) == {"way/through": b"", "good/file": b""}
    assert (out / "empty-directory").is_dir()
    assert [line.split("'")[1] for line in report.refused] == [
        "../above",
        "/tmp/fuploader-absolute",
        "a/../../above",
        "way",
        "hard",
        "pipe",
        "there/through",
    ]


def test_restore_by_manifest_refuses_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link.json").symlink_to(tmp_path / "target")
    contents = {"../up": b"1", "link.json": b"2", "sub/ok": b"3"}
    with Archive.open(packed(tmp_path, contents)) as archive:
        report = archive.restore(tmp_path / "out")
    assert not (tmp_path / "up").exists()
    assert not (tmp_path / "target").exists()
    assert (tmp_path / "out" / "sub" / "ok").read_bytes() == b"3"
    assert (report.restored, len(report.refused)) == (1, 2)


# -- archives of other tools -------------------------------------------------------------------


def plain_files(folder: Path) -> dict[str, bytes]:
    contents = payloads(30)
    folder.mkdir()
    for name, payload in contents.items():
        (folder / name).write_bytes(payload)
    return contents


@pytest.fixture(params=["fuploader", "gnu", "posix", "ustar-dot", "bsdtar"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """An archive of another program, and the members that it holds."""
    contents = plain_files(tmp_path / "dir-000001")
    path = tmp_path / "foreign.tar.zst"
    prefix = "dir-000001/"
    match request.param:
        case "fuploader":
            made = asyncio.run(tar_zstd_packer(tmp_path / "dir-000001"))
            assert made is not None
            path = made
        case "gnu" | "posix":
            command = ["tar", f"--format={request.param}", "--zstd", "-cf", str(path), "dir-000001"]
            subprocess.run(command, cwd=tmp_path, check=True)
        case "ustar-dot":
            (tmp_path / "dir-000001" / ("n" * 255)).unlink()
            del contents["n" * 255]
            command = ["tar", "--format=ustar", "--zstd", "-cf", str(path), "."]
            subprocess.run(command, cwd=tmp_path / "dir-000001", check=True)
            prefix = "./"
        case "bsdtar":
            command = ["bsdtar", "--zstd", "-cf", str(path), "dir-000001"]
            env = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
            subprocess.run(command, cwd=tmp_path, env=env, check=True)
    return path, {prefix + n: b for n, b in contents.items()}


def test_archives_of_other_tools_are_listed_read_and_restored(
    foreign: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    path, contents = foreign
    with Archive.open(path) as archive:
        assert {m.name: m.size_bytes for m in archive.members} == {
            n: len(b) for n, b in contents.items()
        }
        name = next(n for n in contents if n.endswith("very large.bin"))
        assert archive.read(name) == contents[name]
        report = archive.verify()
        assert (report.members, report.damages, report.has_digests) == (len(contents), [], False)
        assert archive.restore(tmp_path / "out").restored == len(contents)
    assert files_below(tmp_path / "out") == {n.removeprefix("./"): b for n, b in contents.items()}


def test_offsets_of_foreign_members_are_those_of_the_tar_stream(
    foreign: tuple[Path, dict[str, bytes]],
) -> None:
    path, contents = foreign
    with path.open("rb") as f:
        tar = zstandard.ZstdDecompressor().stream_reader(f, read_across_frames=True).read()
    with Archive.open(path) as archive:
        for m in archive.members:
            assert tar[m.payload_offset : m.payload_offset + m.size_bytes] == contents[m.name]


def test_a_foreign_archive_that_is_cut_off_is_an_error_at_every_position(
    foreign: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    """All that lies before the cut is still restored, and nothing else."""
    path, contents = foreign
    content = path.read_bytes()
    for cut in range(0, len(content), max(1, len(content) // 100)):
        archive = Archive.open(InMemory(content[:cut]))
        assert archive.verify().damages, cut
        with pytest.raises(DamagedArchive):
            _ = archive.members
    half = Archive.open(InMemory(content[: len(content) * 9 // 10]))
    report = half.restore(tmp_path / "out")
    found = files_below(tmp_path / "out")
    wanted = {n.removeprefix("./"): b for n, b in contents.items()}
    assert found.items() <= wanted.items()
    assert report.restored == len(found) > 0
    assert report.damages


def test_a_file_that_is_not_an_archive_is_damage(tmp_path: Path) -> None:
    for content in (b"", b"x", b"\0" * 600, os.urandom(5000)):
        archive = Archive.open(InMemory(content))
        assert archive.verify().damages
        with pytest.raises(DamagedArchive, match="memory"):
            _ = archive.members


@pytest.mark.parametrize("head", [b"7z\xbc\xaf\x27\x1c", b"PK\3\4", b"\x1f\x8b", b"\xfd7zXZ\0"])
def test_archives_of_other_formats_are_refused_by_name(tmp_path: Path, head: bytes) -> None:
    end = b"PK\5\6" + bytes(18)  # only a zip without any is cut off
    archive = Archive.open(InMemory(head + bytes(500) + end))
    for attempt in (
        archive.listing,
        archive.verify,
        lambda: archive.read("a"),
        lambda: archive.restore(tmp_path / "out"),
    ):
        with pytest.raises(ForeignArchive, match=r"memory is .* can only be read from \.tar\.zst"):
            attempt()


def test_the_documented_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "archives.md").read_text("utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    packed(tmp_path, {"1.json": b"one", "2.json": b"two"})
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["payload"] == b"one"
    assert files_below(tmp_path / "folder") == {"2.json": b"two"}


def test_packing_what_was_restored_gives_the_same_archive(tmp_path: Path) -> None:
    contents = dict(sorted(payloads().items()))
    path = packed(tmp_path, contents)
    with Archive.open(path) as archive:
        archive.restore(tmp_path / "out")
    with FolderMembers(tmp_path / "out", members(contents)) as source:
        again = write_archive(
            tmp_path / "b.tar.zst", source, frame_bytes=FRAME, metadata={"slot": "7"}
        )
    assert again.path.read_bytes() == path.read_bytes()
