"""Messages on the disk are their owner's alone; what is made for others stays readable to them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuploader_dagster.archives.ranges import LocalFile
from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.delivery.recovery import seal_on_request
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.disk.durable import make_dirs
from fuploader_dagster.resources.object_stores import Local
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.resources.states.sqlite import SqliteState
from fuploader_dagster.settings.pipeline import Pipeline
from tests.drains import draining, publish_bodies, wait_until_handled
from tests.settings import sealed

EVERYBODY, GROUP = 0o007, 0o070


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    """The worst one: all that is not forbidden is allowed."""
    before = os.umask(0)
    yield
    os.umask(before)


def worked(folder: Path) -> Pipeline:
    """A pipeline that has drained, with a dead letter, shipped, and has a slot that waits."""
    inside = folder / "data"
    settings = Pipeline(
        name="docs",
        storage_root=inside,
        source=EmbeddedQueue(path=inside / "queue"),
        state=SqliteState(path=inside / "state" / "state.sqlite"),
        store=Local(path=str(folder / "objects")),
        message_format="json",
        min_free_bytes=0,
        seal_messages=2,
        commit_messages=1,
    )
    publish_bodies(settings, [b'{"file_name": "a", "a": 1}', b"no JSON", b'{"file_name": "b"}'])
    with draining(settings.intake()):
        wait_until_handled(settings.intake(), 3)
    sealed(settings, {"c": b"c"}, slot=7)
    assert len(list(ship(settings, settings.store.open()))) >= 1
    sealed(settings, {"d": b"d"}, slot=7)
    seal_on_request(settings)
    return settings


def modes(folder: Path) -> dict[str, int]:
    found = {"": stat.S_IMODE(folder.stat().st_mode)}
    for path in folder.rglob("*"):
        found[str(path.relative_to(folder))] = stat.S_IMODE(path.lstat().st_mode)
    return found


def test_nobody_else_reads_what_is_on_the_disk_whatever_the_umask(tmp_path: Path) -> None:
    settings = worked(tmp_path)
    found = modes(settings.storage_root)
    names = " ".join(found)
    for one in ("segment.tar", "queue.sqlite", "state.sqlite", "dead-letters/", "receipts/"):
        assert one in names
    assert {name: oct(mode) for name, mode in found.items() if mode & (EVERYBODY | GROUP)} == {}


def test_a_set_group_id_bit_on_the_folder_shares_what_is_below_with_its_group(
    tmp_path: Path,
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o2750)
    found = modes(worked(tmp_path).storage_root)
    assert {name for name, mode in found.items() if mode & EVERYBODY} == set()
    assert {name for name, mode in found.items() if not mode & stat.S_IRGRP} == set()
    assert {name for name, mode in found.items() if mode & stat.S_IWGRP} == set()


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o755)
    make_dirs(tmp_path / "data" / "below")
    found = modes(tmp_path / "data")
    assert found == {"": 0o755, "below": 0o700}


def test_objects_of_a_local_store_and_restored_files_are_for_others(tmp_path: Path) -> None:
    worked(tmp_path)
    os.umask(0o022)
    found = {name: mode for name, mode in modes(tmp_path / "objects").items() if mode & 0o4}
    assert len(found) == len(modes(tmp_path / "objects"))
    archive = next((tmp_path / "objects").rglob("*.tar.zst"))
    with Archive.open(LocalFile(archive)) as opened:
        opened.restore(tmp_path / "out" / "deep")
    assert modes(tmp_path / "out").pop("") == 0o755
    restored = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert restored
    assert {stat.S_IMODE(path.stat().st_mode) for path in restored} == {0o644}
