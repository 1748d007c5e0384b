"""Our own files: nothing else is opened in their place, and what the system says has a way out."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from fuploader_dagster.dead_letters.counts import read_counts
from fuploader_dagster.dead_letters.letters import read_dead_letters
from fuploader_dagster.disk.durable import append_durably, make_dirs
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.disk.own_files import open_own, read_own, still_at
from fuploader_dagster.disk.root_id import root_id
from fuploader_dagster.disk.trouble import naming_disk_trouble
from fuploader_dagster.errors import DiskFailed, DiskFull, ForeignFile, FuploaderError
from fuploader_dagster.slots.receipts import find_receipt
from tests.settings import intake

SECRET = b"the content of somebody else's file"


def a_link(place: Path) -> None:
    (place.parent / "secret").write_bytes(SECRET)
    place.symlink_to(place.parent / "secret")


PLANTS: dict[str, Callable[[Path], object]] = {
    "a link": a_link,
    "a named pipe": os.mkfifo,
    "a folder": Path.mkdir,
}
USES: dict[str, Callable[[Path], object]] = {
    "read": read_own,
    "write": lambda path: open_own(path, os.O_RDWR | os.O_CREAT),
    "append": lambda path: append_durably(path, b"line\n"),
    "lock": lambda path: FileLock(path).acquire(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize(("kind", "plant"), PLANTS.items(), ids=PLANTS)
def test_something_else_in_the_place_of_our_file_is_named_and_not_touched(
    tmp_path: Path, kind: str, plant: Callable[[Path], object], use: Callable[[Path], object]
) -> None:
    place = tmp_path / "ours"
    plant(place)
    with pytest.raises(ForeignFile, match=f"{place} should be a file, but is {kind}.*move it out"):
        use(place)
    if kind == "a link":
        assert (tmp_path / "secret").read_bytes() == SECRET


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "workers").write_bytes(b"x")
    with (
        pytest.raises(ForeignFile, match=f"{tmp_path}/workers is in the way"),
        naming_disk_trouble(tmp_path),
    ):
        make_dirs(tmp_path / "workers")


@pytest.mark.parametrize(
    ("number", "error", "advice"),
    [
        (errno.ENOSPC, DiskFull, "free some space"),
        (errno.EDQUOT, DiskFull, "free some space"),
        (errno.EFBIG, DiskFull, "ulimit -f"),
        (errno.EIO, DiskFailed, "dmesg"),
        (errno.EROFS, DiskFailed, "dmesg"),
        (errno.ENODEV, DiskFailed, "dmesg"),
        (errno.EMFILE, DiskFailed, "ulimit -n"),
        (errno.ENFILE, DiskFailed, "fs.file-max"),
        (errno.EACCES, DiskFailed, "belongs to root and this process runs as root"),
        (errno.EPERM, DiskFailed, "belongs to root and this process runs as root"),
        (errno.ENOENT, DiskFailed, "removed or renamed it"),
        (errno.ESTALE, DiskFailed, "removed or renamed it"),
        (errno.ENAMETOOLONG, DiskFailed, "does not allow such a name"),
        (errno.EILSEQ, DiskFailed, "does not allow such a name"),
        (errno.EINVAL, DiskFailed, "dmesg"),
        (errno.EISDIR, ForeignFile, "move it out of storage_root"),
        (errno.ELOOP, ForeignFile, "move it out of storage_root"),
    ],
)
def test_an_os_error_becomes_an_error_with_the_path_and_what_to_do(
    tmp_path: Path, number: int, error: type[FuploaderError], advice: str
) -> None:
    place = tmp_path / "index"
    with pytest.raises(error) as raised, naming_disk_trouble(place):
        raise OSError(number, os.strerror(number))
    assert str(place) in raised.value.message
    assert advice in raised.value.hint


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "reset"),
        socket.gaierror(-2, "Name or service not known"),
        ssl.SSLError(1, "certificate verify failed"),
    ],
)
def test_network_errors_are_not_reported_as_disk_errors(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(type(error)), naming_disk_trouble(tmp_path):
        raise error


def test_a_file_that_is_no_longer_found_by_its_name_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "index"
    path.parent.mkdir()
    descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
    still_at(descriptor, path)
    path.parent.rename(tmp_path / "elsewhere")
    with pytest.raises(DiskFailed, match=f"{path} is gone: .*removed or renamed"):
        still_at(descriptor, path)
    path.parent.mkdir()
    path.touch()
    with pytest.raises(DiskFailed, match=f"{path} is a different one now"):
        still_at(descriptor, path)
    os.close(descriptor)


@pytest.mark.parametrize("damaged", [b"", b"\xff\xfe", b"no identity"])
def test_a_damaged_identity_is_set_aside_and_the_folder_gets_a_new_one(
    tmp_path: Path, damaged: bytes
) -> None:
    layout = intake(tmp_path).layout
    make_dirs(layout.root)
    layout.root_id.write_bytes(damaged)
    found = root_id(layout)
    assert len(found) == 32
    assert root_id(layout) == found
    assert [path.read_bytes() for path in layout.set_aside.iterdir()] == [damaged]


@pytest.mark.parametrize(("kind", "plant"), PLANTS.items(), ids=PLANTS)
def test_no_reader_of_lines_follows_a_link_or_waits_for_a_pipe(
    tmp_path: Path, kind: str, plant: Callable[[Path], object]
) -> None:
    layout = intake(tmp_path).layout
    layout.receipts.mkdir(parents=True)
    layout.dead_letters.mkdir()
    plant(layout.receipts / "20261120T23.jsonl")
    plant(layout.dead_letters / "20261120-w0.jsonl")
    plant(layout.dead_letters / "counts-w0.json")
    with pytest.raises(ForeignFile, match=f"20261120T23.*is {kind}"):
        find_receipt(layout, "20261120T234501123Z-node1-s0-000017")
    with pytest.raises(ForeignFile, match=f"20261120-w0.*is {kind}"):
        list(read_dead_letters(layout))
    assert read_counts(layout).total == 0
