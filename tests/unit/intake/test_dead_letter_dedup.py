"""Whether a redelivered message has its dead letter already is looked up in the files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fuploader_dagster.dead_letters.letters import (
    SENT_BACK_MARGIN_SECONDS,
    DeadLetter,
    DeadLetterBox,
    numbered_dead_letters,
    requeue,
)
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.intake.dead_letter_dedup import without_written
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue

NOON = 1_795_262_400.0  # 2026-11-21T12:00:00Z
DAY = 86_400.0


def letter(body: bytes, *, again: bool = True, at: float = NOON, **values: Any) -> DeadLetter:
    made = DeadLetter(
        time="",
        reason="why",
        redelivered=again,
        message_id="id-1",
        attributes={"headers": {"app": "a", "x-delivery-count": 0}, "deliveries": 1},
        body=body,
    )
    stamp = DeadLetterBox(Layout(Path()), 0, clock=lambda: at).now()
    return msgspec.structs.replace(made, **{"time": stamp, **values})


def keep(folder: Path, worker: int, letters: list[DeadLetter], *, at: float = NOON) -> None:
    DeadLetterBox(Layout(folder), worker, clock=lambda: at).keep(letters)


def new(folder: Path, *letters: DeadLetter, in_hand: int = 100, every: bool = False) -> list[bytes]:
    """Bodies of the letters that are still to be written."""
    found = without_written(letters, Layout(folder), in_hand, check_all=every)
    return [one.body for one in found]


def test_what_came_again_and_has_a_letter_of_any_worker_or_day_gets_no_second_one(
    tmp_path: Path,
) -> None:
    """What came for the first time was published twice, unless somebody else may have it too."""
    keep(tmp_path, 0, [letter(b"yesterday")], at=NOON - DAY)
    keep(tmp_path, 0, [letter(b"a"), letter(b"b")])
    keep(tmp_path, 11, [letter(b"c", again=False)])
    seen = [letter(b"yesterday"), letter(b"a"), letter(b"b", again=False), letter(b"c")]
    assert new(tmp_path, *seen, letter(b"d")) == [b"b", b"d"]
    assert new(tmp_path, *seen, letter(b"d"), every=True) == [b"d"]
    assert new(tmp_path / "nothing here", letter(b"a")) == [b"a"]


@pytest.mark.parametrize(
    ("values", "is_the_same"),
    [
        ({}, True),
        ({"reason": "another parser", "time": "2026-11-21T12:00:07.000+00:00"}, True),
        ({"attributes": {"headers": {"x-delivery-count": 3, "app": "a"}, "deliveries": 2}}, True),
        ({"attributes": {"headers": {"app": "b"}}}, False),
        ({"attributes": {}}, False),
        ({"message_id": None}, False),
    ],
)
def test_the_same_is_what_has_the_same_body_id_and_headers(
    tmp_path: Path, values: dict[str, Any], is_the_same: bool
) -> None:
    keep(tmp_path, 0, [letter(b"a")])
    assert new(tmp_path, letter(b"a", **values)) == [b"a"] * (not is_the_same)


def test_only_as_many_letters_are_read_as_a_worker_can_have_had_in_hand(tmp_path: Path) -> None:
    """So that a look does not take longer the more dead letters there are."""
    for number in range(40):
        keep(tmp_path, 0, [letter(b"%d-" % number + bytes(100_000))])
    last, first = (letter(b"%d-" % number + bytes(100_000)) for number in (30, 0))
    assert new(tmp_path, last, first, in_hand=10) == [first.body]


def test_a_torn_line_hides_no_other_letter(tmp_path: Path) -> None:
    keep(tmp_path, 0, [letter(b"a")])
    (path,) = (tmp_path / "dead-letters").glob("*.jsonl")
    path.write_bytes(path.read_bytes() + path.read_bytes()[:-20])
    keep(tmp_path, 0, [letter(b"b")])
    path.write_bytes(path.read_bytes() + path.read_bytes()[:20])
    assert new(tmp_path, letter(b"a"), letter(b"b"), letter(b"c")) == [b"c"]


def test_a_message_that_was_sent_back_and_comes_again_becomes_a_letter_again(
    tmp_path: Path,
) -> None:
    """Else nobody would see it any more: its first letter counts as sent back."""
    layout = Layout(tmp_path / "docs")
    box = DeadLetterBox(layout, 0)
    sent, late = letter(b"sent", time=box.now()), letter(b"late", time=box.now())
    box.keep([sent])
    publisher = EmbeddedQueue(path=tmp_path / "queue").publisher()
    assert requeue(layout, [], publisher).sent == 0
    assert new(layout.root, sent) == []
    assert requeue(layout, list(numbered_dead_letters(layout)), publisher).sent == 1
    publisher.close()
    assert new(layout.root, sent) == [b"sent"]
    later = (layout.dead_letters / "requeued").stat().st_mtime + 2 * SENT_BACK_MARGIN_SECONDS
    keep(layout.root, 0, [letter(b"late", at=later)], at=later)
    assert new(layout.root, sent, late) == [b"sent"]


def test_a_letter_from_before_the_clock_was_set_back_is_no_proof_once_letters_were_sent_back(
    tmp_path: Path,
) -> None:
    """Its time says that it is newer than the sending back, and nobody knows whether it is."""
    layout = Layout(tmp_path / "docs")
    ahead = time.time() + 8 * 3600
    keep(layout.root, 0, [letter(b"sent", at=ahead)], at=ahead)
    assert new(layout.root, letter(b"sent")) == []
    publisher = EmbeddedQueue(path=tmp_path / "queue").publisher()
    assert requeue(layout, list(numbered_dead_letters(layout)), publisher).sent == 1
    publisher.close()
    assert new(layout.root, letter(b"sent")) == [b"sent"]
