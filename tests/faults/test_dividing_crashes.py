"""Dividing that is killed behind any of its steps: each message is in one archive, under the key of
its value."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.disk.crash_points import CrashPoint
from tests.crashes import Lives, copied, some_hits
from tests.drains import publish
from tests.faults.test_crash_points import archived, assert_nothing_is_left, objects
from tests.lives import settings_in
from tests.settings import archives_in

SPLIT: dict[str, Any] = {
    "split_by": {"tenant": "tenant", "event": "at"},
    "key": "tenant={tenant}/day={event:%Y-%m-%d}/{archive}",
    "split_limit": 3,
    "message_format": "envelope",
}
OF_DIVIDING = ("PIECES_SYNCED", "PIECE_NAMED", "DIVIDED", "PIECE_REMOVED")
TENANTS = ["acme", "a/b", None, "../x", "acme", "acme"]
DAYS = ["2026-11-20T10:00:00Z", "2026-11-21T10:00:00Z"]


def published() -> dict[str, bytes]:
    return {
        f"{n}.json": json.dumps(
            {"tenant": TENANTS[n % len(TENANTS)], "at": DAYS[n // 40], "n": n}
        ).encode()
        for n in range(70)
    }


@pytest.fixture(scope="module", params=["segment", "files"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A folder with a full queue, and the settings of those who live in it."""
    folder = tmp_path_factory.mktemp("made")
    values = {**SPLIT, "slot_format": request.param}
    publish(settings_in(folder, **values), published())
    return folder, values


def assert_everything_is_stored_once(folder: Path, values: dict[str, Any], case: str = "") -> None:
    settings = settings_in(folder, **values)
    assert archived(settings) == {name: [body] for name, body in published().items()}, case
    paths = [path.relative_to(objects(settings)) for path in archives_in(objects(settings))]
    folders = {str(path.parent) for path in paths}
    assert folders >= {"tenant=acme/day=2026-11-20", "tenant=_other/day=_other"}, case
    assert {path.parts[0] for path in paths} <= {
        *("tenant=acme", "tenant=a%2Fb", "tenant=_none", "tenant=%2E.%2Fx", "tenant=_other"),
    }, case
    assert settings.layout.sealed_dirs() == [], case
    assert_nothing_is_left(settings, case, published())


def test_killed_behind_any_step_each_message_is_stored_once(
    made: tuple[Path, dict[str, Any]], lives: Lives, tmp_path: Path
) -> None:
    folder, values = made
    untouched = copied(folder, tmp_path / "untouched")
    steps = lives.live("whole", untouched, **values)
    assert steps is not None
    assert set(OF_DIVIDING) - {"PIECE_REMOVED"} <= set(steps)
    assert_everything_is_stored_once(untouched, values)
    dice = random.Random(20)
    first, last = steps.index("PIECES_SYNCED"), len(steps) - steps[::-1].index("DIVIDED")
    around = [first + hit for hit in some_hits(last - first, dice)]
    for hit in around:
        life = copied(folder, tmp_path / str(hit))
        lives.live("whole", life, {"step": None, "hit": hit}, **values)
        again = dice.randrange(1, 60)
        lives.live("whole", life, {"step": None, "hit": again}, **values)
        assert lives.live("whole", life, **values) is not None
        assert_everything_is_stored_once(life, values, f"{hit} ({steps[hit - 1]}), then {again}")
        shutil.rmtree(life)


@pytest.mark.parametrize("hit", [1, 2, 3])
@pytest.mark.parametrize("step", OF_DIVIDING)
def test_each_crash_point_of_dividing_is_passed_and_survived(
    step: str, hit: int, made: tuple[Path, dict[str, Any]], lives: Lives, tmp_path: Path
) -> None:
    folder, values = made
    life = copied(folder, tmp_path)
    if step == "PIECE_REMOVED":  # only what a kill leaves is removed
        kill = {"step": "PIECE_NAMED", "hit": 3}
        assert lives.live("whole", life, kill, **values) is None  # type: ignore[arg-type]
    point = CrashPoint[step].name
    assert lives.live("whole", life, {"step": point, "hit": hit}, **values) is None
    assert lives.live("whole", life, **values) is not None
    assert_everything_is_stored_once(life, values)
