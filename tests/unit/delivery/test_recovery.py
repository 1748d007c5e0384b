"""Recovery: a plan from what lies there, and steps that may be killed and repeated anywhere."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from fuploader_dagster.delivery import recovery
from fuploader_dagster.delivery.attempts import Done
from fuploader_dagster.delivery.failures import Failure, all_failures, note_failure
from fuploader_dagster.delivery.pack import pack
from fuploader_dagster.delivery.recovery import (
    Found,
    Plan,
    look,
    plan,
    seal_abandoned,
    seal_on_request,
)
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.disk.layout import PartitionKey, utc
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.disk.temporaries import temporary_file, temporary_folder
from fuploader_dagster.errors import ForeignFile
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import Receipt, keep_receipt
from fuploader_dagster.slots.sealing import SealedSlot, find_sealed, sealed_partitions
from fuploader_dagster.slots.slot import SlotOwner
from tests.settings import archived_files, pipeline, sealed

NOW = 1_795_262_400.0
OLD, YOUNG = (str(PartitionKey(utc(NOW - age), "local", 0, n)) for n, age in ((1, 61), (2, 59)))
FUTURE = str(PartitionKey(utc(NOW + 8 * 3600), "local", 0, 3))
"""Sealed before the clock was set back."""
FILES = {"a.json": b"a", "b.json": b"b" * 1000}


def receipt(partition: str) -> Receipt:
    return Receipt(
        partition=partition,
        address="file:///x",
        key="k",
        size_bytes=1,
        sha256="00",
        messages=2,
        payload_bytes=3,
        stored_at="2026-11-21T12:00:00.000+00:00",
    )


def failure(partition: str, *, attempts: int, ago: float) -> Failure:
    return Failure(
        partition=partition, stage="upload", attempts=attempts, failed_at=NOW - ago, error="e"
    )


@pytest.mark.parametrize(
    ("found", "busy", "wanted"),
    [
        (Found(), [], Plan()),
        (Found([OLD]), [], Plan(ask=[OLD])),
        (Found([YOUNG]), [], Plan()),
        (Found([FUTURE]), [], Plan(ask=[FUTURE])),
        (
            Found([OLD], failures={OLD: failure(OLD, attempts=9, ago=-8 * 3600)}),
            [],
            Plan(ask=[OLD]),
        ),
        (Found([OLD, YOUNG]), [OLD], Plan()),
        (Found([OLD], {OLD: receipt(OLD)}), [], Plan(finish=[OLD])),
        (Found([OLD], failures={OLD: failure(OLD, attempts=1, ago=61)}), [], Plan(ask=[OLD])),
        (Found([OLD], failures={OLD: failure(OLD, attempts=1, ago=59)}), [], Plan()),
        (Found([OLD], failures={OLD: failure(OLD, attempts=3, ago=239)}), [], Plan()),
        (Found([OLD], failures={OLD: failure(OLD, attempts=3, ago=241)}), [], Plan(ask=[OLD])),
        (Found([OLD], failures={OLD: failure(OLD, attempts=99, ago=3601)}), [], Plan(ask=[OLD])),
        (
            Found([YOUNG], failures={YOUNG: failure(YOUNG, attempts=1, ago=61)}),
            [],
            Plan([], [YOUNG]),
        ),
        (Found([], failures={OLD: failure(OLD, attempts=1, ago=999)}), [], Plan()),
        (Found(["no key of ours"]), [], Plan()),
        (Found(leftovers=[Path("x")]), [], Plan(remove=[Path("x")])),
    ],
)
def test_the_plan_is_a_function_of_what_was_found_and_of_the_time(
    tmp_path: Path, found: Found, busy: list[str], wanted: Plan
) -> None:
    settings = pipeline(tmp_path, recovery_base_seconds=60, recovery_cap_seconds=3600)
    made = plan(found, settings, busy=busy, now=NOW)
    assert (list(made.finish), list(made.ask), list(made.remove)) == (
        list(wanted.finish),
        list(wanted.ask),
        list(wanted.remove),
    )


def test_looking_at_nothing_finds_nothing_and_changes_nothing(tmp_path: Path) -> None:
    assert look(pipeline(tmp_path)) == Found([], leftovers=[])
    assert list(tmp_path.iterdir()) == []


def test_looking_finds_slots_receipts_and_failures(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    slots = [sealed(settings, FILES) for _ in range(3)]
    keys = [slot.seal.partition for slot in slots]
    keep_receipt(settings.layout, receipt(keys[0]))
    noted = note_failure(settings.layout, keys[1], stage="pack", error="e", now=NOW)
    found = look(settings)
    assert found == Found(keys, {keys[0]: receipt(keys[0])}, {keys[1]: noted}, [])


def test_a_slot_with_an_unreadable_seal_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = pipeline(tmp_path)
    bad, good = (sealed(settings, FILES) for _ in range(2))
    (bad.directory / "seal.json").write_bytes(b"{")
    assert look(settings).sealed == [good.seal.partition]
    assert str(bad.directory) in caplog.text
    assert [type(one) for one in ship(settings, settings.store.open())] == [Done, Done]
    assert archived_files(tmp_path / "objects") == {name: [c, c] for name, c in FILES.items()}
    (aside,) = settings.layout.set_aside.iterdir()
    assert (aside / "seal.json").read_bytes() == b"{"


def test_a_slot_that_is_removed_while_all_are_listed_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = pipeline(tmp_path)
    gone, there = (sealed(settings, FILES) for _ in range(2))
    listed = settings.layout.sealed_dirs()
    shutil.rmtree(gone.directory)
    monkeypatch.setattr(type(settings.layout), "sealed_dirs", lambda _: listed)
    assert sealed_partitions(settings.layout) == [there.seal.partition]
    assert caplog.text == ""


def test_leftovers_of_dead_processes_go_and_everything_else_stays(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    slot = sealed(settings, FILES)
    layout = settings.layout
    folders = [
        layout.root,
        layout.archives,
        layout.receipts,
        layout.workers,
        layout.active_slot(0),
        layout.active_slot(7),
        slot.directory.parent,
        layout.root / "sealed" / "slot-9",
    ]
    gone, kept = [], []
    with ExitStack() as alive:
        for number, folder in enumerate(folders):
            folder.mkdir(parents=True, exist_ok=True)
            dead = f".tmp-{number:016x}"
            gone += [folder / f"{dead}-file.json", folder / f"{dead}-dir-000001"]
            kept += [
                folder / dead,
                folder / f"{dead}-",
                folder / f"tmp-{dead}-x",
                folder / f".tmp-{os.getpid()}-file",
                folder / f".tmp-{'g' * 16}-file",
                folder / "somebody's",
            ]
            kept.append(alive.enter_context(temporary_file(folder / "file.json")))
            kept.append(alive.enter_context(temporary_folder(folder / "dir-000002")))
        for path in (*gone, *kept):
            if path.name.endswith("dir-000001"):
                (path / "deep").mkdir(parents=True)
                (path / "deep" / "file").write_bytes(b"x")
            elif not path.is_dir():
                path.write_bytes(b"x")
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "file").touch()
        link, pipe = (layout.archives / f".tmp-{'0' * 16}-{kind}" for kind in ("link", "pipe"))
        link.symlink_to(outside)
        os.mkfifo(pipe)
        found = look(settings)
        assert set(found.leftovers) == set(gone)
        made = plan(found, settings, busy=[], now=0)
        for _ in range(2):
            recovery.apply(made, settings)
        recovery.apply(Plan(remove=kept[-2:]), settings)  # alive again since it was looked at
        assert not any(path.exists() for path in gone)
        assert all(path.exists() for path in kept)
    assert link.is_symlink()
    assert pipe.exists()
    assert (outside / "file").exists()
    assert find_sealed(layout, slot.seal.partition) == slot


def test_notes_and_locks_of_slots_that_are_no_more_go_and_those_of_others_stay(
    tmp_path: Path,
) -> None:
    settings = pipeline(tmp_path)
    layout = settings.layout
    here = sealed(settings, FILES).seal.partition
    gone = str(PartitionKey(utc(NOW), "local", 0, 9))
    for partition in (gone, here):
        note_failure(layout, partition, stage="upload", error="e", now=NOW)
    note_failure(layout, "somebody's", stage="upload", error="e", now=NOW)
    made = [layout.partition_lock(name) for name in (OLD.replace("s0", "s1"), gone, here, "other")]
    for path in made:
        path.touch()
    with FileLock(made[0]):
        recovery.apply(plan(look(settings), settings, busy=[], now=NOW), settings)
    assert [path.exists() for path in made] == [True, False, True, True]
    assert [failure.partition for failure in all_failures(layout)] == [here, "somebody's"]


@pytest.mark.parametrize("slot_format", ["segment", "files"])
def test_what_somebody_put_into_a_slot_is_moved_aside_when_the_slot_goes(
    tmp_path: Path, slot_format: str
) -> None:
    settings = pipeline(tmp_path, slot_format=slot_format)
    slot = sealed(settings, FILES)
    (slot.directory / "notes.txt").write_bytes(b"mine")
    (slot.directory / "more").mkdir()
    (slot.directory / "more" / "video.mp4").write_bytes(b"mine too")
    (slot.directory / f".tmp-{'0' * 16}-seal.json").write_bytes(b"ours")
    if slot_format == "files":
        (slot.files / "c.xml").write_bytes(b"late")
    assert [type(one) for one in ship(settings, settings.store.open())] == [Done]
    assert not slot.directory.exists()
    aside = {path.name.partition("-")[2]: path for path in settings.layout.set_aside.iterdir()}
    more = {"slot-0-dir-000001-files-c.xml"} if slot_format == "files" else set()
    assert aside.keys() == {"slot-0-dir-000001-notes.txt", "slot-0-dir-000001-more", *more}
    assert (aside["slot-0-dir-000001-more"] / "video.mp4").read_bytes() == b"mine too"
    assert archived_files(tmp_path / "objects") == {name: [c] for name, c in FILES.items()}


@pytest.mark.parametrize("number", [1, 2])
def test_a_copy_of_a_sealed_slot_among_the_active_ones_is_moved_aside_and_holds_up_nobody(
    tmp_path: Path, number: int
) -> None:
    settings = pipeline(tmp_path)
    slot = sealed(settings, FILES)
    shutil.copytree(slot.directory, settings.layout.active(0, number))
    with SlotOwner(settings, 0) as writer:
        assert writer.found_sealed == []
        assert writer.add("c.json", b"c")
    assert len(list(settings.layout.set_aside.iterdir())) == 1
    assert sealed_partitions(settings.layout) == [slot.seal.partition]


def own_packer(directory: Path) -> Path:
    """Dies as by kill -9 while `DIE` is set."""
    if DIE:
        os._exit(9)
    made = directory.with_suffix(".7z")
    made.write_bytes(b"packed")
    return made


DIE: list[bool] = []


def test_the_work_folder_of_a_packer_that_was_killed_is_found(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, packer=own_packer, archive_suffix=".7z")
    slot = sealed(settings, FILES)
    DIE.append(True)
    try:
        child = os.fork()
        if child == 0:
            pack(slot, settings)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    finally:
        DIE.clear()
    (left,) = settings.layout.archives.iterdir()
    assert look(settings).leftovers == [left]
    recovery.apply(plan(look(settings), settings, busy=[], now=0), settings)
    assert list(settings.layout.archives.iterdir()) == []
    assert pack(slot, settings).size_bytes == len(b"packed")


def fill(settings: Pipeline, slot: int, name: str) -> None:
    """An active directory with one committed message, as a dead worker leaves it."""
    with SlotOwner(settings, slot) as writer:
        writer.add(name, b"x")
        writer.commit()


def names(slots: list[SealedSlot]) -> list[str]:
    return sorted(entry.name for slot in slots for entry in slot.entries())


def test_slots_that_no_worker_owns_any_more_are_sealed_and_owned_ones_are_not(
    tmp_path: Path,
) -> None:
    settings = pipeline(tmp_path, process_count=2, slots_per_worker=2)
    for slot in range(6):
        fill(settings, slot, f"{slot}.json")
    abandoned = seal_abandoned(settings)
    assert names(abandoned) == ["4.json", "5.json"]
    assert {slot.seal.reason for slot in abandoned} == {"adopted"}
    assert seal_abandoned(settings) == []


def test_a_request_seals_what_nobody_writes_and_tells_those_who_write(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    for slot in range(3):
        fill(settings, slot, f"{slot}.json")
    with SlotOwner(settings, 1) as busy:
        assert names(seal_on_request(settings)) == ["0.json", "2.json"]
        assert busy.count.messages == 1
    first = settings.layout.seal_request.stat().st_mtime_ns
    os.utime(settings.layout.seal_request, ns=(0, 0))
    assert names(seal_on_request(settings)) == ["1.json"]
    assert settings.layout.seal_request.stat().st_mtime_ns >= first


def test_a_request_on_an_empty_root_is_remembered(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    assert seal_on_request(settings) == []
    assert settings.layout.seal_request.exists()


@pytest.mark.parametrize(
    ("mode", "seconds", "asked"),
    [
        ("sensor", 59, False),
        ("sensor", 61, True),
        ("automation", 61, False),
        ("automation", 179, False),
        ("automation", 181, True),
    ],
)
def test_a_new_slot_is_left_to_whoever_asks_first_for_as_long_as_that_takes(
    tmp_path: Path, mode: str, seconds: float, asked: bool
) -> None:
    settings = pipeline(tmp_path, runs_by=mode)
    key = str(PartitionKey(utc(NOW), "local", 0, 1))
    made = plan(Found(sealed=[key]), settings, busy=(), now=NOW + seconds)
    assert made.ask == [key] * asked


def test_a_slot_with_something_odd_holds_up_no_other_one_and_is_named(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    for number in (0, 1):
        with SlotOwner(settings, number) as slot:
            slot.add("a.json", b"a")
            slot.commit()
    settings.layout.slot_lock(0).unlink()
    settings.layout.slot_lock(0).symlink_to(tmp_path / "secret")
    with pytest.raises(ForeignFile, match=r"slot-0\.lock should be a file, but is a link"):
        seal_on_request(settings)
    assert [slot for slot, _ in settings.layout.sealed_numbers()] == [1]
    assert not (tmp_path / "secret").exists()
