"""Notices under Dagster: a run tells of its tasks, and the recovery schedule of what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.delivery import notices
from fuploader_dagster.resources.object_stores import Local
from fuploader_dagster.settings.pipeline import Pipeline
from tests.code_location.test_assets import Location
from tests.code_location.test_recovery_schedule import Recovering
from tests.notifiers_for_tests import JournalNotices, told, words_of
from tests.processors_for_tests import Script, script
from tests.servers.ports import wait_until
from tests.settings import pipeline, sealed

WORDS = ["start", "t1", "t1~2", "end"]


def telling(folder: Path, **values: Any) -> dict[str, Any]:
    journal = JournalNotices(path=folder / "journal", presigned_seconds=0)
    return {"seal_each": "message", "notify": journal, "process": Script(), **values}


def task(settings: Pipeline) -> str:
    return sealed(settings, {"t1": script(results=2)}).seal.partition


def test_a_run_tells_of_its_tasks_and_ends_when_they_are_told(tmp_path: Path) -> None:
    location = Location(pipeline(tmp_path, **telling(tmp_path), max_retries=0))
    assert location.ship([task(location.settings)]).success
    notices.settle(location.settings, 120)  # a busy machine takes longer than the run waits
    assert words_of(tmp_path / "journal", "t1") == WORDS
    assert len(told(tmp_path / "journal")) == len(WORDS)


def test_a_run_succeeds_though_nobody_answers_and_the_recovery_schedule_tells_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(notices, "LONGEST_PAUSE_SECONDS", 0.1)
    (tmp_path / "journal.down").touch()
    location = Location(pipeline(tmp_path, **telling(tmp_path), max_retries=0))
    assert location.ship([task(location.settings)]).success
    assert told(tmp_path / "journal") == []
    (tmp_path / "journal.down").unlink()
    recovering = Recovering(tmp_path, **telling(tmp_path))

    def is_told() -> bool:
        recovering.tick()
        notices.settle(recovering.settings)
        return words_of(tmp_path / "journal", "t1") == WORDS

    wait_until(is_told, seconds=120, what="the schedule to tell", diagnose=str)


def test_the_end_is_told_only_when_the_archive_is_stored(tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("in the way of the store's folder")
    store = Local(path=str(tmp_path / "objects"), retry_budget_seconds=0)
    location = Location(pipeline(tmp_path, **telling(tmp_path, store=store), max_retries=0))
    key = task(location.settings)
    assert not location.ship([key]).success
    notices.settle(location.settings, 120)
    assert words_of(tmp_path / "journal", "t1") == WORDS[:-1]
    (tmp_path / "objects").unlink()
    assert location.ship([key]).success
    notices.settle(location.settings, 120)
    assert words_of(tmp_path / "journal", "t1") == WORDS
