"""The assets: one run for many slots, one bad slot fails alone, nothing is done twice."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fuploader_dagster.assets.partitions import RANGE_END_TAG, RANGE_START_TAG, Names
from fuploader_dagster.definitions import build_definitions
from fuploader_dagster.delivery.recovery import look, plan
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.sealing import sealed_partitions
from tests.settings import archived_files, pipeline, sealed


class Location:
    """A pipeline's definitions in an instance of their own."""

    def __init__(self, settings: Pipeline) -> None:
        self.settings = settings
        self.names = Names.of(settings)
        self.instance = dg.DagsterInstance.ephemeral()
        self.definitions = build_definitions(settings)

    def ship(self, keys: list[str]) -> dg.ExecuteInProcessResult:
        self.instance.add_dynamic_partitions(self.names.partition_set, keys)
        job = self.definitions.resolve_job_def(self.names.ship_job)
        return job.execute_in_process(
            instance=self.instance,
            tags={RANGE_START_TAG: keys[0], RANGE_END_TAG: keys[-1]},
            raise_on_error=False,
        )

    def failed(self, asset: dg.AssetKey) -> set[str]:
        """Partitions that a run was to make and did not: red in the UI."""
        storage = self.instance.event_log_storage
        return set(
            storage.get_latest_asset_partition_materialization_attempts_without_materializations(
                asset
            )
        )

    def materialized(self, asset: dg.AssetKey) -> dict[str, dict[str, Any]]:
        """Partition to metadata of its materialisations."""
        records = self.instance.fetch_materializations(asset, limit=1000).records
        return {
            str(record.partition_key): {
                name: value.value for name, value in record.asset_materialization.metadata.items()
            }
            for record in reversed(records)
            if record.asset_materialization
        }


def test_two_runs_of_the_same_partitions_at_once_do_the_work_once(tmp_path: Path) -> None:
    """A backfill beside the sensor's run: each slot is packed by one of them."""
    location = Location(pipeline(tmp_path))
    home = tmp_path / "home"
    home.mkdir()
    # An ephemeral instance is for one thread. And two threads that redirect the output of this
    # process at once leave it, and a `tail` of each, to nobody.
    location.instance = dg.DagsterInstance.local_temp(
        str(home),
        {
            "compute_logs": {
                "module": "dagster._core.storage.noop_compute_log_manager",
                "class": "NoOpComputeLogManager",
            }
        },
    )
    slots = [sealed(location.settings, {f"{n}.json": b"x" * n}) for n in range(6)]
    keys = [slot.seal.partition for slot in slots]
    location.instance.add_dynamic_partitions(location.names.partition_set, keys)
    with ThreadPoolExecutor(2) as threads:
        runs = list(threads.map(lambda _: location.ship(keys), range(2)))
    assert all(run.success for run in runs)
    records = location.instance.fetch_materializations(location.names.uploaded_archive, limit=100)
    done = [
        (str(record.partition_key), "note" in record.asset_materialization.metadata)
        for record in records.records
        if record.asset_materialization
    ]
    assert len(done) == 2 * len(keys)
    assert len({partition for partition, nothing_left in done if not nothing_left}) == len(keys)
    receipts = [
        line
        for path in location.settings.layout.receipts.iterdir()
        for line in path.read_text().splitlines()
    ]
    assert len(receipts) == len(keys)
    assert archived_files(tmp_path / "objects") == {f"{n}.json": [b"x" * n] for n in range(6)}


def test_one_run_ships_many_slots_and_says_of_each_what_came_out(tmp_path: Path) -> None:
    location = Location(pipeline(tmp_path))
    slots = [
        sealed(location.settings, {f"{n}-{m}.json": b"x" * m for m in range(5)}) for n in range(4)
    ]
    keys = [slot.seal.partition for slot in slots]
    result = location.ship(keys)
    assert result.success
    packed = location.materialized(location.names.packed_archive)
    uploaded = location.materialized(location.names.uploaded_archive)
    assert packed.keys() == uploaded.keys() == set(keys)
    for slot in slots:
        metadata = uploaded[slot.seal.partition]
        assert metadata["messages"] == 5
        assert metadata["payload_bytes"] == 10
        assert metadata["object_key"] == slot.seal.object_key
        assert metadata["sha256"] == packed[slot.seal.partition]["sha256"]
        assert Path(metadata["address"]).is_file()
    files = archived_files(tmp_path / "objects")
    assert files == {f"{n}-{m}.json": [b"x" * m] for n in range(4) for m in range(5)}
    assert sealed_partitions(location.settings.layout) == []
    assert list(location.settings.layout.archives.iterdir()) == []


def test_a_damaged_slot_fails_alone_and_what_it_proves_gets_through(tmp_path: Path) -> None:
    """Red for the run that found it; asked for again, the partition is green and says why."""
    location = Location(pipeline(tmp_path))
    settings = location.settings
    slots = [sealed(settings, {f"{n}.json": b"content", f"{n}b": b"b"}) for n in range(3)]
    keys = [slot.seal.partition for slot in slots]
    segment = slots[1].segment
    segment.write_bytes(segment.read_bytes().replace(b"content", b"c0ntent"))
    result = location.ship(keys)
    assert not result.success
    for asset in (location.names.packed_archive, location.names.uploaded_archive):
        assert location.materialized(asset).keys() == {keys[0], keys[2]}
        assert location.failed(asset) == {keys[1]}
    (new,) = sealed_partitions(settings.layout)
    asked = plan(look(settings), settings, busy=[], now=2.0**32).ask
    assert set(asked) == {new, keys[1]}
    assert location.ship([new]).success
    assert location.ship([keys[1]]).success
    for asset in (location.names.packed_archive, location.names.uploaded_archive):
        made = location.materialized(asset)
        assert made.keys() == {*keys, new}
        assert new in made[keys[1]]["note"]
        assert str(settings.layout.set_aside) in made[keys[1]]["note"]
        assert location.failed(asset) == set()
    assert plan(look(settings), settings, busy=[], now=2.0**32).ask == []
    wanted = {"0.json": [b"content"], "2.json": [b"content"]} | {f"{n}b": [b"b"] for n in range(3)}
    assert archived_files(tmp_path / "objects") == wanted


def test_shipping_what_is_stored_does_nothing_and_says_so(tmp_path: Path) -> None:
    location = Location(pipeline(tmp_path))
    key = sealed(location.settings, {"a.json": b"a"}).seal.partition
    assert location.ship([key]).success
    (archive,) = (tmp_path / "objects").rglob("*.tar.zst")
    before = archive.stat().st_mtime_ns
    assert location.ship([key]).success
    assert archive.stat().st_mtime_ns == before
    note = location.materialized(location.names.uploaded_archive)[key]["note"]
    assert note.startswith("stored before; nothing was left to do")


def test_a_partition_without_data_fails_with_a_sentence(tmp_path: Path) -> None:
    location = Location(pipeline(tmp_path))
    result = location.ship(["20260101T000000000Z-local-s0-000009"])
    assert not result.success
    (failure,) = [e for e in result.all_events if e.is_step_failure]
    assert "there is no data of partition" in json.dumps(str(failure.event_specific_data))


def test_an_object_of_other_content_is_never_overwritten(tmp_path: Path) -> None:
    location = Location(pipeline(tmp_path))
    slot = sealed(location.settings, {"a.json": b"a"})
    assert slot.seal.object_key is not None
    there = tmp_path / "objects" / slot.seal.object_key
    there.parent.mkdir(parents=True)
    there.write_bytes(b"somebody's")
    assert not location.ship([slot.seal.partition]).success
    assert there.read_bytes() == b"somebody's"
    assert sealed_partitions(location.settings.layout) == [slot.seal.partition]


def test_two_pipelines_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="same name"):
        build_definitions(pipeline(tmp_path / "a"), pipeline(tmp_path / "b"))


def test_the_graph_reads_from_the_queue_to_the_store(tmp_path: Path) -> None:
    names = Names.of(pipeline(tmp_path, node_id="node-1.a"))
    graph = build_definitions(pipeline(tmp_path, node_id="node-1.a")).resolve_asset_graph()
    chain = [names.queue, names.sealed_slot, names.packed_archive, names.uploaded_archive]
    assert graph.get_all_asset_keys() == {*chain, names.dead_letters}
    assert graph.get(names.dead_letters).parent_keys == {names.queue}
    for parent, child in itertools.pairwise(chain):
        assert graph.get(child).parent_keys == {parent}


def test_the_partition_set_is_not_read_once_more_for_each_slot_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = dg.DagsterInstance.get_dynamic_partitions
    reads: list[str] = []

    def counted(instance: dg.DagsterInstance, partitions_def_name: str) -> Any:
        reads.append(partitions_def_name)
        return read(instance, partitions_def_name)

    monkeypatch.setattr(dg.DagsterInstance, "get_dynamic_partitions", counted)
    counts = []
    for slots in (2, 12):
        folder = tmp_path / str(slots)
        folder.mkdir()
        location = Location(pipeline(folder))
        keys = [sealed(location.settings, {f"{n}.json": b"x"}).seal.partition for n in range(slots)]
        reads.clear()
        assert location.ship(keys).success
        assert location.materialized(location.names.uploaded_archive).keys() == set(keys)
        counts.append(len(reads))
    assert 0 < counts[0] == counts[1]


def test_a_range_is_looked_up_anew_in_another_instance() -> None:
    key_range, partitions = dg.PartitionKeyRange("a", "c"), Names("p", None).partitions()
    for keys in (["a", "b", "c"], ["a", "c"]):
        with dg.DagsterInstance.ephemeral() as instance:
            instance.add_dynamic_partitions("p_slots", keys)
            with dg.partition_loading_context(dynamic_partitions_store=instance):
                assert partitions.get_partition_keys_in_range(key_range) == keys
