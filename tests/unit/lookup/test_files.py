"""A file is read from wherever its newest copy is, and nothing damaged is returned as a whole."""

from __future__ import annotations

import hashlib
import math
import shutil
from pathlib import Path

import pytest

from fuploader_dagster.delivery.attempts import Done
from fuploader_dagster.delivery.find_archive import ArchiveFinder
from fuploader_dagster.delivery.process import process_partitions
from fuploader_dagster.delivery.redo import redo_partitions
from fuploader_dagster.delivery.ship import pack_partitions, ship
from fuploader_dagster.disk.header_text import to_text
from fuploader_dagster.errors import DamagedData, DamagedSlot
from fuploader_dagster.lookup import files
from fuploader_dagster.lookup.files import SMALL_BYTES, NoSuchFile, OpenFile, open_file
from fuploader_dagster.settings.archive_formats import SUFFIXES, ArchiveFormat
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.slot import SlotOwner
from tests.lives import pack_by_hand
from tests.processors_for_tests import Script, ScriptWithFolders, later, script
from tests.settings import pipeline, sealed

LARGE = bytes(range(256)) * (SMALL_BYTES // 256 + 9)


def opened(settings: Pipeline, name: str, partition: str | None = None) -> OpenFile:
    finder = ArchiveFinder({settings.name: settings})
    return open_file(settings, name, finder, partition=partition, most_bytes=math.inf)


def content(settings: Pipeline, name: str, partition: str | None = None) -> bytes:
    with opened(settings, name, partition) as file:
        found = b"".join(file.pieces())
    assert len(found) == file.size_bytes
    assert file.digest in (b"", hashlib.sha256(found).digest()[:16])
    return found


def shipped(settings: Pipeline) -> None:
    for outcome in ship(settings, settings.store.open()):
        assert isinstance(outcome, Done), outcome


@pytest.mark.parametrize("slot_format", ["segment", "files"])
def test_a_file_is_read_on_each_step_of_its_way(tmp_path: Path, slot_format: str) -> None:
    settings = pipeline(tmp_path, slot_format=slot_format, headers=["x"])
    with SlotOwner(settings, 0) as writer:
        writer.add("a.json", b"one", to_text({"x": "1"}))
        writer.add("large.bin", LARGE)
        writer.commit()
        assert content(settings, "a.json") == b"one"
        slot = writer.seal("request")
    assert slot is not None
    partition = slot.seal.partition
    assert content(settings, "a.json", partition) == b"one"
    list(pack_partitions([partition], settings))
    assert content(settings, "large.bin") == LARGE
    shipped(settings)
    assert content(settings, "a.json") == b"one"
    assert content(settings, "large.bin", partition) == LARGE
    with opened(settings, "a.json") as file:
        assert (file.headers, file.partition) == ({"x": "1"}, partition)
        assert file.address is not None


@pytest.mark.parametrize("archive_format", SUFFIXES)
def test_a_member_is_read_from_an_archive_of_any_format(
    tmp_path: Path, archive_format: ArchiveFormat
) -> None:
    settings = pipeline(tmp_path, archive_format=archive_format)
    sealed(settings, {"a.json": b'{"a": 1}', "b.json": LARGE})
    shipped(settings)
    assert content(settings, "a.json") == b'{"a": 1}'
    assert content(settings, "b.json") == LARGE


def test_a_member_of_an_archive_without_a_manifest_is_read(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, packer=pack_by_hand)
    sealed(settings, {"a.json": b"1"})
    shipped(settings)
    assert content(settings, "a.json") == b"1"


def test_of_several_copies_the_newest_is_read_and_the_partition_chooses_another(
    tmp_path: Path,
) -> None:
    settings = pipeline(tmp_path)
    partitions = []
    for number in range(2):
        partitions.append(sealed(settings, {"a.json": b"%d" % number}).seal.partition)
        shipped(settings)
    assert content(settings, "a.json") == b"1"
    partitions.append(sealed(settings, {"a.json": b"2"}).seal.partition)
    assert content(settings, "a.json") == b"2"
    assert [content(settings, "a.json", one) for one in partitions] == [b"0", b"1", b"2"]
    with SlotOwner(settings, 1) as writer:
        writer.add("a.json", b"3")
        writer.commit()
        assert content(settings, "a.json") == b"3"


def test_after_a_redo_results_come_from_the_new_archive(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, process=Script())
    partition = sealed(settings, {"redone.json": script(times=1)}).seal.partition
    shipped(settings)
    assert content(settings, "results/redone.json") == b"redone.json-0"
    later["redone.json"] = script(times=2)
    finder = ArchiveFinder({settings.name: settings})
    (outcome,) = redo_partitions([partition], settings, settings.store.open(), finder.open)
    assert isinstance(outcome, Done)
    assert content(settings, "results/redone.json") == b"redone.json-0" * 2


@pytest.mark.parametrize("process", [Script(), ScriptWithFolders()])
def test_results_are_read_before_they_are_stored(tmp_path: Path, process: Script) -> None:
    times = SMALL_BYTES // 8
    with_files = isinstance(process, ScriptWithFolders)
    steps = {"files": ["r.bin", "s.bin"], "times": times} if with_files else {"name": "r.bin"}
    settings = pipeline(tmp_path, process=process)
    partition = sealed(settings, {"a.json": script(**steps)}).seal.partition
    list(process_partitions([partition], settings))
    expected = b"a.json r.bin " * times if with_files else b"a.json-0"
    assert content(settings, "results/r.bin") == expected
    shipped(settings)
    assert content(settings, "results/r.bin") == expected


def test_a_damaged_copy_is_an_error_before_its_end(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, process=ScriptWithFolders())
    steps = script(files=["r.bin"], times=SMALL_BYTES // 8)
    slot = sealed(settings, {"a.json": steps})
    list(process_partitions([slot.seal.partition], settings))
    (result,) = (settings.layout.processed(0, 1) / "files").iterdir()
    whole = result.read_bytes()
    result.write_bytes(whole[:-1] + b"?")
    taken = 0
    with pytest.raises(DamagedData), opened(settings, "results/r.bin") as file:
        for piece in file.pieces():
            taken += len(piece)
    assert 0 < taken < len(whole)
    segment = slot.segment
    segment.write_bytes(segment.read_bytes().replace(b"r.bin", b"x.bin"))
    with pytest.raises(DamagedSlot, match=r"a\.json"):
        opened(settings, "a.json")


def test_a_damaged_archive_is_an_error_before_its_end(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    sealed(settings, {"a.json": b"1", "b.bin": LARGE})
    shipped(settings)
    (path,) = (tmp_path / "objects").rglob("*.tar.zst")
    damaged = bytearray(path.read_bytes())
    damaged[20] ^= 1
    path.chmod(0o600)
    path.write_bytes(damaged)
    with pytest.raises(DamagedData):
        opened(settings, "a.json")


def test_a_slot_that_is_stored_while_it_is_opened_is_read_from_its_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = pipeline(tmp_path)
    sealed(settings, {"a.json": b"1"})
    look = files.on_this_disk

    def then_ship(*arguments: object) -> object:
        found = list(look(*arguments))  # type: ignore[arg-type]
        shipped(settings)
        return found

    monkeypatch.setattr(files, "on_this_disk", then_ship)
    with opened(settings, "a.json") as file:
        assert file.address is not None
        assert b"".join(file.pieces()) == b"1"


@pytest.mark.parametrize(
    "name", ["", "..", "../index", "a~2.json", "%2e%2e", "a\0.json", "\ud800", "x" * 4096, "A.JSON"]
)
def test_there_is_no_file_of_a_name_that_no_message_has(tmp_path: Path, name: str) -> None:
    settings = pipeline(tmp_path)
    sealed(settings, {"a.json": b"1"})
    shipped(settings)
    sealed(settings, {"b.json": b"1"})
    with pytest.raises(NoSuchFile, match="there is no file"):
        opened(settings, name)
    with pytest.raises(NoSuchFile, match="in 2026"):
        opened(settings, "b.json", "2026")
    shutil.rmtree(settings.layout.shipped)
    settings.layout.catalog.unlink()
    with pytest.raises(NoSuchFile, match="older archives"):
        opened(settings, "a.json")
