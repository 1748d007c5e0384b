"""Telling with kill -9 behind any step: each notice comes, in its order, with one id."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.disk.crash_points import CrashPoint
from tests.crashes import Lives, copied, some_hits
from tests.faults.test_crash_points import archived
from tests.lives import settings_in
from tests.notice_lives import TASKS
from tests.notifiers_for_tests import told, words_of

OF_NOTICES = ("TASK_ENDED", "NOTICE_SENT", "NOTICE_NOTED", "NOTICES_CLOSED")


@pytest.fixture(scope="module")
def made(lives: Lives, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    assert lives.live("to_tell", folder) is not None
    return folder


def assert_everything_is_told(folder: Path, case: str = "") -> None:
    journal = folder / "journal"
    for name, steps in TASKS.items():
        results = list(steps.get("files", []))
        assert words_of(journal, name) == ["start", *results, "end"], f"{case}: {name}"
    ends = {one["name"]: one for one in told(journal) if one["event"] == "end"}
    assert {name: one["failed"] for name, one in ends.items()} == {
        name: int(name in ("t1.json", "bad.json")) for name in TASKS
    }, case
    assert ends["t1.json"]["failures"] == [{"name": "t1-lost.jpg", "reason": "404"}], case
    assert "no such task" in ends["bad.json"]["failures"][0]["reason"], case
    settings = settings_in(folder)
    assert len(archived(settings)) == len(TASKS) + sum(
        len(one.get("files", ())) for one in TASKS.values()
    )
    root = settings.layout.notices
    left = [path.name for path in root.rglob("*") if path.is_file()]
    assert left == [], case


def test_without_a_kill_each_notice_comes_once(lives: Lives, made: Path, tmp_path: Path) -> None:
    folder = copied(made, tmp_path)
    steps = lives.live("telling", folder)
    assert steps is not None
    assert set(OF_NOTICES) <= set(steps)
    ids = [one["id"] for one in told(folder / "journal")]
    assert len(ids) == len(set(ids))
    assert lives.live("telling", folder) is not None  # nothing is told again; what is left goes
    assert [one["id"] for one in told(folder / "journal")] == ids
    assert_everything_is_told(folder)


def test_killed_behind_any_step_everything_is_told(
    lives: Lives, made: Path, tmp_path: Path
) -> None:
    untouched = copied(made, tmp_path / "untouched")
    steps = lives.live("telling", untouched)
    assert steps is not None
    dice = random.Random(22)
    for hit in some_hits(len(steps), dice):
        folder = copied(made, tmp_path / str(hit))
        kill: Any = {"step": None, "hit": hit}
        lives.live("telling", folder, kill)
        lives.live("telling", folder, {"step": None, "hit": dice.randrange(1, len(steps))})
        for _ in range(2):
            assert lives.live("telling", folder) is not None
        assert_everything_is_told(folder, f"{hit} ({steps[hit - 1]})")
        shutil.rmtree(folder)


@pytest.mark.parametrize("hit", [1, 3])
@pytest.mark.parametrize("step", OF_NOTICES)
def test_each_crash_point_of_notices_is_passed_and_survived(
    step: str, hit: int, lives: Lives, made: Path, tmp_path: Path
) -> None:
    folder = copied(made, tmp_path)
    kill: Any = {"step": CrashPoint[step].name, "hit": hit}
    assert lives.live("telling", folder, kill) is None
    for _ in range(2):
        assert lives.live("telling", folder) is not None
    assert_everything_is_told(folder)
