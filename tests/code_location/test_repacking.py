"""Re-packing happens only when it is asked for, and never costs the object that is there."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fuploader_dagster.assets.pipeline_assets import FORMER_REPACK_TAG
from fuploader_dagster.catalog.catalog import Catalog
from fuploader_dagster.delivery.failures import all_failures
from fuploader_dagster.resources.object_stores import Local
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import Receipt, find_receipt
from fuploader_dagster.slots.sealing import find_sealed
from tests.code_location.test_assets import Location
from tests.settings import archived_files, pipeline, sealed

FILES = {f"{n}.json": b'{"text": "%d and more words"}' % (n * n) for n in range(300)}


def gzip_packer(directory: Path) -> Path:
    """A packer of a user's own."""
    made = directory.with_suffix(".tar.gz")
    with tarfile.open(made, "w:gz") as file:
        for path in sorted(directory.iterdir()):
            file.add(path, path.name)
    return made


def stored(folder: Path) -> tuple[Pipeline, str]:
    """Settings of a pipeline, and a partition that is uploaded."""
    settings = pipeline(folder)
    key = sealed(settings, FILES).seal.partition
    assert Location(settings).ship([key]).success
    return settings, key


def repacked(
    settings: Pipeline, *keys: str, job: str = "repack_job", **run: Any
) -> tuple[Location, dg.ExecuteInProcessResult]:
    """A run of the re-packing job with these settings, for a partition if one is given."""
    location = Location(settings)
    location.instance.add_dynamic_partitions(location.names.partition_set, list(keys))
    definition = location.definitions.resolve_job_def(getattr(location.names, job))
    if keys:
        run["partition_key"] = keys[0]
    result = definition.execute_in_process(instance=location.instance, raise_on_error=False, **run)
    return location, result


def said(run: dg.ExecuteInProcessResult) -> str:
    """The failures of the run's steps."""
    failures = [one.step_failure_data for one in run.all_events if one.is_step_failure]
    return " ".join(str(one.user_failure_data) for one in failures)


def receipt(settings: Pipeline, key: str) -> Receipt:
    found = find_receipt(settings.layout, key)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "values",
    [
        {"compression_level": 12, "key": "again/{archive}"},
        {"store": "elsewhere"},
    ],
)
def test_another_level_key_or_store(tmp_path: Path, values: dict[str, Any]) -> None:
    before, key = stored(tmp_path)
    first = receipt(before, key)
    if "store" in values:
        values = {"store": Local(path=str(tmp_path / "elsewhere"))}
    settings = pipeline(tmp_path, **values)
    location, run = repacked(settings, key)
    assert run.success
    second = receipt(settings, key)
    assert second.address != first.address
    assert (second.messages, second.payload_bytes) == (first.messages, first.payload_bytes)
    assert (second.sha256 == first.sha256) == ("store" in values)  # same level, same bytes
    found = archived_files(tmp_path)
    assert found == {name: [content] * 2 for name, content in FILES.items()}
    assert list(settings.layout.archives.iterdir()) == []
    for asset in (location.names.packed_archive, location.names.uploaded_archive):
        metadata = location.materialized(asset)[key]
        assert "note" not in metadata
        assert metadata["sha256"] == second.sha256
    with Catalog(settings.layout.catalog) as catalog:
        addresses = {hit.archive.address for hit in catalog.find("7.json")}
    assert addresses == {first.address, second.address}


def test_a_plain_backfill_of_a_stored_partition_does_nothing_and_says_so(tmp_path: Path) -> None:
    before, key = stored(tmp_path)
    settings = pipeline(tmp_path, compression_level=12, key="again/{archive}")
    location, run = repacked(settings, key, job="ship_job")
    assert run.success
    assert receipt(settings, key) == receipt(before, key)
    assert not (tmp_path / "objects" / "again").exists()
    for asset in (location.names.packed_archive, location.names.uploaded_archive):
        assert location.materialized(asset)[key]["note"].startswith("stored before; nothing was")


def test_the_same_settings_give_the_same_object(tmp_path: Path) -> None:
    settings, key = stored(tmp_path)
    first = receipt(settings, key)
    assert repacked(settings, key)[1].success
    assert receipt(settings, key).sha256 == first.sha256
    assert archived_files(tmp_path / "objects") == {n: [b] for n, b in FILES.items()}


def test_another_level_under_the_same_key_is_refused_and_the_object_stays(tmp_path: Path) -> None:
    before, key = stored(tmp_path)
    first = receipt(before, key)
    location, run = repacked(pipeline(tmp_path, compression_level=12), key)
    assert not run.success
    assert receipt(location.settings, key) == first
    assert archived_files(tmp_path / "objects") == {n: [b] for n, b in FILES.items()}


def test_a_damaged_object_is_not_repacked(tmp_path: Path) -> None:
    before, key = stored(tmp_path)
    (path,) = (tmp_path / "objects").rglob("*.tar.zst")
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)
    settings = pipeline(tmp_path, key="again/{archive}")
    _, run = repacked(settings, key)
    assert not run.success
    assert not (tmp_path / "objects" / "again").exists()
    assert receipt(settings, key) == receipt(before, key)
    leftovers = [p for p in settings.layout.archives.iterdir() if not p.name.endswith(".json")]
    assert leftovers == []


def test_a_packer_of_ones_own_repacks(tmp_path: Path) -> None:
    _, key = stored(tmp_path)
    settings = pipeline(tmp_path, packer=gzip_packer, archive_suffix=".tar.gz")
    assert repacked(settings, key)[1].success
    (path,) = (tmp_path / "objects").rglob("*.tar.gz")
    listed = subprocess.run(["tar", "-tzf", str(path)], capture_output=True, text=True, check=True)
    assert sorted(listed.stdout.split()) == sorted(FILES)


def test_a_partition_that_is_not_stored_yet_is_refused_and_its_slot_left_alone(
    tmp_path: Path,
) -> None:
    settings = pipeline(tmp_path)
    slot = sealed(settings, FILES)
    _, run = repacked(settings, slot.seal.partition)
    assert not run.success
    assert "has no stored archive" in said(run)
    assert find_sealed(settings.layout, slot.seal.partition) == slot
    assert list(all_failures(settings.layout)) == []  # it was no attempt at shipping it


def test_one_run_repacks_what_its_config_names_and_one_bad_archive_fails_alone(
    tmp_path: Path,
) -> None:
    """Also where retention has folded the partitions away."""
    settings = pipeline(tmp_path)
    keys = [sealed(settings, {f"{n}.json": b"x" * n}).seal.partition for n in range(1, 4)]
    assert Location(settings).ship(keys).success
    firsts = [receipt(settings, key) for key in keys]
    Path(firsts[1].address.removeprefix("file://")).unlink()
    settings = pipeline(tmp_path, key="again/{archive}")
    names = Location(settings).names
    config = {"ops": {f"{names.repack_job}_op": {"config": {"partitions": keys}}}}
    location, run = repacked(settings, run_config=config)
    assert not run.success
    assert keys[1] in said(run)
    assert location.materialized(names.uploaded_archive).keys() == {keys[0], keys[2]}
    seconds = [receipt(settings, key) for key in keys]
    assert [one.key.startswith("again/") for one in seconds] == [True, False, True]
    assert seconds[1] == firsts[1]


def test_without_partitions_the_job_says_how_to_name_them(tmp_path: Path) -> None:
    _, run = repacked(pipeline(tmp_path))
    assert not run.success
    assert "list them in its config" in said(run)


def test_the_tag_of_before_fails_the_run_and_names_the_job(tmp_path: Path) -> None:
    before, key = stored(tmp_path)
    location, run = repacked(
        pipeline(tmp_path, key="again/{archive}"),
        key,
        job="ship_job",
        tags={FORMER_REPACK_TAG: "true"},
    )
    assert not run.success
    assert location.names.repack_job in said(run)
    assert receipt(before, key) == receipt(location.settings, key)
    assert not (tmp_path / "objects" / "again").exists()
