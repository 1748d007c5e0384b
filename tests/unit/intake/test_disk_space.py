"""Disk space: when the drain pauses, when it goes on, and what it says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.delivery.ship import pack_partitions, ship
from fuploader_dagster.intake.disk_space import (
    LEAST_RESERVE_BYTES,
    WALK_SHARE,
    DiskSpace,
    SpaceWatch,
    Unshipped,
    shortage,
)
from tests.settings import intake, pipeline, sealed

MARKS: dict[str, Any] = {
    "min_free_bytes": 1_000,
    "min_free_inodes": 100,
    "max_unshipped_bytes": 10_000,
    "seal_bytes": 5_000,
}
PLENTY: dict[str, Any] = {"free_bytes": 10**12, "free_inodes": 10**9, "unshipped_bytes": 0}


@pytest.mark.parametrize(
    ("there", "draining", "paused"),
    [
        ({}, "", ""),
        ({"free_bytes": 1_100}, "", ""),
        ({"free_bytes": 1_099}, "", "min_free_bytes (1,000) and resumes at 1,100"),
        ({"free_bytes": 1_000}, "", "1,000 bytes free"),
        ({"free_bytes": 999}, "999 bytes free; the drain pauses at less than", "999 bytes free"),
        ({"free_bytes": 0}, "0 bytes free", "free some space"),
        ({"free_inodes": 110}, "", ""),
        ({"free_inodes": 109}, "", "min_free_inodes (100) and resumes at 110"),
        ({"free_inodes": 99}, "99 inodes free; the drain pauses at less than", "99 inodes free"),
        ({"free_inodes": None}, "", ""),
        ({"file_bytes": None}, "", ""),
        ({"file_bytes": 2**40}, "", ""),
        ({"file_bytes": 2**21}, "may write files of up to 2,097,152 bytes", "LimitFSIZE"),
        ({"unshipped_bytes": 9_000}, "", ""),
        ({"unshipped_bytes": 9_001}, "", "max_unshipped_bytes (10,000) and resumes at 9,000"),
        ({"unshipped_bytes": 10_000}, "", "10,000 bytes of docs are not in the object store yet"),
        ({"unshipped_bytes": 10_001}, "pauses at more than max_unshipped_bytes", "10,001 bytes"),
        (
            {"free_bytes": 1, "unshipped_bytes": 20_000},
            "free some space; 20,000 bytes of docs",
            "free some space; 20,000 bytes of docs",
        ),
    ],
)
def test_a_pause_begins_at_the_mark_ends_a_tenth_beyond_it_and_says_its_figures(
    tmp_path: Path, there: dict[str, Any], draining: str, paused: str
) -> None:
    settings = intake(tmp_path, **MARKS)
    space = DiskSpace(**{**PLENTY, **there})
    for said, expected in (
        (shortage(space, settings, paused=False), draining),
        (shortage(space, settings, paused=True), paused),
    ):
        assert expected in said
        assert bool(said) == bool(expected)


def test_without_marks_nothing_pauses_the_drain(tmp_path: Path) -> None:
    settings = intake(tmp_path, min_free_bytes=0, min_free_inodes=0)
    for paused in (False, True):
        assert shortage(DiskSpace(0, 0, 10**15), settings, paused=paused) == ""


def test_what_is_sealed_or_packed_counts_until_the_store_has_it(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    unshipped = Unshipped(settings.layout)
    assert unshipped.bytes() == 0
    slots = [sealed(settings, {f"{n}": os.urandom(5_000)}) for n in range(3)]
    segments = [slot.segment.stat().st_size for slot in slots]
    assert unshipped.bytes() == sum(segments)
    list(pack_partitions([slots[0].seal.partition], settings))
    archives = sum(path.stat().st_size for path in settings.layout.archives.iterdir())
    assert unshipped.bytes() == sum(segments) + archives > sum(segments) + 5_000
    assert len(list(ship(settings, settings.store.open()))) == 3
    assert unshipped.bytes() == 0


def test_one_file_per_message_counts_by_its_seal(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, slot_format="files")
    slot = sealed(settings, {"a": bytes(100), "b": bytes(200)})
    assert Unshipped(settings.layout).bytes() == 300
    (slot.directory / "seal.json").write_text("{}")
    assert Unshipped(settings.layout).bytes() == 0


def test_a_worker_looks_at_the_backlog_now_and_then_and_pauses_until_it_is_shipped(
    tmp_path: Path,
) -> None:
    marks = {**MARKS, "min_free_bytes": 0, "min_free_inodes": 0}
    settings = pipeline(tmp_path, **marks)
    now = [0.0]
    watch = SpaceWatch(settings, clock=lambda: now[0])
    assert watch.shortage() == ""
    sealed(settings, {"a": os.urandom(9_500)})
    assert watch.shortage() == ""
    sealed(settings, {"b": os.urandom(9_500)})
    watch.backlog_grew()
    assert "max_unshipped_bytes" in watch.shortage()
    list(ship(settings, settings.store.open()))
    now[0] += 2
    assert watch.shortage() == ""


def test_after_a_full_disk_messages_wait_until_their_batch_fits(tmp_path: Path) -> None:
    settings = intake(tmp_path, min_free_bytes=0)
    settings.layout.root.mkdir(parents=True)
    watch = SpaceWatch(settings)
    whole = os.statvfs(tmp_path)
    more_than_it_has = whole.f_blocks * whole.f_frsize + 1
    watch.disk_was_full(more_than_it_has)
    assert f"the next batch may need {more_than_it_has:,} bytes" in watch.shortage()
    watch.disk_was_full(0)
    assert watch.shortage() == ""
    assert LEAST_RESERVE_BYTES > 0
    assert list(settings.layout.root.iterdir()) == []


def test_a_long_walk_through_items_in_work_is_not_repeated_at_every_look(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    now = 0.0

    def clock() -> float:  # each look at it is a second later: a walk takes one
        nonlocal now
        now += 1
        return now

    work = settings.layout.processed(0, 1) / "work" / "0"
    work.mkdir(parents=True)
    (work / "a").write_bytes(bytes(100))
    unshipped = Unshipped(settings.layout, clock=clock)
    assert unshipped.bytes() == 100
    (work / "b").write_bytes(bytes(100))
    assert {unshipped.bytes() for _ in range(10)} == {100}
    now += WALK_SHARE
    assert unshipped.bytes() == 200
    (settings.layout.processed(0, 1) / "seal.json").write_bytes(bytes(10))
    assert unshipped.bytes() == 210  # it does not grow any more
    (work / "c").write_bytes(bytes(100))
    assert Unshipped(settings.layout).bytes() == 310
