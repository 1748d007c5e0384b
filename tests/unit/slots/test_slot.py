"""Slots: one writer, no name twice, nothing beyond the last commit, sealed for ever."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
from xxhash import xxh3_128

from fuploader_dagster.delivery.recovery import seal_unowned
from fuploader_dagster.disk.crash_points import CrashPoint, observe
from fuploader_dagster.errors import DamagedSlot, DiskFailed, ForeignFile, SlotInUse
from fuploader_dagster.slots.index import COMMIT_BYTES, HEADER_BYTES
from fuploader_dagster.slots.numbered_names import numbered_name
from fuploader_dagster.slots.sealing import SealedSlot, find_sealed, sealed_partitions
from fuploader_dagster.slots.segment import SEGMENT_NAME
from fuploader_dagster.slots.slot import SlotOwner
from tests.settings import intake

FORMATS = ["segment", "files"]


def contents(sealed: SealedSlot) -> dict[str, bytes]:
    """What a sealed slot holds, read without the code under test."""
    entries = sealed.entries()
    if sealed.seal.slot_format == "files":
        return {e.name: (sealed.files / e.name).read_bytes() for e in entries}
    data = sealed.segment.read_bytes()
    starts = {e.name: e.offset + e.header_bytes for e in entries}
    return {e.name: data[starts[e.name] : starts[e.name] + e.size_bytes] for e in entries}


@pytest.mark.parametrize("slot_format", FORMATS)
def test_a_sealed_slot_holds_every_committed_message(tmp_path: Path, slot_format: str) -> None:
    settings = intake(tmp_path, slot_format=slot_format)
    files = {f"m{n}.json": f"content {n}".encode() * n for n in range(50)}
    with SlotOwner(settings, 0) as slot:
        for name, content in files.items():
            assert slot.add(name, content)
        slot.commit()
        sealed = slot.seal("request")
    assert sealed is not None
    assert contents(sealed) == files
    assert sealed.seal.messages == 50
    assert sealed_partitions(settings.layout) == [sealed.seal.partition]
    found = find_sealed(settings.layout, sealed.seal.partition)
    assert found == sealed


def test_tar_lists_a_slot_that_is_still_growing(tmp_path: Path) -> None:
    with SlotOwner(intake(tmp_path), 0) as slot:
        slot.add("a.json", b"{}")
        slot.add("ü" * 100, b"x" * 5000)
        slot.commit()
        segment = slot.layout.active(0, 1) / SEGMENT_NAME
        listed = subprocess.run(["tar", "-tf", str(segment)], capture_output=True, check=False)
    assert listed.stdout.decode("unicode_escape").encode("latin-1").decode().split() == [
        "a.json",
        "ü" * 100,
    ]


@pytest.mark.parametrize("slot_format", FORMATS)
def test_a_name_keeps_every_different_content_and_no_content_twice(
    tmp_path: Path, slot_format: str
) -> None:
    settings = intake(tmp_path, slot_format=slot_format)
    with SlotOwner(settings, 0) as slot:
        taken = [slot.add("a.json", content) for content in (b"1", b"1", b"2", b"3", b"2", b"1")]
        slot.commit()
    with SlotOwner(settings, 0) as slot:
        taken += [slot.add("a.json", content) for content in (b"2", b"4", b"3", b"4")]
        sealed = slot.seal("request")
    assert taken == [True, False, True, True, False, False, False, True, False, False]
    assert sealed is not None
    assert contents(sealed) == {
        "a.json": b"1",
        "a~2.json": b"2",
        "a~3.json": b"3",
        "a~4.json": b"4",
    }


def test_a_numbered_name_is_always_a_legal_file_name() -> None:
    assert numbered_name("a.json", 2) == "a~2.json"
    assert numbered_name("a", 3) == "a~3"
    assert numbered_name(".hidden", 2) == ".hidden~2"
    assert numbered_name("x." + "y" * 200, 2) == "x." + "y" * 200 + "~2"
    long = numbered_name("ü" * 125 + ".json", 12)
    assert long.endswith("~12.json")
    assert len(long.encode()) <= 255


@pytest.mark.parametrize("slot_format", FORMATS)
def test_what_a_crash_leaves_beyond_the_last_commit_is_cut_off(
    tmp_path: Path, slot_format: str
) -> None:
    settings = intake(tmp_path, slot_format=slot_format)
    with SlotOwner(settings, 0) as slot:
        slot.add("kept.json", b"kept")
        slot.commit()
        directory = slot.layout.active(0, 1)
    if slot_format == "segment":
        with (directory / SEGMENT_NAME).open("ab") as segment:
            segment.write(b"half a message")
    else:
        (directory / "files" / "half.json").write_bytes(b"half a mess")
    with (directory / "index").open("ab") as index:
        index.write(b"half a record")
    with SlotOwner(settings, 0) as slot:
        assert slot.count.messages == 1
        slot.add("later.json", b"later")
        sealed = slot.seal("request")
    assert sealed is not None
    assert contents(sealed) == {"kept.json": b"kept", "later.json": b"later"}
    if slot_format == "files":  # what is not recognised is moved, not deleted
        assert [p.read_bytes() for p in settings.layout.set_aside.iterdir()] == [b"half a mess"]


@pytest.mark.parametrize("cut", ["segment", "index"])
def test_an_index_or_segment_cut_at_any_byte_never_yields_a_wrong_message(
    tmp_path: Path, cut: str
) -> None:
    settings = intake(tmp_path)
    with SlotOwner(settings, 0) as slot:
        for n in range(3):
            slot.add(f"{n}.json", b"x" * 300)
            slot.commit()
        directory = slot.layout.active(0, 1)
    path = directory / ("index" if cut == "index" else SEGMENT_NAME)
    whole = path.read_bytes()
    other = directory / (SEGMENT_NAME if cut == "index" else "index")
    kept = other.read_bytes()
    for length in range(0, len(whole), 7):
        directory.mkdir(exist_ok=True)
        path.write_bytes(whole[:length])
        other.write_bytes(kept)
        with SlotOwner(settings, 0) as slot:
            if cut == "segment":  # committed bytes are gone: set aside, what is whole stored again
                assert slot.count.messages == length // 1024
                assert not directory.exists()
                slot.seal("request")
            elif length < HEADER_BYTES:  # the header was there before any data
                assert slot.count.messages == 0
                assert not directory.exists()
            else:
                assert slot.count.messages == (length - HEADER_BYTES) // (COMMIT_BYTES + 62)


@pytest.mark.parametrize("slot_format", FORMATS)
@pytest.mark.parametrize("damaged", ["data", "first commit", "last commit"])
def test_what_a_damaged_directory_proves_is_stored_again_and_the_rest_is_set_aside(
    tmp_path: Path, slot_format: str, damaged: str
) -> None:
    settings = intake(tmp_path, slot_format=slot_format)
    files = {f"{n}.json": b"%d" % n * 100 for n in range(6)}
    with SlotOwner(settings, 0) as slot:
        for number, (name, content) in enumerate(files.items()):
            slot.add(name, content)
            if number % 2:
                slot.commit()
        directory = slot.layout.active(0, 1)
    data = directory / SEGMENT_NAME if slot_format == "segment" else directory / "files/0.json"
    path = data if damaged == "data" else directory / "index"
    length = path.stat().st_size
    place = {"data": 520 % length, "first commit": 50, "last commit": length - 1}[damaged]
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    lost = "5.json" if damaged == "last commit" else "0.json"

    def killed(step: CrashPoint) -> None:
        if step is CrashPoint.INDEX_SYNCED:
            raise InterruptedError

    observe(killed)
    try:
        with pytest.raises(InterruptedError), SlotOwner(settings, 0):
            pytest.fail("it was not killed")
    finally:
        observe(None)
    with SlotOwner(settings, 0) as slot:
        assert slot.count.messages == 5
        slot.add("later.json", b"later")
        sealed = slot.seal("request")
    assert sealed is not None
    assert sealed.seal.number == 2
    del files[lost]
    assert contents(sealed) == {**files, "later.json": b"later"}
    (aside,) = settings.layout.set_aside.iterdir()
    assert (aside / path.relative_to(directory)).read_bytes() == content


def test_a_directory_of_another_version_is_moved_aside_whole_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = intake(tmp_path)
    with SlotOwner(settings, 0) as slot:
        slot.add("a.json", b"a")
        slot.commit()
        path = slot.layout.active(0, 1) / "index"
    start = b"FUPINDEX" + struct.pack("<I", 1)
    old = start + struct.pack("<I", zlib.crc32(start)) + path.read_bytes()[HEADER_BYTES:]
    path.write_bytes(old)
    with SlotOwner(settings, 0) as slot:
        assert slot.count.messages == 0
    assert "index has version 1, this software reads 2 and 3 (use the version that" in caplog.text
    (aside,) = settings.layout.set_aside.iterdir()
    assert (aside / "index").read_bytes() == old


def test_two_writers_never_share_a_slot(tmp_path: Path) -> None:
    settings = intake(tmp_path)
    with SlotOwner(settings, 0), pytest.raises(SlotInUse, match="process"), SlotOwner(settings, 0):
        pytest.fail("the slot was opened twice")
    with SlotOwner(settings, 0):
        pass


@pytest.mark.parametrize("slot_format", FORMATS)
def test_a_seal_interrupted_before_the_rename_is_finished_by_the_next_owner(
    tmp_path: Path, slot_format: str
) -> None:
    settings = intake(tmp_path, slot_format=slot_format)
    with SlotOwner(settings, 0) as slot:
        slot.add("a.json", b"a")
        sealed = slot.seal("count")
    assert sealed is not None
    sealed.directory.rename(settings.layout.active(0, 1))
    with SlotOwner(settings, 0) as slot:
        assert slot.found_sealed == [sealed]
        assert slot.count.messages == 0
    assert contents(sealed) == {"a.json": b"a"}


@pytest.mark.parametrize("slot_format", FORMATS)
def test_a_seal_that_rots_before_the_rename_costs_no_message(
    tmp_path: Path, slot_format: str
) -> None:
    settings = intake(tmp_path, slot_format=slot_format)
    with SlotOwner(settings, 0) as slot:
        slot.add("a.json", b"a")
        slot.add("b.json", b"b")
        sealed = slot.seal("count")
    assert sealed is not None
    directory = settings.layout.active(0, 1)
    sealed.directory.rename(directory)
    (directory / "seal.json").write_bytes(b"\0" * 40)
    with SlotOwner(settings, 0) as slot:
        assert slot.found_sealed == []
        again = slot.seal("request")
    assert again is not None
    assert contents(again) == {"a.json": b"a", "b.json": b"b"}
    (kept,) = settings.layout.set_aside.iterdir()
    assert (kept / "seal.json").read_bytes() == b"\0" * 40


def test_a_directory_that_another_version_sealed_is_moved_aside_whole(tmp_path: Path) -> None:
    settings = intake(tmp_path)
    with SlotOwner(settings, 0) as slot:
        slot.add("a.json", b"a")
        sealed = slot.seal("count")
    assert sealed is not None
    directory = settings.layout.active(0, 1)
    sealed.directory.rename(directory)
    seal = json.loads((directory / "seal.json").read_bytes())
    (directory / "seal.json").write_text(json.dumps({**seal, "version": 99}))
    with SlotOwner(settings, 0) as slot:
        assert slot.count.messages == 0  # that version can still ship it
    (kept,) = settings.layout.set_aside.iterdir()
    assert json.loads((kept / "seal.json").read_bytes()) == {**seal, "version": 99}


def test_directory_numbers_are_never_used_again(tmp_path: Path) -> None:
    settings = intake(tmp_path)
    numbers = []
    for _ in range(3):
        with SlotOwner(settings, 0, highest_number=7) as slot:
            slot.add("a.json", b"a")
            sealed = slot.seal("request")
        assert sealed is not None
        numbers.append(sealed.seal.number)
    assert numbers == [8, 9, 10]


@pytest.mark.parametrize("damaged", [b"", b"12x", b"\0\0", b"-4", "²".encode()])
def test_a_damaged_counter_is_set_aside_and_numbers_go_on_after_the_known_ones(
    tmp_path: Path, damaged: bytes
) -> None:
    settings = intake(tmp_path)
    counter = settings.layout.active_slot(0) / "next-number"
    counter.parent.mkdir(parents=True)
    counter.write_bytes(damaged)
    with SlotOwner(settings, 0, highest_number=7) as slot:
        slot.add("a.json", b"a")
        sealed = slot.seal("request")
    assert sealed is not None
    assert sealed.seal.number == 8
    assert counter.read_bytes() == b"8"
    assert [one.read_bytes() for one in settings.layout.set_aside.iterdir()] == [damaged]


def test_an_index_that_was_changed_after_the_seal_is_noticed(tmp_path: Path) -> None:
    with SlotOwner(intake(tmp_path), 0) as slot:
        slot.add("a.json", b"a")
        sealed = slot.seal("request")
    assert sealed is not None
    index = sealed.directory / "index"
    index.write_bytes(index.read_bytes() + b"x")
    with pytest.raises(DamagedSlot, match="not the one that was sealed"):
        sealed.entries()


@pytest.mark.parametrize("slot_format", FORMATS)
def test_the_digest_in_the_seal_is_the_segments_also_after_a_restart_and_a_failed_commit(
    tmp_path: Path, slot_format: str
) -> None:
    settings = intake(tmp_path, slot_format=slot_format)
    with SlotOwner(settings, 0) as slot:
        slot.add("a.json", b"a" * 3000)
        slot.commit()
        slot.add("lost.json", b"never committed")
    with SlotOwner(settings, 0) as slot:
        slot.add("b.json", b"b")
        slot.commit()
        slot.add("failed.json", b"x")

        def failing(step: CrashPoint) -> None:
            if step is CrashPoint.DATA_SYNCED:
                raise OSError(5, "Input/output error")

        observe(failing)
        try:
            with pytest.raises(DiskFailed, match="Input/output"):
                slot.commit()
        finally:
            observe(None)
    with SlotOwner(settings, 0) as slot:
        slot.add("c.json", b"c" * 2_000_000)
        sealed = slot.seal("request")
    assert sealed is not None
    assert [e.name for e in sealed.entries()] == ["a.json", "b.json", "c.json"]
    assert sealed.seal.segment_xxh128 == (
        xxh3_128(sealed.segment.read_bytes()).hexdigest() if slot_format == "segment" else None
    )


def test_a_key_generator_that_fails_delays_the_key_and_loses_nothing(tmp_path: Path) -> None:
    settings = intake(tmp_path, key="tests.strategies_for_tests:key_from_file")
    switch = tmp_path / "key"
    from tests import strategies_for_tests  # noqa: PLC0415

    strategies_for_tests.KEY_FILE = switch
    with SlotOwner(settings, 0) as slot:
        slot.add("a.json", b"a")
        sealed = slot.seal("request")
    assert sealed is not None
    assert sealed.seal.object_key is None
    assert "FileNotFoundError" in sealed.seal.key_problem
    switch.write_text("late/{}")
    assert sealed.object_key(settings.key, settings.zone) == f"late/{sealed.seal.archive}"
    switch.write_text("other/{}")
    assert sealed.object_key(settings.key, settings.zone) == f"late/{sealed.seal.archive}"


def test_a_change_of_the_time_zone_leaves_keys_of_sealed_slots_alone(tmp_path: Path) -> None:
    at = datetime(2026, 11, 20, 23, 30, tzinfo=timezone.utc).timestamp()
    settings = intake(tmp_path, timezone="Asia/Shanghai")
    with SlotOwner(settings, 0, clock=lambda: at) as slot:
        slot.add("a.json", b"a")
        sealed = slot.seal("request")
    assert sealed is not None
    assert sealed.seal.partition.startswith("20261120T233000")
    assert sealed.seal.object_key == f"docs/20261121/{sealed.seal.archive}"
    later = intake(tmp_path, timezone="UTC")
    assert sealed.object_key(later.key, later.zone) == sealed.seal.object_key


def test_the_digest_in_the_index_is_the_payloads(tmp_path: Path) -> None:
    with SlotOwner(intake(tmp_path), 0) as slot:
        slot.add("a.json", b"a")
        sealed = slot.seal("request")
    assert sealed is not None
    assert sealed.entries()[0].sha256 == hashlib.sha256(b"a").digest()


VANISHED: dict[str, Callable[[Path], object]] = {
    "root renamed": lambda root: root.rename(root.with_name("elsewhere")),
    "active removed": lambda root: shutil.rmtree(root / "active"),
    "directory renamed": lambda root: (root / "active/slot-0/dir-000001").rename(root / "d"),
    "index removed": lambda root: (root / "active/slot-0/dir-000001/index").unlink(),
    "index replaced": lambda root: shutil.copy(
        root / "active/slot-0/dir-000001/index", root / "copy"
    ).replace(root / "active/slot-0/dir-000001/index"),
    "locks removed": lambda root: shutil.rmtree(root / "locks"),
    "slot replaced": lambda root: (
        (root / "active/slot-0").rename(root / "slot"),
        shutil.copytree(root / "slot", root / "active/slot-0"),
    ),
}


@pytest.mark.parametrize("slot_format", FORMATS)
@pytest.mark.parametrize("vanish", VANISHED.values(), ids=VANISHED)
@pytest.mark.parametrize("batch", ["new", "known", "empty"])
def test_a_commit_fails_if_what_was_written_is_not_found_by_its_name(
    tmp_path: Path, slot_format: str, vanish: Callable[[Path], object], batch: str
) -> None:
    settings = intake(tmp_path, slot_format=slot_format)
    with SlotOwner(settings, 0) as slot:
        slot.add("a.json", b"a")
        slot.commit()
        vanish(settings.layout.root)
        if batch != "empty":
            assert slot.add("a.json", b"a" if batch == "known" else b"b") is (batch == "new")
        with pytest.raises(DiskFailed, match="removed or renamed"):
            slot.commit()
        with pytest.raises(DiskFailed, match="removed or renamed"):
            slot.seal("request")


def test_a_slot_has_one_writer_also_where_its_lock_file_was_removed(tmp_path: Path) -> None:
    settings = intake(tmp_path)
    with SlotOwner(settings, 0) as slot:
        slot.add("a.json", b"a")
        slot.commit()
        shutil.rmtree(settings.layout.locks)
        with (
            pytest.raises(SlotInUse, match="though its lock file was free"),
            SlotOwner(settings, 0),
        ):
            pytest.fail("the slot was opened twice")
        assert seal_unowned(settings, [0]) == []
    with SlotOwner(settings, 0) as slot:
        assert slot.count.messages == 1


@pytest.mark.parametrize("hours", [-8, 8])
def test_a_slot_is_sealed_by_age_whatever_the_clock_does(tmp_path: Path, hours: int) -> None:
    settings = intake(tmp_path, seal_age_seconds=60)
    passed = 0.0
    shift = 0.0

    def opened() -> SlotOwner:
        return SlotOwner(
            settings,
            0,
            clock=lambda: time.time() + shift + passed,
            monotonic=lambda: 1000 + passed,
        )

    with opened() as slot:
        slot.add("a.json", b"a")
        slot.commit()
        assert slot.due() is None
        shift = hours * 3600.0
        assert slot.due() is None
        passed = 61
        assert slot.due() == "age"
    shift = -8 * 3600.0  # the directory was made in the future
    with opened() as slot:
        assert slot.due() is None
        passed += 61
        assert slot.due() == "age"


ODD: dict[str, Callable[[Path, Path], object]] = {
    "a pipe as index": lambda directory, _: os.mkfifo(directory / "index"),
    "a link as index": lambda directory, secret: (directory / "index").symlink_to(secret),
    "a pipe as segment": lambda directory, _: os.mkfifo(directory / SEGMENT_NAME),
    "a link as segment": lambda directory, secret: (directory / SEGMENT_NAME).symlink_to(secret),
    "a link to nothing as segment": lambda directory, secret: (directory / SEGMENT_NAME).symlink_to(
        secret.with_name("nothing")
    ),
    "a folder as seal": lambda directory, _: (directory / "seal.json").mkdir(),
    "a pipe as seal": lambda directory, _: os.mkfifo(directory / "seal.json"),
    "a link as seal": lambda directory, secret: (directory / "seal.json").symlink_to(secret),
    "a link as folder of files": lambda directory, secret: (directory / "files").symlink_to(
        secret.parent
    ),
    "a file as directory": lambda directory, _: (directory.rmdir(), directory.write_bytes(b"x")),
    "a link as directory": lambda directory, secret: (
        directory.rmdir(),
        directory.symlink_to(secret.parent),
    ),
}


@pytest.mark.parametrize("plant", ODD.values(), ids=ODD)
def test_what_is_odd_in_a_slots_folder_is_set_aside_and_no_link_is_followed(
    tmp_path: Path, plant: Callable[[Path, Path], object]
) -> None:
    settings = intake(tmp_path)
    directory = settings.layout.active(0, 1)
    directory.mkdir(parents=True)
    secret = tmp_path / "others" / "secret"
    secret.parent.mkdir()
    secret.write_bytes(b"secret" * 1000)
    plant(directory, secret)
    with SlotOwner(settings, 0) as slot:
        slot.add("a.json", b"a")
        sealed = slot.seal("request")
    assert sealed is not None
    assert contents(sealed) == {"a.json": b"a"}
    assert len(list(settings.layout.set_aside.iterdir())) == 1
    assert [path.name for path in secret.parent.iterdir()] == ["secret"]
    assert secret.read_bytes() == b"secret" * 1000


@pytest.mark.parametrize("name", ["dir-" + "9" * 20, "dir-" + "9" * 240, "dir-0000001"])
def test_a_directory_whose_number_is_none_of_ours_is_left_alone(tmp_path: Path, name: str) -> None:
    settings = intake(tmp_path)
    (settings.layout.active_slot(0) / name).mkdir(parents=True)
    with SlotOwner(settings, 0) as slot:
        slot.add("a.json", b"a")
        sealed = slot.seal("request")
    assert sealed is not None
    assert sealed.seal.number == 1
    assert (settings.layout.active_slot(0) / name).is_dir()


@pytest.mark.parametrize("place", ["next-number", "../../locks/slot-0.lock"])
def test_a_link_in_the_place_of_a_file_of_ours_is_not_followed(tmp_path: Path, place: str) -> None:
    settings = intake(tmp_path)
    secret = tmp_path / "secret"
    secret.write_bytes(b"77")
    settings.layout.active_slot(0).mkdir(parents=True)
    settings.layout.locks.mkdir()
    (settings.layout.active_slot(0) / place).symlink_to(secret)
    if place == "next-number":
        with SlotOwner(settings, 0) as slot:
            slot.add("a.json", b"a")
            assert slot.count.number == 1
    else:
        with pytest.raises(ForeignFile, match="should be a file, but is a link"):
            SlotOwner(settings, 0).__enter__()
    assert secret.read_bytes() == b"77"


def test_files_under_names_of_another_locale_are_known_by_their_content(tmp_path: Path) -> None:
    settings = intake(tmp_path, slot_format="files")
    files = {f"视频-{n}.json": b"%d" % n for n in range(5)}
    with SlotOwner(settings, 0) as slot:
        for name, content in files.items():
            slot.add(name, content)
        slot.commit()
        folder = slot.layout.active(0, 1) / "files"
    for name in files:
        (folder / name).rename(folder / os.fsdecode(name.encode("gbk")))
    with SlotOwner(settings, 0) as slot:
        assert slot.count.messages == 5
        sealed = slot.seal("request")
    assert sealed is not None
    assert contents(sealed) == files
    assert not settings.layout.set_aside.exists()


def test_a_batch_is_written_in_blocks_and_no_byte_of_it_differs(tmp_path: Path) -> None:
    settings = intake(tmp_path)
    sizes = [0, 1, 511, 2**20 - 1024, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20, 5, 600_000, 600_000]
    files = {f"{n}.json": bytes([n + 1]) * size for n, size in enumerate(sizes)}
    with SlotOwner(settings, 0) as slot:
        for name, content in files.items():
            slot.add(name, content)
        slot.commit()
        sealed = slot.seal("request")
    assert sealed is not None
    assert contents(sealed) == files
    assert sealed.seal.segment_xxh128 == xxh3_128(sealed.segment.read_bytes()).hexdigest()
