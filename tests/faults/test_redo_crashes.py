"""A redo that is killed behind any of its steps ends with one new archive, and the first one."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.dead_letters.letters import numbered_dead_letters
from fuploader_dagster.disk.crash_points import CrashPoint
from fuploader_dagster.disk.layout import REDO_MARK
from fuploader_dagster.slots.receipts import receipts_between
from tests.crashes import Lives, copied, some_hits
from tests.lives import scripted, settings_in
from tests.settings import archives_in

OF_A_REDO = {"REDO_BEGUN", "REDO_REMOVED", "PROCESSED", "ARCHIVE_NOTED", "RECEIPT_KEPT"}
Steps = list[str]


@pytest.fixture(scope="module")
def stored(lives: Lives, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two partitions that are processed and stored."""
    folder = tmp_path_factory.mktemp("stored")
    assert lives.live("to_process", folder) is not None
    assert lives.live("processing", folder) is not None
    return folder


@pytest.fixture(scope="module")
def unharmed(lives: Lives, stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """The steps of the redo when nobody kills it."""
    folder = copied(stored, tmp_path_factory.mktemp("unharmed"))
    steps = lives.live("redoing", folder)
    assert steps is not None
    assert set(steps) >= OF_A_REDO
    assert_redone_once(folder, stored)
    return steps


def content_of(path: Path) -> dict[str, bytes]:
    with Archive.open(path) as archive:
        return {member.name: archive.read(member.name) for member in archive.members}


def assert_redone_once(folder: Path, stored: Path, case: str = "") -> None:
    layout = settings_in(folder).layout
    originals = {path.name: path for path in archives_in(stored / "objects")}
    first = {name: path.read_bytes() for name, path in originals.items()}
    found = {path.name: path for path in archives_in(folder / "objects")}
    assert {name: found[name].read_bytes() for name in first} == first, case
    redone = {
        name.partition(REDO_MARK)[0]: path for name, path in found.items() if name not in first
    }
    assert len(found) == 2 * len(first), case
    assert sorted(redone) == sorted(name.removesuffix(".tar.zst") for name in first), case
    for partition, path in redone.items():
        assert content_of(path) == content_of(originals[f"{partition}.tar.zst"]), case
    receipts = receipts_between(layout)
    assert {key: one.key.rpartition("/")[2] for key, one in receipts.items()} == {
        partition: path.name for partition, path in redone.items()
    }, case
    letters = Counter(
        (letter.item.partition, letter.item.position)
        for _, letter in numbered_dead_letters(layout)
        if letter.item is not None
    )
    bad = sum(b'"bad"' in body for slot in (0, 1) for body in scripted(slot).values())
    assert (len(letters), set(letters.values())) == (bad, {2}), case  # of then, and of now
    assert list(layout.redo.iterdir()) == [], case
    for name in ("sealed", "processed", "archives", "set-aside"):
        assert [path for path in (layout.root / name).rglob("*") if path.is_file()] == [], case
    assert [*layout.root.rglob(".tmp-*"), *(folder / "objects").rglob(".tmp-*")] == [], case


def test_killed_behind_a_step_of_a_redo_there_is_one_new_archive_and_the_first_one(
    lives: Lives, stored: Path, unharmed: Steps, tmp_path: Path
) -> None:
    dice = random.Random(6)
    hits = some_hits(len(unharmed), dice)
    killed = 0
    for hit in hits:
        folder = copied(stored, tmp_path / str(hit))
        # how many steps there are depends on the commits, and so on the time that items take
        killed += lives.live("redoing", folder, {"step": None, "hit": hit}) is None
        again = dice.randrange(1, len(unharmed))
        lives.live("redoing", folder, {"step": None, "hit": again})
        for _ in range(2):  # what the last kill left is removed by the recovery of the next life
            assert lives.live("redoing", folder) is not None
        assert_redone_once(folder, stored, f"{hit} ({unharmed[hit - 1]}), then {again}")
        shutil.rmtree(folder)
    assert killed > len(hits) / 2


@pytest.mark.parametrize("step", sorted(OF_A_REDO))
@pytest.mark.parametrize("hit", [1, 2])
def test_each_crash_point_of_a_redo_is_passed_and_survived(
    step: str, hit: int, lives: Lives, stored: Path, tmp_path: Path
) -> None:
    folder = copied(stored, tmp_path)
    kill = {"step": CrashPoint[step].name, "hit": hit}
    assert lives.live("redoing", folder, kill) is None  # type: ignore[arg-type]
    for _ in range(2):
        assert lives.live("redoing", folder) is not None
    assert_redone_once(folder, stored, step)
