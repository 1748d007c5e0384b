"""Packing anew happens only when it is asked for, and never costs the object that is there."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fuploader_dagster.assets.partitions import RANGE_END_TAG, RANGE_START_TAG
from fuploader_dagster.assets.pipeline_assets import REPACK_TAG
from fuploader_dagster.catalog.catalog import Catalog
from fuploader_dagster.resources.object_stores import Local
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import Receipt, find_receipt
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


def again(settings: Pipeline, key: str, **tags: str) -> tuple[Location, dg.ExecuteInProcessResult]:
    """A run for the partition with these settings."""
    location = Location(settings)
    location.instance.add_dynamic_partitions(location.names.partition_set, [key])
    job = location.definitions.resolve_job_def(location.names.ship_job)
    run = job.execute_in_process(
        instance=location.instance,
        tags={RANGE_START_TAG: key, RANGE_END_TAG: key, **tags},
        raise_on_error=False,
    )
    return location, run


def receipt(settings: Pipeline, key: str) -> Receipt:
    found = find_receipt(settings.layout, key)
    assert found is not None
    return found


ASKED = {REPACK_TAG: "true"}


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
    location, run = again(settings, key, **ASKED)
    assert run.success
    second = receipt(settings, key)
    assert second.address != first.address
    assert (second.messages, second.payload_bytes) == (first.messages, first.payload_bytes)
    assert (second.sha256 == first.sha256) == ("store" in values)  # same level, same bytes
    found = archived_files(tmp_path)
    assert found == {name: [content] * 2 for name, content in FILES.items()}
    assert list(settings.layout.archives.iterdir()) == []
    metadata = location.materialized(location.names.uploaded_archive)[key]
    assert "note" not in metadata
    assert metadata["sha256"] == second.sha256
    with Catalog(settings.layout.catalog) as catalog:
        addresses = {hit.archive.address for hit in catalog.find("7.json")}
    assert addresses == {first.address, second.address}


def test_a_plain_backfill_of_a_stored_partition_does_nothing_and_says_so(tmp_path: Path) -> None:
    before, key = stored(tmp_path)
    settings = pipeline(tmp_path, compression_level=12, key="again/{archive}")
    location, run = again(settings, key)
    assert run.success
    assert receipt(settings, key) == receipt(before, key)
    assert not (tmp_path / "objects" / "again").exists()
    for asset in (location.names.packed_archive, location.names.uploaded_archive):
        assert location.materialized(asset)[key]["note"].startswith("stored before; nothing was")


def test_the_same_settings_give_the_same_object(tmp_path: Path) -> None:
    settings, key = stored(tmp_path)
    first = receipt(settings, key)
    assert again(settings, key, **ASKED)[1].success
    assert receipt(settings, key).sha256 == first.sha256
    assert archived_files(tmp_path / "objects") == {n: [b] for n, b in FILES.items()}


def test_another_level_under_the_same_key_is_refused_and_the_object_stays(tmp_path: Path) -> None:
    before, key = stored(tmp_path)
    first = receipt(before, key)
    location, run = again(pipeline(tmp_path, compression_level=12), key, **ASKED)
    assert not run.success
    assert receipt(location.settings, key) == first
    assert archived_files(tmp_path / "objects") == {n: [b] for n, b in FILES.items()}


def test_a_damaged_object_is_not_packed_anew(tmp_path: Path) -> None:
    before, key = stored(tmp_path)
    (path,) = (tmp_path / "objects").rglob("*.tar.zst")
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)
    settings = pipeline(tmp_path, key="again/{archive}")
    _, run = again(settings, key, **ASKED)
    assert not run.success
    assert not (tmp_path / "objects" / "again").exists()
    assert receipt(settings, key) == receipt(before, key)
    leftovers = [p for p in settings.layout.archives.iterdir() if not p.name.endswith(".json")]
    assert leftovers == []


def test_a_packer_of_ones_own_packs_anew(tmp_path: Path) -> None:
    _, key = stored(tmp_path)
    settings = pipeline(tmp_path, packer=gzip_packer, archive_suffix=".tar.gz")
    assert again(settings, key, **ASKED)[1].success
    (path,) = (tmp_path / "objects").rglob("*.tar.gz")
    listed = subprocess.run(["tar", "-tzf", str(path)], capture_output=True, text=True, check=True)
    assert sorted(listed.stdout.split()) == sorted(FILES)
