"""What the UI shows of assets: owners, tags, times as times, rows and addresses."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from fuploader_dagster.assets.outcomes import moment
from fuploader_dagster.sensors.drain_sensor import _sealed_event
from tests.code_location.test_assets import Location
from tests.settings import pipeline, sealed
from tests.sinks_for_tests import RowsFile

FILES = {f"{n}.json": b"%d" % n for n in range(4)}


def test_all_assets_have_the_owners_and_tags_of_the_settings(tmp_path: Path) -> None:
    settings = pipeline(
        tmp_path,
        owners="ann@example.com, team:data",
        tags={"domain": "documents", "acme/tier": "1"},
        sinks={"rows": RowsFile(path=str(tmp_path / "rows"))},
    )
    specs = Location(settings).definitions.resolve_all_asset_specs()
    assert len(specs) == 6
    for spec in specs:
        assert list(spec.owners) == ["ann@example.com", "team:data"]
        assert {"domain": "documents", "acme/tier": "1"}.items() <= spec.tags.items()
        assert spec.description
    plain = Location(pipeline(tmp_path)).definitions.resolve_all_asset_specs()
    assert not any(spec.owners for spec in plain)


def test_times_rows_and_addresses_are_what_dagster_knows_them_as(tmp_path: Path) -> None:
    location = Location(pipeline(tmp_path))
    slot = sealed(location.settings, FILES)
    event = _sealed_event(location.names, location.settings.layout, slot.seal.partition)
    assert isinstance(event.metadata["sealed_at"], dg.TimestampMetadataValue)
    assert event.metadata["dagster/partition_row_count"].value == 4
    assert location.ship([slot.seal.partition]).success
    record = location.instance.get_latest_materialization_event(location.names.uploaded_archive)
    assert record is not None
    assert record.asset_materialization is not None
    shown = record.asset_materialization.metadata
    assert isinstance(shown["stored_at"], dg.TimestampMetadataValue)
    assert shown["dagster/partition_row_count"].value == 4
    assert str(shown["dagster/uri"].value).startswith("file://")


def test_a_time_that_is_none_is_shown_as_it_is() -> None:
    assert moment("t") == "t"
    assert moment("2026-11-21T12:00:00.000+00:00").value == 1_795_262_400.0


def test_nobody_who_looks_at_the_queue_is_noticed_by_dagster(tmp_path: Path) -> None:
    location = Location(pipeline(tmp_path))
    specs = {spec.key: spec for spec in location.definitions.resolve_all_asset_specs()}
    assert specs[location.names.queue].freshness_policy is not None
