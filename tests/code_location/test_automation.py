"""Runs asked for by automation conditions, downstream assets, and parts of somebody's own."""

from __future__ import annotations

import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fuploader_dagster import Names, build_definitions
from fuploader_dagster.definitions import build_resources
from fuploader_dagster.delivery.recovery import AUTOMATION_PATIENCE
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.sealing import SealedSlot
from tests.code_location.test_recovery_schedule import PATIENCE_SECONDS, Recovering
from tests.settings import pipeline, sealed

EXAMPLE = Path(__file__).parents[2] / "examples" / "word_count" / "definitions.py"


def register(slots: Sequence[SealedSlot], settings: Pipeline) -> None:
    """What the drain worker does when it sealed them."""
    state = settings.state.store(pipeline=settings.name, node=settings.node)
    state.open()
    state.add_sealed([slot.seal.partition for slot in slots])
    state.close()


def tick(
    definitions: dg.Definitions, settings: Pipeline, instance: dg.DagsterInstance
) -> dg.SensorResult:
    """A tick of the drain sensor, with what the daemon makes of its answer."""
    sensor = definitions.resolve_sensor_def(f"{Names.of(settings).scope}_drain")
    with dg.build_sensor_context(instance=instance, resources=build_resources(settings)) as context:
        result = sensor(context)
    assert isinstance(result, dg.SensorResult)
    for request in result.dynamic_partitions_requests or ():
        instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
    for event in result.asset_events:
        assert isinstance(event, (dg.AssetMaterialization, dg.AssetCheckEvaluation))
        instance.report_runless_asset_event(event)
    return result


def test_conditions_ask_once_for_each_new_slot_and_for_what_is_downstream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(EXAMPLE))
    settings: Pipeline = example["documents"]
    definitions: dg.Definitions = example["defs"]
    names = Names.of(settings)
    ours = dg.AssetSelection.assets(names.packed_archive, names.uploaded_archive)
    chain = [names.packed_archive, names.uploaded_archive, names.asset("word_counts")]
    with dg.DagsterInstance.ephemeral() as instance:
        first = dg.evaluate_automation_conditions(definitions, instance)
        assert first.total_requested == 0
        texts = ["one two two", "two three"]
        slots = [
            sealed(settings, {f"{number}.json": json.dumps({"text": text}).encode()})
            for number, text in enumerate(texts)
        ]
        register(slots, settings)
        assert tick(definitions, settings, instance).run_requests == []
        keys = {slot.seal.partition for slot in slots}
        second = dg.evaluate_automation_conditions(definitions, instance, cursor=first.cursor)
        for asset in chain:
            assert second.get_requested_partitions(asset) == keys
        third = dg.evaluate_automation_conditions(definitions, instance, cursor=second.cursor)
        assert third.total_requested == 0
        counted: dict[str, Any] = {}
        for key in sorted(keys):
            job = definitions.resolve_implicit_global_asset_job_def()
            run = job.execute_in_process(
                instance=instance, partition_key=key, asset_selection=chain
            )
            assert run.success
            (event,) = run.asset_materializations_for_node("documents__word_counts")
            counted[key] = event.metadata["most_common"].value
        assert sorted(counted.values(), key=len) == [{"two": 2, "one": 1}, {"two": 1, "three": 1}]
        last = dg.evaluate_automation_conditions(
            definitions, instance, cursor=third.cursor, asset_selection=ours
        )
        assert last.total_requested == 0


@pytest.mark.parametrize("mode", ["sensor", "automation"])
def test_in_both_modes_recovery_asks_again_for_what_nobody_got_through(
    tmp_path: Path, mode: str
) -> None:
    recovering = Recovering(tmp_path, runs_by=mode)
    definitions = build_definitions(recovering.settings)
    patience = PATIENCE_SECONDS * (AUTOMATION_PATIENCE if mode == "automation" else 1)
    recovering.slots(1, seconds_ago=patience / 2)
    (key,) = recovering.slots(1, seconds_ago=patience + 1)
    assert recovering.tick() == [[key]]
    job = definitions.resolve_job_def("docs_ship")
    tags = recovering.requests[0].tags
    assert job.execute_in_process(instance=recovering.instance, tags=tags).success
    assert recovering.tick(minute=1) == []


def test_several_pipelines_of_one_code_location_share_no_name(tmp_path: Path) -> None:
    nodes = {"docs": None, "images": "node-1", "docs2": "node-1"}
    settings = [
        pipeline(tmp_path / name, name=name, node_id=node, runs_by="automation")
        for name, node in nodes.items()
    ]
    merged = build_definitions(*settings)
    repository = merged.get_repository_def()
    scopes = [Names.of(one).scope for one in settings]
    assert scopes == ["docs", "images_node_1_xd", "docs2_node_1_xd"]
    assert len(merged.resolve_all_asset_keys()) == 5 * len(settings)
    assert len(repository.sensor_defs) == 3 * len(settings)
    assert len(repository.schedule_defs) == 4 * len(settings)
    groups = {spec.group_name for spec in merged.resolve_all_asset_specs()}
    assert groups == set(scopes)
    sets = {
        spec.partitions_def.name
        for spec in merged.resolve_all_asset_specs()
        if isinstance(spec.partitions_def, dg.DynamicPartitionsDefinition)
    }
    assert sets == {f"{scope}_slots" for scope in scopes}


@pytest.mark.parametrize(
    "pairs",
    [
        [("docs", "a_1"), ("docs_a", "1")],
        [("docs_a", None), ("docs", "a")],
    ],
)
def test_names_that_dagster_could_not_tell_apart_are_refused_with_both(
    tmp_path: Path, pairs: list[tuple[str, str | None]]
) -> None:
    settings = [
        pipeline(tmp_path / str(number), name=name, node_id=node)
        for number, (name, node) in enumerate(pairs)
    ]
    with pytest.raises(ConfigError, match="same name") as caught:
        build_definitions(*settings)
    for name, node in pairs:
        assert f"{name} on node {node or 'local'!r}" in str(caught.value)
