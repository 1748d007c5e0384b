"""Freshness of the archives, as Dagster's own daemon finds it and its UI shows it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.asset_health.asset_freshness_health import (
    get_freshness_status_and_metadata,
)
from dagster._core.definitions.asset_health.asset_health import AssetHealthStatus
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange
from dagster._core.test_utils import create_test_daemon_workspace_context, freeze_time
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster._daemon.freshness import FreshnessDaemon
from dagster_graphql.schema.freshness import GrapheneInternalFreshnessPolicy
from pydantic import ValidationError

from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.sensors.old_events import remove_old_events
from fuploader_dagster.settings.loading import load_pipelines
from fuploader_dagster.settings.pipeline import (
    LONGEST_FRESH_HOURS,
    SHORTEST_FRESH_HOURS,
    Pipeline,
)
from tests.code_location.test_assets import Location
from tests.code_location.test_sqlite_history import OURS, instance
from tests.settings import embedded_parts, pipeline, sealed

HOUR = 3600.0
HEALTHY, LATE, STALE, UNKNOWN, NONE = (
    AssetHealthStatus.HEALTHY,
    AssetHealthStatus.WARNING,
    AssetHealthStatus.DEGRADED,
    AssetHealthStatus.UNKNOWN,
    AssetHealthStatus.NOT_APPLICABLE,
)


@contextmanager
def running(folder: Path, one: dg.DagsterInstance) -> Iterator[WorkspaceProcessContext]:
    """A code server in the working folder, as the daemon and the webserver know it. Archives of the
    pipeline `busy` are expected every ten hours, `quiet` says nothing of that."""
    busy = {**embedded_parts(folder), "archives_within_hours": 10}
    quiet = {**embedded_parts(folder), "source": {"kind": "embedded", "path": str(folder / "q")}}
    configuration = {
        "storage_root": str(folder / "data"),
        "pipelines": {"busy": busy, "quiet": quiet},
    }
    (folder / "fuploader.yaml").write_text(yaml.safe_dump(configuration))
    target = ModuleTarget("fuploader_dagster.code_location", None, None, "fuploader")
    with create_test_daemon_workspace_context(target, one) as context:
        yield context


def freshness(
    context: WorkspaceProcessContext, asset: dg.AssetKey, hours: float
) -> AssetHealthStatus:
    """What the UI shows of the asset after the daemon has looked, so many hours from now."""
    with freeze_time(time.time() + hours * HOUR):
        for _ in FreshnessDaemon().run_iteration(context):
            pass
        shown = get_freshness_status_and_metadata(context.create_request_context(), asset)
        return asyncio.run(shown)[0]


def assert_archives_go_stale_and_are_fresh_again(folder: Path, one: dg.DagsterInstance) -> None:
    with running(folder, one) as context:
        pipelines = load_pipelines(folder / "fuploader.yaml")
        busy, quiet = (Names.of(pipelines[name]).uploaded_archive for name in ("busy", "quiet"))
        assert freshness(context, busy, 0) is UNKNOWN, "no archive was ever stored"
        for number in range(2):
            for settings in pipelines.values():
                slot = sealed(settings, {f"{number}.json": b"x"})
                ship(settings, one, slot.seal.partition)
            assert freshness(context, busy, 0) is HEALTHY
            assert freshness(context, busy, 8.9) is HEALTHY
            assert freshness(context, busy, 9.1) is LATE
            assert freshness(context, busy, 10.1) is STALE
            assert freshness(context, quiet, 10.1) is NONE


def ship(settings: Pipeline, one: dg.DagsterInstance, partition: str) -> None:
    location = Location(settings)
    location.instance = one
    assert location.ship([partition]).success


def test_archives_go_stale_after_the_hours_of_the_settings_and_are_fresh_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with instance(tmp_path, OURS) as one:
        assert_archives_go_stale_and_are_fresh_again(tmp_path, one)


def test_old_changes_of_freshness_go_and_the_state_stays(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, archives_within_hours=10)
    asset = Names.of(settings).uploaded_archive
    with instance(tmp_path, OURS) as one:
        one.report_runless_asset_event(dg.AssetMaterialization(asset, partition="the newest"))
        for state in (FreshnessState.PASS, FreshnessState.FAIL, FreshnessState.PASS):
            one._report_runless_asset_event(
                FreshnessStateChange(
                    key=asset,
                    previous_state=FreshnessState.UNKNOWN,
                    new_state=state,
                    state_change_timestamp=time.time(),
                )
            )
        assert remove_old_events(one, settings, now=time.time()) == 0
        assert remove_old_events(one, settings, now=time.time() + 400 * 24 * HOUR) == 2
        record = one.get_freshness_state_records([asset])[asset]
        assert record.freshness_state is FreshnessState.PASS


def test_only_the_archives_of_a_pipeline_that_says_so_have_to_be_fresh(tmp_path: Path) -> None:
    for hours in (None, 26):
        location = Location(pipeline(tmp_path, archives_within_hours=hours))
        specs = {spec.key: spec for spec in location.definitions.resolve_all_asset_specs()}
        fresh = {key for key, spec in specs.items() if spec.freshness_policy}
        archives = {location.names.uploaded_archive} if hours else set()
        assert fresh == {location.names.queue} | archives


@pytest.mark.parametrize("hours", [0, -1, 0.01, 9000, float("nan"), float("inf")])
def test_a_time_that_dagster_cannot_take_is_refused_when_the_settings_are_read(
    tmp_path: Path, hours: float
) -> None:
    with pytest.raises(ValidationError, match="archives_within_hours"):
        pipeline(tmp_path, archives_within_hours=hours)


@pytest.mark.parametrize("hours", [SHORTEST_FRESH_HOURS, LONGEST_FRESH_HOURS])
def test_dagster_takes_the_shortest_and_the_longest_time(tmp_path: Path, hours: float) -> None:
    location = Location(pipeline(tmp_path, archives_within_hours=hours))
    (spec,) = location.definitions.resolve_assets_def(location.names.uploaded_archive).specs
    shown = GrapheneInternalFreshnessPolicy.from_policy(spec.freshness_policy)
    assert shown.failWindowSeconds == hours * HOUR
    assert shown.warnWindowSeconds == hours * HOUR * 0.9
    assert shown.failWindowSeconds < 2**31, "GraphQL has no larger whole numbers"
