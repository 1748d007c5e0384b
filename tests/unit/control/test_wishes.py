"""Wishes: the last one counts on all nodes, and neither an outage nor a loss forgets it."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from fuploader_dagster.contracts.state import Note
from fuploader_dagster.control import wishes
from fuploader_dagster.control.wishes import PARTS, Wish, Wished, Wishes, current, read_here, wish
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.resources.states.sqlite import SqliteState
from fuploader_dagster.settings.pipeline import Intake
from tests.settings import intake


def node(folder: Path, name: str) -> Intake:
    """One of several nodes that share a state store."""
    state = SqliteState(path=folder / "state.sqlite")
    return intake(folder, storage_root=folder / name, node_id=name, state=state)


def say(
    settings: Intake, paused: bool, *, parts: tuple[wishes.Part, ...] = PARTS, by: str = "ada"
) -> Wished:
    return wish(settings, parts, paused=paused, by=by, reason="the index is rebuilt")


def lose_state(folder: Path) -> None:
    for path in folder.glob("state.sqlite*"):
        path.unlink()


def test_nothing_is_paused_and_nothing_is_written_until_somebody_says_so(tmp_path: Path) -> None:
    one = node(tmp_path, "a")
    assert current(one) == Wishes()
    assert str(current(one)) == ""
    assert not one.layout.pause.exists()


def test_a_wish_reaches_other_nodes_and_says_who_and_why(tmp_path: Path) -> None:
    one, two = node(tmp_path, "a"), node(tmp_path, "b")
    say(one, True)
    assert "intake and shipping are paused since" in str(current(two))
    assert "by ada: the index is rebuilt" in str(current(two))
    assert read_here(two.layout) == current(two)


def test_a_test_by_hand_writes_nothing(tmp_path: Path) -> None:
    one, two = node(tmp_path, "a"), node(tmp_path, "b")
    say(one, True)
    assert current(two, changing=False).intake.paused
    assert not two.layout.pause.exists()


def test_parts_are_paused_and_resumed_apart(tmp_path: Path) -> None:
    one, two = node(tmp_path, "a"), node(tmp_path, "b")
    say(one, True, parts=("intake",))
    say(two, True, parts=("shipping",), by="bob")
    for each in (one, two):
        assert [current(each).of(part).by for part in PARTS] == ["ada", "bob"]
    say(two, False, parts=("intake",))
    assert [current(one).of(part).paused for part in PARTS] == [False, True]


def test_the_last_of_two_pausers_counts_and_learns_of_the_first(tmp_path: Path) -> None:
    one, two = node(tmp_path, "a"), node(tmp_path, "b")
    say(one, True)
    done = say(two, True, by="bob")
    assert done.before.intake.by == "ada"
    assert current(one).intake.by == "bob"


def test_whoever_resumes_after_somebody_whose_clock_is_ahead_is_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = node(tmp_path, "a"), node(tmp_path, "b")
    with monkeypatch.context() as patch:
        ahead = wishes.time.time() + 86_400
        patch.setattr("fuploader_dagster.control.wishes.time.time", lambda: ahead)
        say(one, True)
    say(two, False)
    assert not current(one).intake.paused
    assert not read_here(one.layout).intake.paused


def test_a_wish_survives_the_loss_of_the_state_store_and_returns_to_it(tmp_path: Path) -> None:
    one, two = node(tmp_path, "a"), node(tmp_path, "b")
    say(one, True)
    lose_state(tmp_path)
    assert current(one).intake.paused
    assert current(two).intake.paused  # from the store, where the first look put it again


def test_an_old_copy_does_not_undo_a_later_wish_after_the_store_was_lost(tmp_path: Path) -> None:
    old, other = node(tmp_path, "a"), node(tmp_path, "b")
    say(old, True)
    say(other, False)  # which the first node has not seen when the store is lost
    lose_state(tmp_path)
    assert current(old).intake.paused
    assert not current(other).intake.paused
    assert not current(old).intake.paused


def test_while_the_state_store_is_down_the_node_obeys_and_tells_the_others_later(
    tmp_path: Path,
) -> None:
    one, two = node(tmp_path, "a"), node(tmp_path, "b")
    (tmp_path / "state.sqlite").mkdir()  # no store can be there
    done = say(one, True)
    assert "state.sqlite" in done.trouble
    assert current(one).intake.paused
    assert not current(two).intake.paused
    (tmp_path / "state.sqlite").rmdir()
    assert current(one).intake.paused
    assert current(two).intake.paused


def test_where_neither_disk_nor_store_takes_it_the_wish_is_refused(tmp_path: Path) -> None:
    one = node(tmp_path, "a")
    (tmp_path / "state.sqlite").mkdir()
    one.layout.root.parent.mkdir(parents=True)
    one.layout.root.touch()
    with pytest.raises((FuploaderError, OSError)):
        say(one, True)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 10_000, b'{"intake": {"paused": 3}}', b"null"]
)
def test_a_damaged_file_counts_as_a_pause_until_somebody_speaks(
    tmp_path: Path, content: bytes
) -> None:
    one = node(tmp_path, "a")
    one.layout.root.mkdir(parents=True)
    one.layout.pause.write_bytes(content)
    found = current(one)
    assert found.intake.paused
    assert found.shipping.paused
    assert "pause.json cannot be read" in str(found)
    say(one, False, parts=("intake",))
    assert [current(one).of(part).paused for part in PARTS] == [False, True]
    say(one, False)
    assert current(one) == read_here(one.layout)
    assert str(current(one)) == ""


def test_a_damaged_file_is_replaced_by_what_the_state_store_knows(tmp_path: Path) -> None:
    one = node(tmp_path, "a")
    say(one, True, parts=("intake",))
    say(one, False, parts=("shipping",))
    one.layout.pause.write_bytes(b"{")
    assert [current(one).of(part).paused for part in PARTS] == [True, False]
    assert json.loads(one.layout.pause.read_bytes())["intake"]["by"] == "ada"


def test_a_folder_in_place_of_the_file_counts_as_a_pause(tmp_path: Path) -> None:
    one = node(tmp_path, "a")
    one.layout.pause.mkdir(parents=True)
    assert current(one).intake.paused


def test_where_no_file_can_be_nothing_is_paused_but_what_the_state_store_knows(
    tmp_path: Path,
) -> None:
    one, broken = node(tmp_path, "a"), node(tmp_path, "b")
    broken.storage_root.touch()
    assert current(broken) == Wishes()
    say(one, True)
    assert current(broken).intake.paused
    done = say(broken, False)  # its disk takes nothing
    assert str(broken.layout.root.parent) in done.trouble
    assert not current(one).intake.paused


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"paused": "yes"}', "[" * 10_000])
def test_nonsense_in_the_state_store_is_no_wish(tmp_path: Path, text: str) -> None:
    one = node(tmp_path, "a")
    with closing(one.state.store(pipeline=one.name, node=one.node)) as store:
        store.put_note("intake", Note(10, text))
        store.put_note("of a later version", Note(10, text))
    assert current(one) == Wishes()
    say(one, True)
    assert current(node(tmp_path, "b")).intake.paused


def test_any_reason_is_one_line_and_not_without_end(tmp_path: Path) -> None:
    one = node(tmp_path, "a")
    wish(one, PARTS, paused=True, by="eve\x1b[31m", reason="a\nb\u202e" + "x" * 10_000)
    said = str(current(node(tmp_path, "b")))
    assert said.isprintable()
    assert len(said) < 1_000


def test_what_cannot_be_read_has_no_time(tmp_path: Path) -> None:
    """So that any wish in the store is later."""
    one = node(tmp_path, "a")
    one.layout.pause.mkdir(parents=True)
    assert read_here(one.layout).intake.at == Wish().at == 0
