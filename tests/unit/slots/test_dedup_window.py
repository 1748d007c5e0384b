"""The dedup window: a copy is found wherever its directory is by then, and only a real one."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.errors import DiskFailed, SlotInUse
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots import dedup_window
from fuploader_dagster.slots.commit_turns import CommitTurns, Look
from fuploader_dagster.slots.dedup_window import DedupWindow
from fuploader_dagster.slots.index import INDEX_NAME
from fuploader_dagster.slots.numbered_names import family, is_numbered, numbered_name
from fuploader_dagster.slots.shipped_indexes import in_order
from fuploader_dagster.slots.slot import SlotOwner
from tests.settings import intake, pipeline, sealed


def holds(window: DedupWindow, name: str, content: bytes) -> bool:
    return window.holds(name, hashlib.sha256(content).digest())


def ship_all(settings: Pipeline) -> None:
    list(ship(settings, settings.store.open()))


@pytest.mark.parametrize("slot_format", ["segment", "files"])
def test_a_copy_is_found_in_active_sealed_and_shipped_directories_of_any_slot(
    tmp_path: Path, slot_format: str
) -> None:
    settings = pipeline(tmp_path, slot_format=slot_format)
    window = DedupWindow(settings.layout, 1_000)
    window.refresh()
    assert not holds(window, "a", b"1")
    with SlotOwner(settings, 0) as one, SlotOwner(settings, 3) as other:
        for slot, name in ((one, "a"), (other, "b")):
            slot.add(name, b"1")
            slot.commit()
        one.add("later", b"1")  # not committed yet
        window.refresh()
        assert [holds(window, name, b"1") for name in ("a", "b", "later")] == [True, True, False]
        assert not holds(window, "a", b"2")
        one.commit()
        one.seal("request")
        assert holds(window, "a", b"1"), "it moved on after the refresh"
        window.refresh()
        assert holds(window, "later", b"1")
        ship_all(settings)
        assert holds(window, "a", b"1"), "it was uploaded after the refresh"
        for seen in (window, DedupWindow(settings.layout, 1_000)):
            seen.refresh()
            assert [holds(seen, name, b"1") for name in ("a", "b", "later")] == [True] * 3
    assert not settings.layout.sealed(0, 1).exists()


def test_a_numbered_copy_counts_beside_the_name_that_was_taken_and_nowhere_else(
    tmp_path: Path,
) -> None:
    settings = intake(tmp_path)
    sealed(settings, {"a.json": b"1", "a~2.json": b"2", "b~2.json": b"2", "c.json": b"2"})
    window = DedupWindow(settings.layout, 1_000)
    window.refresh()
    assert holds(window, "a.json", b"2")
    assert not holds(window, "b.json", b"2"), "a name of its own that only looks numbered"
    assert not holds(window, "d.json", b"2")


def test_the_window_has_the_newest_messages_and_the_disk_keeps_no_more_than_it_needs(
    tmp_path: Path,
) -> None:
    settings = pipeline(tmp_path, dedup_window_messages=25, prefetch_count=20, commit_messages=10)
    for number in range(8):
        sealed(settings, {f"{number}-{n}": b"%d" % n for n in range(10)})
        if number < 6:
            ship_all(settings)
    kept = sorted(path.name.split("-")[-1] for path in settings.layout.shipped.iterdir())
    assert kept == ["000004.10.index", "000005.10.index", "000006.10.index"]
    window = DedupWindow(settings.layout, 25)
    window.refresh()
    assert [holds(window, f"{n}-5", b"5") for n in range(8)] == [False] * 5 + [True] * 3


def test_indexes_are_kept_on_a_file_system_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "as FAT and some network file systems answer")

    monkeypatch.setattr(os, "link", refused)
    settings = pipeline(tmp_path)
    sealed(settings, {"a": b"1"})
    ship_all(settings)
    assert not settings.layout.sealed_dirs()
    window = DedupWindow(settings.layout, 1_000)
    window.refresh()
    assert holds(window, "a", b"1")


def test_equal_keys_never_cost_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup_window, "_key", lambda _name, _sha256: 7)
    settings = intake(tmp_path)
    sealed(settings, {"a": b"1", "b": b"2"})
    window = DedupWindow(settings.layout, 1_000)
    window.refresh()
    found = [holds(window, name, body) for name in ("a", "b", "c") for body in (b"1", b"2")]
    assert found == [True, False, False, True, False, False]


def test_a_damaged_index_is_left_out_and_holds_up_nothing(tmp_path: Path) -> None:
    settings = intake(tmp_path)
    sealed(settings, {"a": b"1"})
    sealed(settings, {"b": b"1"})
    (settings.layout.sealed(0, 1) / INDEX_NAME).write_bytes(b"no index at all, but long enough")
    window = DedupWindow(settings.layout, 1_000)
    window.refresh()
    assert not holds(window, "a", b"1")
    assert holds(window, "b", b"1")


NAMES = st.text(
    st.one_of(st.sampled_from("~.2a"), st.characters(exclude_categories=["Cs", "Cc"])), min_size=1
).filter(lambda name: len(name.encode()) <= 255)


@given(NAMES, st.integers(2, 10**8), st.integers(2, 99))
def test_every_numbered_name_is_of_its_names_family(name: str, number: int, more: int) -> None:
    once = numbered_name(name, number)
    assert is_numbered(once, name)
    assert family(once.encode()) == family(name.encode())
    assert family(numbered_name(once, more).encode()) == family(name.encode())


def test_an_ordinary_commit_looks_for_nothing_until_another_worker_got_redelivered_messages(
    tmp_path: Path,
) -> None:
    layout = Layout(tmp_path)
    looks: list[Look] = []

    def commit(turns: CommitTurns, messages: int, *, redelivered: bool = False) -> None:
        with turns.turn(messages, redelivered=redelivered) as look:
            looks.append(look)

    with CommitTurns(layout, 0, prefetch=25) as a, CommitTurns(layout, 1, prefetch=25) as b:
        commit(a, 10)
        commit(b, 10, redelivered=True)
        commit(b, 10)
        for _ in range(4):
            commit(a, 10)
        commit(a, 10, redelivered=True)
        commit(b, 10)
    assert looks == [
        "none",
        "redelivered",
        "none",  # b raised the counter itself
        *["all"] * 3,  # a can have had 25 messages in hand
        "none",
        "redelivered",
        "all",
    ]


def test_who_looks_waits_for_a_commit_under_way_and_gives_up_on_one_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path)
    order: list[str] = []
    begun = threading.Event()
    with CommitTurns(layout, 0, prefetch=25) as a, CommitTurns(layout, 1, prefetch=25) as b:

        def look() -> None:
            begun.set()
            with b.turn(1, redelivered=True):
                order.append("b looks")

        with a.turn(1, redelivered=False):
            thread = threading.Thread(target=look)
            thread.start()
            assert begun.wait(60)
            thread.join(0.3)
            order.append("a has committed")
        thread.join(60)
        assert order == ["a has committed", "b looks"]
        monkeypatch.setattr("fuploader_dagster.slots.commit_turns.LONGEST_WAIT_SECONDS", 0.1)
        with (
            a.turn(1, redelivered=True),
            pytest.raises(SlotInUse, match="commits-that-look"),
            b.turn(1, redelivered=True),
        ):
            pytest.fail("two looked at once")
    with (
        CommitTurns(layout, 0, prefetch=25) as a,
        CommitTurns(layout, 1, prefetch=25) as b,
        a.turn(1, redelivered=False),
        pytest.raises(SlotInUse, match="has not finished its commit"),
        b.turn(1, redelivered=True),
    ):
        pytest.fail("one looked while another committed")


def test_a_clock_that_was_set_back_does_not_make_new_directories_old() -> None:
    hour = 3600.0
    times = {(0, n): n * hour for n in (1, 2, 3)} | {(0, 4): 1.5 * hour, (0, 5): 1.75 * hour}
    times |= {(1, 1): 2.9 * hour, (1, 2): 1.6 * hour}
    order = in_order(times)
    newest_first = sorted(times, key=lambda place: order[place], reverse=True)
    assert newest_first == [(0, 5), (1, 2), (1, 1), (0, 4), (0, 3), (0, 2), (0, 1)]


def test_another_root_with_the_same_numbers_is_read_again(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    window = DedupWindow(settings.layout, 100)
    sealed(settings, {f"old-{n}": b"%d" % n for n in range(5)})
    window.refresh()
    assert holds(window, "old-1", b"1")
    settings.layout.root.rename(tmp_path / "elsewhere")
    sealed(settings, {f"new-{n}": b"%d" % n for n in range(9)})
    window.refresh()
    assert [holds(window, f"{name}-1", b"1") for name in ("old", "new")] == [False, True]


@pytest.mark.parametrize("what", ["removed", "made again"])
def test_a_turn_ends_with_an_error_if_the_files_of_the_turns_are_other_ones(
    tmp_path: Path, what: str
) -> None:
    layout = Layout(tmp_path)
    with CommitTurns(layout, 0, prefetch=10) as turns:
        with turns.turn(1, redelivered=False) as look:
            assert look == "none"
        shutil.rmtree(layout.locks)
        with ExitStack() as stack:
            if what == "made again":
                stack.enter_context(CommitTurns(layout, 0, prefetch=10))
            for redelivered in (False, True):
                with (
                    pytest.raises(DiskFailed, match="removed or renamed"),
                    turns.turn(1, redelivered=redelivered),
                ):
                    pytest.fail("it went on")
