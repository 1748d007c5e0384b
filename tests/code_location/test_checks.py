"""What the store holds is compared with what was sealed: behind each upload, and again at times."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.loader import LoadingContextForTest

from fuploader_dagster.assets.checks import CHECK_NAME
from fuploader_dagster.delivery.store_trouble import note_trouble
from fuploader_dagster.errors import ColdObject, StoreRefused
from fuploader_dagster.resources.object_stores.local import LocalObjectStore
from fuploader_dagster.slots.receipts import find_receipt
from tests.code_location.test_assets import Location
from tests.integration.test_cli_archives import zip_packer
from tests.settings import pipeline, sealed

FILES = {f"{n}.json": b'{"n": %d}' % n for n in range(20)}


def stored(folder: Path, count: int = 1, **values: Any) -> tuple[Location, list[str]]:
    location = Location(pipeline(folder, **values))
    keys = [sealed(location.settings, FILES).seal.partition for _ in range(count)]
    assert location.ship(keys).success
    return location, keys


def object_of(location: Location, key: str) -> Path:
    receipt = find_receipt(location.settings.layout, key)
    assert receipt is not None
    return Path(receipt.address.removeprefix("file://"))


def check(location: Location) -> dg.AssetCheckEvaluation:
    """The newest result of the check, after it ran by hand."""
    key = dg.AssetCheckKey(location.names.uploaded_archive, CHECK_NAME)
    job = location.definitions.get_implicit_global_asset_job_def().get_subset(
        asset_selection=set(), asset_check_selection={key}
    )
    found = job.execute_in_process(instance=location.instance).get_asset_check_evaluations()
    (result,) = (one for one in found if one.check_name == CHECK_NAME)
    return result


def scrub(location: Location) -> tuple[dg.ExecuteInProcessResult, dict[str, dict[str, Any]]]:
    """A scrub, and what it recorded per partition."""
    job = location.definitions.resolve_job_def(location.names.scrub_job)
    result = job.execute_in_process(instance=location.instance, raise_on_error=False)
    records = location.instance.fetch_observations(location.names.uploaded_archive, limit=100)
    return result, {
        str(record.partition_key): {
            name: value.value for name, value in record.asset_observation.metadata.items()
        }
        for record in records.records
        if record.asset_observation
    }


def test_each_upload_is_checked_in_its_own_run(tmp_path: Path) -> None:
    location = Location(pipeline(tmp_path))
    keys = [sealed(location.settings, FILES).seal.partition for _ in range(3)]
    found = location.ship(keys).get_asset_check_evaluations()
    (result,) = (one for one in found if one.check_name == CHECK_NAME)
    assert result.passed
    assert result.metadata["archives"].value == 3
    assert result.metadata["members"].value == 60


def test_a_run_that_uploads_says_that_the_store_answers(tmp_path: Path) -> None:
    """Dagster shows no result that is older than what the run materialised."""
    location = Location(pipeline(tmp_path))
    for _ in range(2):
        assert location.ship([sealed(location.settings, FILES).seal.partition]).success
        key = location.names.reachable_check
        storage = location.instance.event_log_storage
        record = storage.get_latest_asset_check_execution_by_key([key])[key]
        assert record.evaluation is not None
        assert record.evaluation.passed
        shown = record.targets_latest_materialization(LoadingContextForTest(location.instance))
        assert asyncio.run(shown)
    note_trouble(location.settings.layout, "connection refused")
    before = len(storage.get_asset_check_execution_history(key, limit=9))
    check(location)
    assert len(storage.get_asset_check_execution_history(key, limit=9)) == before


@pytest.mark.parametrize("harm", ["changed", "cut off", "gone", "another"])
def test_the_check_fails_for_an_object_that_is_not_what_was_sealed(
    tmp_path: Path, harm: str
) -> None:
    location, keys = stored(tmp_path, 2)
    assert check(location).passed
    path = object_of(location, keys[0])
    content = bytearray(path.read_bytes())
    if harm == "changed":
        content[10] ^= 1
        path.write_bytes(content)
    elif harm == "cut off":
        path.write_bytes(content[:-5])
    elif harm == "gone":
        path.unlink()
    else:
        path.write_bytes(object_of(location, keys[1]).read_bytes() + b"x")
    result = check(location)
    assert not result.passed
    assert keys[0] in (result.description or "")
    assert keys[1] not in (result.description or "")


def test_a_scrub_reads_members_back_and_records_it_per_partition(tmp_path: Path) -> None:
    location, keys = stored(tmp_path, 3)
    result, recorded = scrub(location)
    assert result.success
    assert recorded.keys() == set(keys)
    for one in recorded.values():
        assert one["intact"] is True
        assert one["members_read"] == 4
        assert 0 < one["requests"] <= 6


def test_a_scrub_finds_damage_says_where_and_fails_its_run(tmp_path: Path) -> None:
    location, keys = stored(tmp_path, 2)
    path = object_of(location, keys[0])
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    result, recorded = scrub(location)
    assert not result.success
    assert recorded[keys[0]]["intact"] is False
    assert recorded[keys[1]]["intact"] is True
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert path.name in str(failure.event_specific_data)


@pytest.mark.parametrize(
    ("error", "intact"),
    [(ColdObject("403 InvalidObjectState"), True), (StoreRefused("403 AccessDenied"), False)],
)
def test_an_archive_that_cannot_be_read_stops_no_scrub_and_a_cold_one_is_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: StoreRefused, intact: bool
) -> None:
    location, keys = stored(tmp_path, 3)
    read = LocalObjectStore.get_range

    def get_range(store: LocalObjectStore, key: str, offset: int, length: int) -> bytes:
        if keys[0] in key:
            raise error
        return read(store, key, offset, length)

    monkeypatch.setattr(LocalObjectStore, "get_range", get_range)
    assert check(location).passed is intact
    result, recorded = scrub(location)
    assert result.success is intact
    assert [recorded[key]["intact"] for key in keys] == [intact, True, True]
    assert ("cold" in recorded[keys[0]].get("note", "")) is intact


def test_what_a_custom_packer_made_is_compared_by_size_and_digest(tmp_path: Path) -> None:
    location, keys = stored(tmp_path, packer=zip_packer, archive_suffix=".zip")
    assert check(location).passed
    result, recorded = scrub(location)
    assert result.success
    assert "only the size and the digest that the store states" in recorded[keys[0]]["note"]
    path = object_of(location, keys[0])
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert not check(location).passed


def test_the_scrub_runs_daily_of_itself_and_can_be_switched_off(tmp_path: Path) -> None:
    location = Location(pipeline(tmp_path))
    name = f"{location.names.scope}_scrub_schedule"
    schedule = location.definitions.resolve_schedule_def(name)
    assert schedule.cron_schedule == "23 3 * * *"
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    off = Location(pipeline(tmp_path, scrub_archives=0))
    assert name not in {s.name for s in off.definitions.schedules or ()}
