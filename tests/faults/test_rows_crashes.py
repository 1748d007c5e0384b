"""Storing rows that is killed behind any of its steps ends as if nobody had killed it."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.dead_letters.letters import numbered_dead_letters, requeued_ids
from fuploader_dagster.disk.crash_points import CrashPoint
from fuploader_dagster.slots.receipts import receipts_between
from tests.crashes import Lives, copied, some_hits
from tests.lives import settings_in
from tests.sinks_for_tests import stored_rows

OF_ROWS = ("OWED_NOTED", "ROWS_STORED", "ROWS_RECEIPT_KEPT", "OWED_CLEARED", "DEAD_LETTERS_KEPT")
SINKS = ("rows", "kept")
ROWS = [{"slot": slot, "n": n} for slot in range(4) for n in range(6)]


@pytest.fixture(scope="module")
def made(lives: Lives, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    assert lives.live("to_store", folder) is not None
    return folder


def outcome(folder: Path) -> dict[str, Any]:
    """All that is left of the rows, without times."""
    layout = settings_in(folder).layout
    letters = Counter(
        (letter.item.stage, letter.item.partition, letter.item.name, letter.body)
        for _, letter in numbered_dead_letters(layout)
        if letter.item is not None
    )
    receipts = {
        sink: sorted(
            (one["partition"], one["rows"], one["rejected"])
            for path in layout.sink(sink).glob("*.jsonl")
            for one in map(json.loads, path.read_text().splitlines())
        )
        for sink in SINKS
    }
    return {
        "rows": {"rows": stored_rows(folder / "rows.sqlite"), "kept": table(folder)},
        "letters": letters,
        "receipts": receipts,
        "archives": receipts_between(layout).keys(),
        "left": sorted(
            path.name
            for name in ("sealed", "sinks", "archives")
            for path in layout.root.glob(f"{name}/**/*")
            if path.is_file() and path.suffix != ".jsonl"
        ),
        "sent back": requeued_ids(layout),
    }


def table(folder: Path) -> list[dict[str, int]]:
    with closing(sqlite3.connect(folder / "kept.sqlite")) as database:
        rows = database.execute("SELECT slot, n FROM kept ORDER BY slot, n").fetchall()
    return [{"slot": slot, "n": n} for slot, n in rows]


def test_without_a_kill_each_row_letter_and_receipt_is_there_once(
    lives: Lives, made: Path, tmp_path: Path
) -> None:
    folder = copied(made, tmp_path)
    steps = lives.live("storing", folder)
    assert steps is not None
    assert set(OF_ROWS) <= set(steps)
    found = outcome(folder)
    assert found["rows"] == dict.fromkeys(SINKS, ROWS)
    assert len(found["letters"]) == 2 * 2 * 4
    assert set(found["letters"].values()) == {1}
    for sink in SINKS:
        assert [one[1:] for one in found["receipts"][sink]] == [(6, 2)] * 4
    assert len(found["archives"]) == 4
    assert found["left"] == []


def test_killed_behind_any_step_it_ends_as_without_the_kill(
    lives: Lives, made: Path, tmp_path: Path
) -> None:
    untouched = copied(made, tmp_path / "untouched")
    steps = lives.live("storing", untouched)
    assert steps is not None
    wanted = outcome(untouched)
    dice = random.Random(20)
    for hit in some_hits(len(steps), dice):
        folder = copied(made, tmp_path / str(hit))
        assert lives.live("storing", folder, {"step": None, "hit": hit}) is None
        lives.live("storing", folder, {"step": None, "hit": dice.randrange(1, len(steps))})
        for _ in range(2):  # what a kill left for recovery to finish
            assert lives.live("storing", folder) is not None
        assert outcome(folder) == wanted, f"{hit} ({steps[hit - 1]})"
        shutil.rmtree(folder)


@pytest.mark.parametrize("step", OF_ROWS)
def test_each_crash_point_of_rows_is_passed_and_survived(
    step: str, lives: Lives, made: Path, tmp_path: Path
) -> None:
    folder = copied(made, tmp_path)
    assert lives.live("storing", folder, {"step": CrashPoint[step].name, "hit": 1}) is None
    for _ in range(2):
        assert lives.live("storing", folder) is not None
    untouched = copied(made, tmp_path / "untouched")
    assert lives.live("storing", untouched) is not None
    assert outcome(folder) == outcome(untouched)


@pytest.mark.parametrize("hit", [1, 3])
def test_a_dead_letter_is_stored_once_though_the_process_dies_before_it_is_noted(
    hit: int, lives: Lives, made: Path, tmp_path: Path
) -> None:
    folder = copied(made, tmp_path)
    assert lives.live("storing", folder) is not None
    kill = {"step": "LETTER_STORED", "hit": hit}
    assert lives.live("storing_letters", folder, kill) is None  # type: ignore[arg-type]
    for _ in range(2):
        assert lives.live("storing_letters", folder) is not None
    found = outcome(folder)
    taken = [row for row in found["rows"]["rows"] if "refused" in row]
    assert len(taken) == 4
    assert len(found["rows"]["rows"]) == len(ROWS) + 4
    assert found["rows"]["kept"] == ROWS
    assert len(found["sent back"]) == 4
