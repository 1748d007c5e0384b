"""Archives of other tools are read as GNU tar, bsdtar and Python's tarfile read them."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from fuploader_dagster.archives import scanned_members
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.errors import StoreRefused, TooLarge
from tests.unit.archives.archives import InMemory
from tests.unit.archives.test_archive_reader import files_below

FILES = {
    "aaa.json": b"{}",
    "empty": b"",
    "inner/b.json": b"b" * 5000,
    "n" * 150: b"a long name",
    "消息.json": "内容".encode(),
    "z0.json": b"behind the sparse ones",
    "z1.json": b"1",
    "z2.json": b"2",
}
KINDS = {
    "symlink": "a symbolic link to 'aaa.json'",
    "l" * 120: f"a symbolic link to {'t' * 130!r}",
    "pipe": "a named pipe",
}
PIECES = (2, 5, 30, 400)
"""Of sparse files. Four fit into GNU's header, 21 into each block behind it."""
ENVIRONMENT = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}


def corpus(folder: Path) -> Path:
    """A folder with everything that a tar can hold."""
    made = folder / "corpus"
    for name, content in FILES.items():
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (made / "symlink").symlink_to("aaa.json")
    (made / ("l" * 120)).symlink_to("t" * 130)
    os.link(made / "z0.json", made / "z0-linked.json")
    os.mkfifo(made / "pipe")
    (made / "nothing in it").mkdir()
    for pieces in PIECES:
        with (made / f"sparse-{pieces}").open("wb") as file:
            for number in range(pieces):
                file.seek(number << 16)
                file.write(b"d" * 4096)
            file.truncate((pieces << 16) + 1)
    return made


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def by_gnu(*options: str) -> Callable[[Path, Path], None]:
    def pack(folder: Path, made: Path) -> None:
        command = ["tar", *options, "-cf", str(made), "--", *names_in(folder)]
        command.insert(1, "--no-recursion")
        subprocess.run(command, cwd=folder, env=ENVIRONMENT, check=True)

    return pack


def by_bsdtar(form: str) -> Callable[[Path, Path], None]:
    def pack(folder: Path, made: Path) -> None:
        command = ["bsdtar", f"--format={form}", "-n", "-cf", str(made), "--", *names_in(folder)]
        subprocess.run(command, cwd=folder, env=ENVIRONMENT, check=True)

    return pack


def by_tarfile(form: int) -> Callable[[Path, Path], None]:
    def pack(folder: Path, made: Path) -> None:
        with tarfile.open(made, "w", format=form) as tar:
            for name in names_in(folder):
                tar.add(folder / name, name, recursive=False)

    return pack


TOOLS = {
    "gnu": by_gnu("--format=gnu"),
    "gnu-sparse": by_gnu("--format=gnu", "-S"),
    "posix-sparse-1.0": by_gnu("--format=posix", "-S", "--sparse-version=1.0"),
    "posix-sparse-0.1": by_gnu("--format=posix", "-S", "--sparse-version=0.1"),
    "posix-sparse-0.0": by_gnu("--format=posix", "-S", "--sparse-version=0.0"),
    "oldgnu": by_gnu("--format=oldgnu", "-S"),
    "bsdtar-pax": by_bsdtar("pax"),
    "bsdtar-gnutar": by_bsdtar("gnutar"),
    "python-pax": by_tarfile(tarfile.PAX_FORMAT),
    "python-gnu": by_tarfile(tarfile.GNU_FORMAT),
}


def compressed(tar: bytes) -> Archive:
    return Archive(InMemory(zstandard.ZstdCompressor(write_checksum=True).compress(tar)))


@pytest.mark.parametrize("tool", TOOLS)
def test_what_a_tool_packed_is_read_as_all_three_read_it(tool: str, tmp_path: Path) -> None:
    """Names, kinds and contents; of links and sparse files the name, and what they are."""
    made = tmp_path / "a.tar"
    TOOLS[tool](corpus(tmp_path), made)
    with tarfile.open(made) as tar:
        by_python = {one.name: one for one in tar.getmembers()}
    archive = compressed(made.read_bytes())
    listing = archive.listing()
    assert listing.damages == []
    kinds = {one.name: one.kind for one in listing.others}
    files = {one.name: one.size_bytes for one in listing.members}
    assert {*kinds, *files} == {name for name, one in by_python.items() if not one.isdir()}
    for command in ("tar", "bsdtar"):
        told = subprocess.run(
            [command, *(["--quoting-style=literal"] if command == "tar" else []), "-tf", made],
            env=ENVIRONMENT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        assert {name for name in told if not name.endswith("/")} == {*kinds, *files}
    sparse = {name for name, one in by_python.items() if one.issparse()}
    assert {name for name, kind in kinds.items() if kind == "a sparse file"} == sparse
    assert bool(sparse) == ("sparse" in tool or tool in ("oldgnu", "bsdtar-pax"))
    assert {name: kinds[name] for name in KINDS} == KINDS
    (linked,) = kinds.keys() & {"z0.json", "z0-linked.json"}
    first = "z0.json" if linked == "z0-linked.json" else "z0-linked.json"
    assert kinds[linked] == f"a hard link to {first!r}"
    report = archive.restore(tmp_path / "ours")
    assert report.damages == []
    assert len(report.refused) == len(kinds)
    unpacked = tmp_path / "theirs"
    unpacked.mkdir()
    subprocess.run(["tar", "-xf", made, "-C", unpacked], env=ENVIRONMENT, check=True)
    for name in files:
        assert (tmp_path / "ours" / name).read_bytes() == (unpacked / name).read_bytes()
    assert files_below(tmp_path / "ours").keys() == files.keys()
    assert (tmp_path / "ours" / "nothing in it").is_dir()


def tar_of(members: list[tuple[str, bytes | str]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar with these members in this order; text instead of bytes is where a link leads to."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def test_of_two_members_with_one_name_the_last_one_counts_as_for_tar(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    made = tmp_path / "a.tar"
    for content in ("first", "second, and longer", "last"):
        (source / "a").write_text(content)
        (source / content[0]).write_text(content)
        subprocess.run(["tar", "-rf", made, "-C", source, "a", content[0]], check=True)
    archive = compressed(made.read_bytes())
    assert archive.read("a") == b"last"
    assert dict(archive.payloads(lambda _: True)) == {
        "a": b"last",
        "f": b"first",
        "s": b"second, and longer",
        "l": b"last",
    }
    for _ in range(2):  # the second time everything is there
        report = archive.restore(tmp_path / "out")
        assert report.refused == []
        assert (tmp_path / "out" / "a").read_bytes() == b"last"
    assert (report.restored, report.unchanged) == (4, 4)
    (tmp_path / "out" / "a").write_bytes(b"somebody's own")
    assert len(archive.restore(tmp_path / "out").refused) == 1
    assert (tmp_path / "out" / "a").read_bytes() == b"somebody's own"


def test_a_member_too_large_to_hold_in_memory_is_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scanned_members, "_HELD_BYTES", 100)
    archive = compressed(tar_of([("a", b"1" * 500), ("b", b"b"), ("a", b"2" * 101), ("c", b"c")]))
    assert archive.read("a") == b"2" * 101
    assert archive.read("c") == b"c"


def test_reading_a_member_without_content_says_what_it_is(tmp_path: Path) -> None:
    archive = compressed(tar_of([("a", b"a"), ("link", "a"), ("b", b"file"), ("b", "a")]))
    for name in ("link", "b"):
        with pytest.raises(StoreRefused, match="is a symbolic link to 'a', which has no content"):
            archive.read(name)


@pytest.mark.parametrize("log", range(20, 32))
def test_a_long_window_is_read_if_memory_allows_and_refused_otherwise(
    log: int, tmp_path: Path
) -> None:
    """`zstd --long`, where the frame does not state its size: it needs the whole window."""
    tar = tar_of([("a.json", b"{}" * 1000)])
    content = subprocess.run(
        ["zstd", "-q", "-c", f"--long={log}"], input=tar, check=True, stdout=subprocess.PIPE
    ).stdout
    window = zstandard.get_frame_parameters(content).window_size
    assert window == 1 << log
    allowed = Archive(InMemory(content), memory_bytes=2**31)
    assert allowed.read("a.json") == b"{}" * 1000
    assert allowed.verify().damages == []
    usual = Archive(InMemory(content))
    if log <= 30:
        assert usual.verify().members == 1
        return
    for read in (usual.verify, usual.listing, lambda: usual.read("a.json")):
        with pytest.raises(TooLarge, match=rf"needs {window:,} bytes of memory.*--max-memory"):
            read()
    assert "needs" in usual.restore(tmp_path / "out").refused[0]


@pytest.mark.parametrize("tool", ["pzstd", "--rsyncable", "--format=skippable"])
def test_archives_of_several_frames_are_read_over_all_of_them(tool: str, tmp_path: Path) -> None:
    tar = tar_of([(f"{n}.json", os.urandom(200_000)) for n in range(30)])
    made = tmp_path / "a.tar"
    made.write_bytes(tar)
    if tool == "pzstd":
        subprocess.run(["pzstd", "-q", "-p", "4", made], check=True)
    elif tool == "--rsyncable":
        subprocess.run(["zstd", "-q", "--rsyncable", made], check=True)
    else:
        half = zstandard.ZstdCompressor(write_checksum=True)
        skipped = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
        parts = [half.compress(tar[at : at + 999_999]) for at in range(0, len(tar), 999_999)]
        (tmp_path / "a.tar.zst").write_bytes(skipped.join(parts))
    report = Archive.open(tmp_path / "a.tar.zst").verify()
    assert (report.members, report.damages) == (30, [])
