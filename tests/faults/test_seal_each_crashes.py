"""`seal_each: message` with kill -9 behind any step: each message is in one archive, alone."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from fuploader_dagster.slots.receipts import receipts_between
from tests.crashes import Lives, copied, some_hits
from tests.drains import publish
from tests.faults.test_crash_points import archived, assert_nothing_is_left
from tests.lives import settings_in

VALUES: dict[str, Any] = {
    "seal_each": "message",
    "split_by": ["task_id"],
    "key": "tasks/{task_id}/{archive}",
    "message_format": "envelope",
}
TASKS = 20


def published() -> dict[str, bytes]:
    return {f"{n}.json": json.dumps({"task_id": f"t{n}"}).encode() for n in range(TASKS)}


def assert_each_is_stored_once_and_alone(folder: Path, case: str = "") -> None:
    settings = settings_in(folder, **VALUES)
    assert archived(settings) == {name: [body] for name, body in published().items()}, case
    receipts = receipts_between(settings.layout).values()
    assert sorted(one.key.split("/")[1] for one in receipts) == sorted(
        f"t{n}" for n in range(TASKS)
    ), case
    assert {one.messages for one in receipts} == {1}, case
    assert settings.layout.sealed_dirs() == [], case
    assert_nothing_is_left(settings, case, published())


def test_killed_behind_any_step_each_message_has_one_archive(lives: Lives, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    publish(settings_in(folder, **VALUES), published())
    untouched = copied(folder, tmp_path / "untouched")
    steps = lives.live("whole", untouched, **VALUES)
    assert steps is not None
    assert {"PIECES_SYNCED", "DIVIDED"} <= set(steps)
    assert_each_is_stored_once_and_alone(untouched)
    dice = random.Random(22)
    for hit in some_hits(len(steps), dice):
        life = copied(folder, tmp_path / str(hit))
        lives.live("whole", life, {"step": None, "hit": hit}, **VALUES)
        again = dice.randrange(1, 60)
        lives.live("whole", life, {"step": None, "hit": again}, **VALUES)
        assert lives.live("whole", life, **VALUES) is not None
        assert_each_is_stored_once_and_alone(life, f"{hit} ({steps[hit - 1]}), then {again}")
        shutil.rmtree(life)
