"""Without Dagster: rows are stored before the upload, and what is owed after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fuploader_dagster.delivery.all_rows import AllRows
from fuploader_dagster.delivery.attempts import Done
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.delivery.sink_notes import SinkNotes
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.sealing import sealed_partitions
from fuploader_dagster.standalone import ship_pipeline
from tests.processors_for_tests import Script, script
from tests.settings import archived_files, pipeline, sealed
from tests.sinks_for_tests import RowsFile, calls, stored_rows


def made(folder: Path, values: dict[str, Any] | None = None, **sink: Any) -> Pipeline:
    both = {
        "rows": RowsFile(path=folder / "rows.sqlite"),
        "other": RowsFile(path=folder / "other.sqlite", **sink),
    }
    return pipeline(folder, sinks=both, **(values or {}))


def test_ship_stores_rows_in_all_sinks_and_uploads(tmp_path: Path) -> None:
    settings = made(tmp_path, {"partitions_per_run": 2})
    for n in range(5):
        sealed(settings, {f"{n}": b'{"n": %d}' % n})
    rows = AllRows(settings, patient=False)
    outcomes = list(ship(settings, settings.store.open(), rows))
    assert [type(one) for one in outcomes] == [Done] * 5
    assert (rows.stored, rows.failures) == (10, [])
    for name in ("rows", "other"):
        assert stored_rows(tmp_path / f"{name}.sqlite") == [{"n": n} for n in range(5)]
        assert SinkNotes(settings.layout, name).owed() == []
    assert len(archived_files(tmp_path / "objects")) == 5


def test_a_sink_that_is_away_is_left_alone_until_its_next_attempt_is_due(tmp_path: Path) -> None:
    switch = tmp_path / "on"
    values = {"recovery_base_seconds": 3600.0, "recovery_cap_seconds": 3600.0}
    settings = made(tmp_path, values, switch=switch)
    keys = [sealed(settings, {"a": b'{"n": 1}'}).seal.partition for _ in range(3)]
    shipped = ship_pipeline(settings)
    assert (shipped.archives, shipped.rows, len(shipped.failures)) == (3, 3, 3)
    assert SinkNotes(settings.layout, "other").owed() == keys
    calls.clear()
    assert ship_pipeline(settings).failures == ()
    assert not calls
    switch.touch()
    eager = settings.model_copy(update={"recovery_base_seconds": 1e-6})
    assert [ship_pipeline(eager).rows for _ in range(3)] == [1, 2, 0]


def test_a_slot_that_a_required_sink_keeps_counts_as_shipped_once(tmp_path: Path) -> None:
    switch = tmp_path / "on"
    settings = made(tmp_path, {"recovery_base_seconds": 1e-6}, switch=switch, required=True)
    sealed(settings, {"a": b'{"n": 1}'})
    assert ship_pipeline(settings).archives == 1
    again = ship_pipeline(settings)
    assert (again.archives, len(again.failures)) == (0, 1)
    switch.touch()
    assert ship_pipeline(settings).rows == 1
    assert sealed_partitions(settings.layout) == []


def test_what_is_processed_is_stored_as_rows_before_it_is_uploaded(tmp_path: Path) -> None:
    settings = made(tmp_path, {"process": Script()}, required=True)
    sealed(settings, {"a": script(results=0), "b": script(results=0)})
    shipped = ship_pipeline(settings)
    assert (shipped.archives, shipped.rows, shipped.failures) == (1, 0, ())
