"""The assets of sinks: their place in the graph, what they report, and what recovery asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pytest

from fuploader_dagster.assets.partitions import RANGE_END_TAG, RANGE_START_TAG
from fuploader_dagster.assets.unreported import report_unreported
from fuploader_dagster.delivery import store_trouble
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.delivery.sink_notes import SinkNotes
from fuploader_dagster.delivery.store_trouble import note_trouble
from fuploader_dagster.disk.durable import write_durably
from fuploader_dagster.sensors.retention_schedule import build_retention_schedule
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.sealing import sealed_partitions
from tests.code_location.test_assets import Location
from tests.code_location.test_recovery_schedule import PATIENCE_SECONDS, Recovering
from tests.processors_for_tests import Script, script
from tests.settings import archived_files, pipeline, sealed
from tests.sinks_for_tests import RowsFile, stored_rows


def sinks(folder: Path, *names: str, **values: Any) -> dict[str, Any]:
    return {name: RowsFile(path=folder / f"{name}.sqlite", **values) for name in names}


def slots_of(settings: Pipeline, count: int, **values: Any) -> list[str]:
    content = [{f"{n}-{m}": json.dumps({"n": n}).encode() for m in range(3)} for n in range(count)]
    return [sealed(settings, one, **values).seal.partition for one in content]


def run_of(location: Location, keys: list[str], *assets: str, **tags: str) -> Any:
    """A run of just these assets, as a backfill or the recovery schedule launches it."""
    location.instance.add_dynamic_partitions(location.names.partition_set, keys)
    job = location.definitions.resolve_job_def(location.names.ship_job)
    return job.execute_in_process(
        instance=location.instance,
        asset_selection=[location.names.asset(name) for name in assets],
        tags={RANGE_START_TAG: keys[0], RANGE_END_TAG: keys[-1], **tags},
        raise_on_error=False,
    )


def rows(folder: Path, name: str) -> int:
    return len(stored_rows(folder / f"{name}.sqlite"))


def test_the_graph_has_them_after_the_slot_or_its_results(tmp_path: Path) -> None:
    location = Location(pipeline(tmp_path, sinks=sinks(tmp_path, "rows", "more", pool="tables")))
    graph = location.definitions.resolve_asset_graph()
    for name in ("sink_rows", "sink_more"):
        node = graph.get(location.names.asset(name))
        assert node.parent_keys == {location.names.sealed_slot}
        assert node.group_name == location.names.scope
        assert node.backfill_policy == dg.BackfillPolicy.multi_run(100)
        assert node.assets_def.op.pool == "tables"
        assert node.partitions_def == graph.get(location.names.sealed_slot).partitions_def
    processed = Location(pipeline(tmp_path, sinks=sinks(tmp_path, "rows"), process=Script()))
    graph = processed.definitions.resolve_asset_graph()
    parents = graph.get(processed.names.sink("rows")).parent_keys
    assert parents == {processed.names.processed_slot}


def test_an_ordinary_run_stores_rows_in_each_sink_and_says_how_many(tmp_path: Path) -> None:
    location = Location(pipeline(tmp_path, sinks=sinks(tmp_path, "rows", "more")))
    keys = slots_of(location.settings, 4)
    run = location.ship(keys)
    assert run.success
    steps = [one.step_key for one in run.all_events if one.event_type_value == "STEP_START"]
    assert steps.index("docs__sink_more") < steps.index("docs__uploaded_archive"), "slots are read"
    for name in ("rows", "more"):
        shown = location.materialized(location.names.sink(name))
        assert shown.keys() == set(keys)
        for one in shown.values():
            assert (one["rows"], one["rejected_items"]) == (3, 0)
            assert one["address"] == f"rows in {name}.sqlite"
            assert one["seconds"] >= 0
        assert rows(tmp_path, name) == 12
        assert SinkNotes(location.settings.layout, name).owed() == []
    assert location.materialized(location.names.uploaded_archive).keys() == set(keys)


def test_rows_of_results_are_stored_in_the_run_that_processes(tmp_path: Path) -> None:
    settings = pipeline(
        tmp_path, process=Script(), sinks=sinks(tmp_path, "rows", rows=named), max_retries=0
    )
    location = Location(settings)
    keys = [sealed(settings, {"a": script(results=2), "b": script(bad="no")}).seal.partition]
    assert location.ship(keys).success
    assert [row["name"] for row in stored_rows(tmp_path / "rows.sqlite")] == ["a", "a~2"]


def test_what_a_failing_step_ships_itself_is_owed_and_asked_for(tmp_path: Path) -> None:
    """Dagster skips the sink's step after one that failed."""
    recovering = RecoveringRows(tmp_path, rows=named, process=Script())
    location, settings = recovering.location, recovering.settings
    (tmp_path / "on").touch()
    slots = [
        sealed(settings, {"a": script(), "b": script()}, seconds_ago=20 * PATIENCE_SECONDS)
        for _ in range(3)
    ]
    keys = [slot.seal.partition for slot in slots]
    content = bytearray(slots[1].segment.read_bytes())
    content[600] ^= 1
    slots[1].segment.write_bytes(content)
    assert not location.ship(keys).success
    good = [keys[0], keys[2]]
    assert location.materialized(location.names.uploaded_archive).keys() == set(good)
    assert recovering.notes.owed() == good
    asked = recovering.tick()
    of_sink = [request for request in recovering.requests if request.asset_selection]
    assert [request.asset_selection for request in of_sink] == [[location.names.sink("rows")]] * 2
    assert [keys[0]] in asked and [keys[2]] in asked
    assert run_of(location, keys[:1], "sink_rows").success
    assert run_of(location, keys[2:], "sink_rows").success
    assert rows(tmp_path, "rows") == 4


def named(item: Any) -> dict[str, Any]:
    return {"name": item.name}


def test_a_sink_that_fails_stops_neither_the_uploads_nor_the_other_sinks(tmp_path: Path) -> None:
    away = sinks(tmp_path, "away", switch=tmp_path / "on")
    settings = pipeline(tmp_path, sinks={**away, **sinks(tmp_path, "rows")}, max_retries=1)
    location = Location(settings)
    keys = slots_of(settings, 3)
    assert not location.ship(keys).success
    assert location.materialized(location.names.uploaded_archive).keys() == set(keys)
    assert location.materialized(location.names.sink("rows")).keys() == set(keys)
    assert location.materialized(location.names.sink("away")) == {}
    assert location.failed(location.names.sink("away")) == set(keys)
    assert sealed_partitions(settings.layout) == []
    notes = SinkNotes(settings.layout, "away")
    assert notes.owed() == keys
    more = slots_of(settings, 2)
    assert location.ship(more).success, "the trouble is known: it waits"
    assert notes.owed() == [*keys, *more]
    (tmp_path / "on").touch()
    assert run_of(location, [*keys, *more], "sink_away").success
    assert location.materialized(location.names.sink("away")).keys() == {*keys, *more}
    assert (notes.owed(), notes.trouble) == ([], None)


def test_rows_whose_run_ended_before_it_reported_them_are_reported(tmp_path: Path) -> None:
    location = Location(pipeline(tmp_path, sinks=sinks(tmp_path, "rows")))
    keys = slots_of(location.settings, 2)
    location.instance.add_dynamic_partitions(location.names.partition_set, keys)
    list(ship(location.settings, location.settings.store.open()))
    assert report_unreported(location.instance, location.settings, keys) == 4
    shown = location.materialized(location.names.sink("rows"))
    assert {one["rows"] for one in shown.values()} == {3}
    assert report_unreported(location.instance, location.settings, keys) == 0


def test_a_backfill_with_the_tag_redo_stores_again(tmp_path: Path) -> None:
    location = Location(pipeline(tmp_path, sinks=sinks(tmp_path, "rows")))
    keys = slots_of(location.settings, 2)
    assert location.ship(keys).success
    assert run_of(location, keys, "sink_rows").success
    shown = location.materialized(location.names.sink("rows"))
    assert all("stored before" in one["note"] for one in shown.values())
    assert run_of(location, keys, "sink_rows", **{"fuploader/redo": "true"}).success
    shown = location.materialized(location.names.sink("rows"))
    assert {one["redo"] for one in shown.values()} == {1}
    assert rows(tmp_path, "rows") == 6


class RecoveringRows(Recovering):
    """Of a pipeline with one sink, which is away while there is no file `on`."""

    def __init__(self, folder: Path, **values: Any) -> None:
        process = values.pop("process", None)
        self.sinks = sinks(folder, "rows", switch=folder / "on", **values)
        super().__init__(folder, sinks=self.sinks, process=process, max_retries=0)
        self.location = Location(self.settings)
        self.location.instance = self.instance
        self.notes = SinkNotes(self.settings.layout, "rows")

    def asked_rows(self, minute: int = 0) -> list[list[str]]:
        """The keys of each run that it asks for; all are runs of just the sink."""
        asked = self.tick(minute)
        for request in self.requests:
            assert request.asset_selection == [self.names.sink("rows")]
        return asked

    def wait_out_pauses(self) -> None:
        """What was noted, was noted long ago."""
        trouble = self.notes.trouble
        if trouble is not None:
            old = msgspec.structs.replace(trouble, seen_at=trouble.seen_at - 10 * PATIENCE_SECONDS)
            write_durably(self.notes.folder / "trouble.json", msgspec.json.encode(old))
        for failure in list(self.notes.failures.all()):
            self.notes.failures.clear(failure.partition)
            self.notes.failures.note(
                failure.partition,
                stage=failure.stage,
                error=failure.error,
                now=failure.failed_at - 10 * PATIENCE_SECONDS,
            )


def test_while_a_sink_is_away_one_partition_is_tried_after_growing_pauses(tmp_path: Path) -> None:
    recovering = RecoveringRows(tmp_path, partitions_per_run=3)
    location, notes = recovering.location, recovering.notes
    keys = slots_of(recovering.settings, 5, seconds_ago=20 * PATIENCE_SECONDS)
    assert not location.ship(keys).success
    assert notes.owed() == keys
    assert recovering.asked_rows() == []
    recovering.wait_out_pauses()
    assert recovering.asked_rows(1) == [keys[1:2]], "one that was not tried yet"
    assert not run_of(location, keys[1:2], "sink_rows").success
    trouble = notes.trouble
    assert trouble is not None and trouble.attempts == 2
    assert recovering.asked_rows(2) == []
    (tmp_path / "on").touch()
    recovering.wait_out_pauses()
    assert recovering.asked_rows(3) == [keys[2:3]]
    recovering.run(
        dg.DagsterRunStatus.QUEUED,
        **{RANGE_START_TAG: keys[2], RANGE_END_TAG: keys[2]},
    )
    assert run_of(location, keys[2:3], "sink_rows").success
    assert recovering.asked_rows(4) == [keys[:2], keys[3:]]
    assert run_of(location, keys, "sink_rows").success
    assert recovering.asked_rows(5) == []
    assert rows(tmp_path, "rows") == 15
    assert len(archived_files(tmp_path / "objects")) == 15


def test_slots_that_a_required_sink_keeps_are_asked_for_and_go_with_its_receipt(
    tmp_path: Path,
) -> None:
    recovering = RecoveringRows(tmp_path, required=True)
    location, settings = recovering.location, recovering.settings
    keys = slots_of(settings, 2, seconds_ago=20 * PATIENCE_SECONDS)
    assert not location.ship(keys).success
    assert location.materialized(location.names.uploaded_archive).keys() == set(keys)
    assert sealed_partitions(settings.layout) == keys
    (tmp_path / "on").touch()
    recovering.wait_out_pauses()
    assert recovering.asked_rows() == [keys[1:]]
    assert sealed_partitions(settings.layout) == keys
    assert run_of(location, keys, "sink_rows").success
    assert sealed_partitions(settings.layout) == []
    assert recovering.asked_rows(1) == []


def test_rows_are_stored_while_the_object_store_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recovering = RecoveringRows(tmp_path, partitions_per_run=2)
    (tmp_path / "on").touch()
    keys = slots_of(recovering.settings, 3, seconds_ago=20 * PATIENCE_SECONDS)
    recovering.instance.add_dynamic_partitions(recovering.names.partition_set, keys)
    monkeypatch.setattr(store_trouble, "look", lambda _: "connection refused")
    note_trouble(recovering.settings.layout, "no answer")
    assert recovering.asked_rows() == [keys[:2], keys[2:]]
    assert run_of(recovering.location, keys, "sink_rows").success
    assert recovering.asked_rows(1) == []
    assert rows(tmp_path, "rows") == 9
    monkeypatch.setattr(store_trouble, "look", lambda _: "")
    assert recovering.tick(2) == [keys]
    assert recovering.requests[0].asset_selection is None
    assert recovering.location.ship(keys).success
    assert rows(tmp_path, "rows") == 9
    assert recovering.notes.owed() == []


@pytest.mark.parametrize("required", [False, True])
def test_partitions_that_are_owed_are_not_folded_away(tmp_path: Path, required: bool) -> None:
    recovering = RecoveringRows(tmp_path, required=required)
    settings = recovering.settings.model_copy(update={"retention_days": 1e-9})
    keys = slots_of(settings, 2, seconds_ago=60)
    assert not recovering.location.ship(keys).success
    schedule = build_retention_schedule(settings)

    def left() -> set[str]:
        with dg.build_schedule_context(instance=recovering.instance) as context:
            schedule(context)
        return set(recovering.instance.get_dynamic_partitions(recovering.names.partition_set))

    assert left() == set(keys)
    (tmp_path / "on").touch()
    assert run_of(recovering.location, keys[:1], "sink_rows").success
    assert left() == set(keys[1:])


def test_a_run_that_stores_rows_does_not_keep_the_slots_from_being_shipped(tmp_path: Path) -> None:
    recovering = RecoveringRows(tmp_path)
    keys = slots_of(recovering.settings, 2, seconds_ago=20 * PATIENCE_SECONDS)
    recovering.instance.add_dynamic_partitions(recovering.names.partition_set, keys)
    run = dg.DagsterRun(
        job_name="any",
        status=dg.DagsterRunStatus.STARTED,
        tags={RANGE_START_TAG: keys[0], RANGE_END_TAG: keys[1]},
        asset_selection=frozenset([recovering.names.sink("rows")]),
    )
    recovering.instance.add_run(run)
    assert recovering.tick() == [keys]
