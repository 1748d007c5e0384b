"""A folder into which members are written: whatever they are called, and wherever it is killed."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuploader_dagster.archives import restore_folder
from fuploader_dagster.archives.restore_folder import Refused, RestoreFolder
from fuploader_dagster.errors import DamagedArchive

CONTENT = b"0123456789" * 1000


def pieces(content: bytes = CONTENT) -> Iterator[memoryview]:
    for start in range(0, len(content), 1000):
        yield memoryview(content)[start : start + 1000]


def dying() -> Iterator[memoryview]:
    """As a process that is killed in the middle of a member."""
    yield memoryview(CONTENT)[:5000]
    os.kill(os.getpid(), signal.SIGKILL)


def killed_while_writing(folder: Path, name: str) -> None:
    child = os.fork()
    if child == 0:
        try:
            with RestoreFolder(folder) as target:
                target.write("whole", pieces())
                target.write(name, dying())
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ["a.bin", "deep/er/a.bin"])
def test_a_killed_restore_leaves_no_partial_file_and_can_be_repeated(
    name: str, tmp_path: Path
) -> None:
    killed_while_writing(tmp_path, name)
    assert (tmp_path / "whole").read_bytes() == CONTENT
    assert not (tmp_path / name).exists()
    with RestoreFolder(tmp_path) as target:
        assert not target.write("whole", pieces())
        assert target.write(name, pieces())
    assert (tmp_path / name).read_bytes() == CONTENT
    folders = {str(above) for above in Path(name).parents if above.name}
    assert names_below(tmp_path) == {"whole", name, *folders}


def test_a_damaged_member_leaves_nothing(tmp_path: Path) -> None:
    def damaged() -> Iterator[memoryview]:
        yield memoryview(CONTENT)
        raise DamagedArchive("not what it was")

    with RestoreFolder(tmp_path) as target, pytest.raises(DamagedArchive):
        target.write("a.bin", damaged())
    assert names_below(tmp_path) == set()


def test_two_restores_into_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    def meanwhile() -> Iterator[memoryview]:
        yield memoryview(CONTENT)[:5000]
        with RestoreFolder(tmp_path) as other:
            assert other.write("b.bin", pieces())
            assert other.write("a.bin", pieces(b"theirs"))
        yield memoryview(CONTENT)[5000:]

    with RestoreFolder(tmp_path) as target, pytest.raises(Refused, match="another program created"):
        target.write("a.bin", meanwhile())
    assert (tmp_path / "a.bin").read_bytes() == b"theirs"
    assert names_below(tmp_path) == {"a.bin", "b.bin"}


def test_without_links_in_the_file_system_files_are_renamed_and_none_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(restore_folder.os, "link", no_links)
    (tmp_path / "mine").write_bytes(b"mine")
    with RestoreFolder(tmp_path) as target:
        assert target.write("a.bin", pieces())
        with pytest.raises(Refused):
            target.write("mine", pieces())
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert (tmp_path / "mine").read_bytes() == b"mine"


def test_of_two_members_with_one_name_the_last_one_counts(tmp_path: Path) -> None:
    with RestoreFolder(tmp_path) as target:
        assert target.write("a", [memoryview(b"first")])
        assert target.write("a", [memoryview(b"last")], again=True)
    assert (tmp_path / "a").read_bytes() == b"last"


NAMES_THAT_LEAD_OUT = [
    "../a",
    "/tmp/a",
    "//tmp/a",
    "a/../../b",
    "a/..",
    "..",
    "",
    "/",
    ".",
    "a\0b",
    "link/a",
    "dangling",
    "x" * 256,
    ".tmp-0123456789abcdef-restoring/a",
]


@pytest.mark.parametrize("name", NAMES_THAT_LEAD_OUT)
def test_a_name_that_leads_outside_is_refused_and_nothing_is_written(
    name: str, tmp_path: Path
) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    (folder / "dangling").symlink_to(outside / "new")
    with RestoreFolder(folder) as target, pytest.raises(Refused):
        target.write(name, pieces())
    assert list(outside.iterdir()) == []
    assert names_below(tmp_path) == {"outside", "folder", "folder/link", "folder/dangling"}


def test_files_that_only_look_like_a_restores_leftovers_stay(tmp_path: Path) -> None:
    (tmp_path / ".tmp-0123456789abcdef-restoring").symlink_to(tmp_path)
    (tmp_path / ".tmp-0123456789abcdee-restoring").write_bytes(b"a file")
    (tmp_path / ".tmp-0123456789abcdef-notes").mkdir()
    held = tmp_path / ".tmp-0123456789abcded-restoring"
    held.mkdir()
    before = names_below(tmp_path)
    descriptor = os.open(held, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        RestoreFolder(tmp_path).close()
        assert names_below(tmp_path) == before
    finally:
        os.close(descriptor)
