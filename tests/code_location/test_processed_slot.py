"""The asset `processed_slot`: its place in the graph, what it reports, what waits for a handler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import msgspec

from fuploader_dagster.assets.pipeline_assets import ACCOUNT_CHECK
from fuploader_dagster.dead_letters.letters import numbered_dead_letters
from fuploader_dagster.delivery.failures import all_failures, clear_failure
from fuploader_dagster.delivery.process import process_partitions
from fuploader_dagster.delivery.processor_trouble import find_processor_trouble
from fuploader_dagster.disk.durable import write_durably
from fuploader_dagster.slots.sealing import sealed_partitions
from tests.code_location.test_assets import Location
from tests.code_location.test_recovery_schedule import PATIENCE_SECONDS, Recovering
from tests.processors_for_tests import Script, script
from tests.settings import archived_files, pipeline, sealed


def made(folder: Path, **process: Any) -> Location:
    return Location(pipeline(folder, process=Script(**process), max_retries=0))


def evaluations(location: Location) -> list[dg.AssetCheckEvaluation]:
    key = dg.AssetCheckKey(location.names.processed_slot, ACCOUNT_CHECK)
    records = location.instance.event_log_storage.get_asset_check_execution_history(key, limit=10)
    found = [record.event.dagster_event.event_specific_data for record in records if record.event]
    return [one for one in found if isinstance(one, dg.AssetCheckEvaluation)]


def test_the_graph_has_it_between_slot_and_archive(tmp_path: Path) -> None:
    location = made(tmp_path)
    graph = location.definitions.resolve_asset_graph()
    names = location.names
    assert graph.get(names.processed_slot).parent_keys == {names.sealed_slot}
    assert graph.get(names.packed_archive).parent_keys == {names.processed_slot}
    assert (
        names.processed_slot
        not in Location(pipeline(tmp_path)).definitions.resolve_asset_graph().get_all_asset_keys()
    )


def test_a_run_processes_packs_and_uploads_and_says_what_came_out(tmp_path: Path) -> None:
    location = made(tmp_path)
    slots = [
        sealed(location.settings, {f"{n}": script(results=n), f"{n}-bad": script(bad="no")})
        for n in range(3)
    ]
    keys = [slot.seal.partition for slot in slots]
    assert location.ship(keys).success
    shown = location.materialized(location.names.processed_slot)
    assert [shown[key]["results"] for key in keys] == [0, 1, 2]
    assert all((shown[key]["items"], shown[key]["failed"]) == (2, 1) for key in keys)
    assert all(shown[key]["processor"] == "the scripted processor" for key in keys)
    assert location.materialized(location.names.uploaded_archive).keys() == set(keys)
    (evaluation,) = evaluations(location)
    assert evaluation.passed
    assert evaluation.metadata["failed"].value == 3
    assert sealed_partitions(location.settings.layout) == []
    assert not list(location.settings.layout.root.glob("processed/slot-*/*"))


def test_a_lost_dead_letter_is_noticed(tmp_path: Path) -> None:
    location = made(tmp_path)
    slot = sealed(location.settings, {"good": script(), "bad": script(bad="no")})
    list(process_partitions([slot.seal.partition], location.settings))
    for path in location.settings.layout.dead_letters.glob("*.jsonl"):
        path.unlink()
    location.ship([slot.seal.partition])
    (evaluation,) = evaluations(location)
    assert not evaluation.passed
    assert "but 0 have a dead letter" in str(evaluation.description)


def test_one_damaged_slot_takes_no_other_with_it(tmp_path: Path) -> None:
    location = made(tmp_path)
    slots = [sealed(location.settings, {f"{n}": script(), f"{n}b": script()}) for n in range(3)]
    keys = [slot.seal.partition for slot in slots]
    content = bytearray(slots[1].segment.read_bytes())
    content[600] ^= 1
    slots[1].segment.write_bytes(content)
    assert not location.ship(keys).success
    good = {keys[0], keys[2]}
    for asset in (location.names.processed_slot, *location.names.archives):
        assert location.materialized(asset).keys() == good


def test_while_nothing_can_be_processed_one_run_tries_after_growing_pauses(tmp_path: Path) -> None:
    switch = tmp_path / "on"
    process = Script(switch=switch, max_retries=0, partitions_per_run=2)
    recovering = Recovering(tmp_path, process=process, max_retries=0)
    settings = recovering.settings
    location = Location(settings)
    location.instance = recovering.instance
    slots = [sealed(settings, {"a": script()}, seconds_ago=20 * PATIENCE_SECONDS) for _ in range(5)]
    keys = [slot.seal.partition for slot in slots]
    location.instance.add_dynamic_partitions(location.names.partition_set, keys)
    assert not location.ship(keys).success
    assert not list(numbered_dead_letters(settings.layout))
    trouble = find_processor_trouble(settings.layout)
    assert trouble is not None
    assert "the handler is switched off" in trouble.error
    assert recovering.tick() == []
    aged(settings.layout, trouble, PATIENCE_SECONDS)
    assert recovering.tick(1) == [keys[:2]]
    switch.touch()
    assert location.ship(keys[:2]).success
    assert find_processor_trouble(settings.layout) is None
    clear(settings.layout)
    assert recovering.tick(2) == [keys[2:4], keys[4:]]
    assert location.ship(keys).success
    assert archived_files(tmp_path / "objects")["results/a"] == [b"a-0"] * 5


def aged(layout: Any, trouble: Any, seconds: float) -> None:
    old = msgspec.structs.replace(trouble, seen_at=trouble.seen_at - seconds)
    write_durably(layout.processor_trouble, msgspec.json.encode(old))
    clear(layout)


def clear(layout: Any) -> None:
    for failure in list(all_failures(layout)):
        clear_failure(layout, failure.partition)


def test_a_pool_bounds_the_runs_that_process(tmp_path: Path) -> None:
    location = made(tmp_path, pool="handlers")
    pools = {
        definition.key.path[-1]: definition.op.pool
        for definition in location.definitions.resolve_asset_graph().assets_defs
        if definition.is_executable and definition.keys
    }
    assert pools["processed_slot"] == "handlers"
    assert {pool for name, pool in pools.items() if name != "processed_slot"} == {None}
