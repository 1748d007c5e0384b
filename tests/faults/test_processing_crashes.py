"""Processing that is killed behind any of its steps ends as if nobody had killed it."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fuploader_dagster.dead_letters.letters import numbered_dead_letters
from fuploader_dagster.disk.crash_points import CrashPoint
from fuploader_dagster.slots.receipts import receipts_between
from tests.crashes import Lives, copied, some_hits
from tests.lives import scripted, settings_in
from tests.settings import archives_in

OF_PROCESSING = (
    "PROCESSING_BEGUN",
    "OUTCOMES_KEPT",
    "OUTCOMES_CUT",
    "PROCESSED",
    "PROCESSED_REMOVED",
)


INTO_FILES = (*OF_PROCESSING, "ITEM_FOLDERS_REMOVED", "TAIL_CUT")


class Kind(NamedTuple):
    """A pipeline with sealed slots, the life that processes them, and what comes out."""

    made: Path
    life: str
    letters: int
    """Of both slots."""


@pytest.fixture(scope="module", params=["processing", "processing_into_files"])
def kind(
    lives: Lives, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Kind:
    folder = tmp_path_factory.mktemp("made")
    into_files = request.param != "processing"
    assert lives.live("to_process_into_files" if into_files else "to_process", folder) is not None
    return Kind(folder, request.param, 20 if into_files else 10)


def outcome(folder: Path) -> dict[str, Any]:
    """All that is left of a pipeline's life, without times."""
    settings = settings_in(folder)
    layout = settings.layout
    letters = Counter(
        (letter.item.partition, letter.item.position, letter.body)
        for _, letter in numbered_dead_letters(layout)
        if letter.item is not None
    )
    return {
        "archives": {path.name: path.read_bytes() for path in archives_in(folder / "objects")},
        "letters": letters,
        "receipts": {
            key: (receipt.sha256, receipt.messages)
            for key, receipt in receipts_between(layout).items()
        },
        "left": sorted(
            str(path.relative_to(layout.root))
            for name in ("sealed", "processed", "archives")
            for path in layout.root.glob(f"{name}/**/*")
            if path.is_file()
        ),
        "aside": sorted(path.name for path in layout.set_aside.glob("*")),
    }


def test_killed_behind_a_step_of_processing_everything_ends_as_without_the_kill(
    lives: Lives, kind: Kind, tmp_path: Path
) -> None:
    untouched = copied(kind.made, tmp_path / "untouched")
    steps = lives.live(kind.life, untouched)
    assert steps is not None
    assert {"PROCESSING_BEGUN", "OUTCOMES_KEPT", "PROCESSED"} <= set(steps)
    wanted = outcome(untouched)
    assert sum(wanted["letters"].values()) == kind.letters
    assert set(wanted["letters"].values()) == {1}
    assert wanted["left"] == []
    assert {messages for _, messages in wanted["receipts"].values()} == {len(scripted(0))}
    dice = random.Random(19)
    hits = some_hits(len(steps), dice)
    died = 0
    for hit in hits:
        folder = copied(kind.made, tmp_path / str(hit))
        died += lives.live(kind.life, folder, {"step": None, "hit": hit}) is None
        again = dice.randrange(1, len(steps))
        lives.live(kind.life, folder, {"step": None, "hit": again})
        assert lives.live(kind.life, folder) is not None
        assert outcome(folder) == wanted, f"{hit} ({steps[hit - 1]}), then {again}"
        shutil.rmtree(folder)
    assert died > 0.5 * len(hits)  # how many steps there are depends on what fits into a commit


@pytest.mark.parametrize("step", INTO_FILES)
def test_each_crash_point_of_processing_is_passed_and_survived(
    step: str, lives: Lives, kind: Kind, tmp_path: Path
) -> None:
    folder = copied(kind.made, tmp_path)
    if step not in OF_PROCESSING and kind.life == "processing":
        return  # it has no such step
    if step in ("OUTCOMES_CUT", "TAIL_CUT"):  # only what a kill leaves is cut
        assert lives.live(kind.life, folder, {"step": "OUTCOMES_KEPT", "hit": 1}) is None
    assert lives.live(kind.life, folder, {"step": CrashPoint[step].name, "hit": 1}) is None
    assert lives.live(kind.life, folder) is not None
    untouched = copied(kind.made, tmp_path / "untouched")
    assert lives.live(kind.life, untouched) is not None
    assert outcome(folder) == outcome(untouched)
