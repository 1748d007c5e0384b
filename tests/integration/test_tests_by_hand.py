"""What a person tries in the UI changes nothing: "Test sensor", "Preview tick result"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dagster_graphql.test.utils import execute_dagster_graphql

from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.intake.worker_status import read_statuses
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.slots.sealing import sealed_partitions
from tests.drains import files, publish
from tests.integration.test_failing_runs import configuration, pipeline
from tests.servers.dagster_part import processes_of
from tests.servers.quick_daemon import QuickDaemon
from tests.settings import intake, sealed

SENSOR = """mutation($selector: SensorSelector!) {
  sensorDryRun(selectorData: $selector, cursor: null) { __typename
    ... on DryRunInstigationTick { evaluationResult {
      skipReason runRequests { runKey } error { message }
      dynamicPartitionsRequests { partitionKeys } } } } }"""
SCHEDULE = """mutation($selector: ScheduleSelector!, $at: Float!) {
  scheduleDryRun(selectorData: $selector, timestamp: $at) { __typename
    ... on DryRunInstigationTick { evaluationResult {
      skipReason runRequests { runKey } error { message } } } } }"""
PLACE = {"repositoryLocationName": "fuploader", "repositoryName": "__repository__"}


def tried(daemon: QuickDaemon, query: str, **variables: Any) -> dict[str, Any]:
    answer = execute_dagster_graphql(daemon.request_context(), query, variables)
    assert answer.errors is None, answer.errors
    (result,) = answer.data.values()
    found: dict[str, Any] = result["evaluationResult"]
    assert found["error"] is None, found
    return found


@pytest.mark.timeout(420)
def test_a_sensor_or_schedule_that_is_off_does_nothing_when_somebody_tests_it(
    tmp_path: Path,
) -> None:
    """What it would do is told. Switched on, the same does it."""
    names, layout = Names("docs", None), Layout(tmp_path / "data" / "docs")
    settings = configuration(tmp_path, docs=pipeline(tmp_path, "docs", seal_messages=10_000))
    source = EmbeddedQueue(path=tmp_path / "queue-docs")
    publish(intake(tmp_path, source=source), files(20))
    old = sealed(intake(tmp_path, source=source), {"a": b"a"}, slot=7, seconds_ago=3600)
    sensor = {**PLACE, "sensorName": names.drain_sensor}
    with QuickDaemon(tmp_path, settings) as daemon:
        told = tried(daemon, SENSOR, selector=sensor)
        assert "changes nothing; a tick would keep 1 worker running" in told["skipReason"]
        assert processes_of(str(tmp_path), "fuploader_dagster.intake.worker") == []
        for name in ("docs_recovery", "docs_retention"):
            schedule = {**PLACE, "scheduleName": name}
            told = tried(daemon, SCHEDULE, selector=schedule, at=1_780_000_000.0)
            assert "changes nothing" in told["skipReason"]
        assert read_statuses(layout) == []
        assert sealed_partitions(layout) == [old.seal.partition]
        assert daemon.instance.get_dynamic_partitions(names.partition_set) == []
        daemon.until(lambda: read_statuses(layout) != [], "the running sensor's workers")
        daemon.until(lambda: "SUCCESS" in daemon.statuses(), "a run of what was sealed")
