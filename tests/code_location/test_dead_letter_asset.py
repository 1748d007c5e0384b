"""Dead letters in the UI: an asset and a check, told by the drain sensor without a run."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from fuploader_dagster.assets import dead_letters
from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.dead_letters.letters import DeadLetterBox
from fuploader_dagster.definitions import build_definitions
from tests.settings import pipeline
from tests.ticking import Ticking
from tests.unit.dead_letters.test_letters import letter


def told(ticking: Ticking) -> tuple[dict[str, object], bool | None]:
    """The asset's metadata, and whether the check passed, in one tick; None: not told."""
    metadata: dict[str, object] = {}
    passed = None
    for event in ticking.tick().asset_events:
        if getattr(event, "asset_check_key", None) == ticking.names.reachable_check:
            continue
        assert event.asset_key == ticking.names.dead_letters
        if isinstance(event, dg.AssetMaterialization):
            metadata = {name: value.value for name, value in event.metadata.items()}
        elif isinstance(event, dg.AssetCheckEvaluation):
            passed = event.passed
            assert event.severity == dg.AssetCheckSeverity.WARN
    return metadata, passed


def test_ticks_tell_count_and_reasons_once_and_warn_while_there_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_795_262_400.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    ticking = Ticking(pipeline(tmp_path, drain_by="command", max_dead_letters_per_hour=3))
    box = DeadLetterBox(ticking.settings.layout, 0, clock=lambda: now[0])

    def after(seconds: float, letters: int) -> tuple[dict[str, object], bool | None]:
        now[0] += seconds
        box.keep([letter(b"x", f"no 'name-{n}' | here") for n in range(letters)])
        return told(ticking)

    assert after(0, 0) == ({}, None)
    metadata, passed = after(0, 2)
    assert (metadata["dead_letters"], passed) == (2, True)
    (row,) = metadata["reasons"].records  # type: ignore[attr-defined]
    assert row.data == {"messages": 2, "reason": "no … | here"}
    assert after(10, 2) == ({}, None)  # not more often than once a minute
    metadata, passed = after(60, 0)
    assert (metadata["dead_letters"], passed) == (4, False)
    assert after(600, 0) == ({}, None)  # nothing new
    assert after(3_000, 0) == ({}, True)  # the hour is over


def test_the_check_can_be_run_by_hand(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, max_dead_letters_per_hour=1)
    DeadLetterBox(settings.layout, 0).keep([letter(b"1"), letter(b"2")])
    key = dg.AssetCheckKey(Names.of(settings).dead_letters, dead_letters.CHECK_NAME)
    job = build_definitions(settings).get_implicit_global_asset_job_def()
    run = job.get_subset(asset_selection=set(), asset_check_selection={key})
    with dg.DagsterInstance.ephemeral() as instance:
        (evaluation,) = run.execute_in_process(instance=instance).get_asset_check_evaluations()
    assert not evaluation.passed
    assert "2 dead letters within the last hour; the limit is 1" in str(evaluation.description)
