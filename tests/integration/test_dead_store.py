"""A store that hangs: it is seen within a minute, holds up one run, and nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import dagster as dg
import pytest
from dagster_graphql.test.utils import execute_dagster_graphql

from fuploader_dagster.assets.partitions import PIPELINE_TAG, Names
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.slots.receipts import receipts_between
from fuploader_dagster.slots.sealing import sealed_partitions
from tests.drains import files, publish
from tests.integration.test_failing_runs import MESSAGES, configuration, pipeline
from tests.servers.quick_daemon import QuickDaemon
from tests.servers.swift import SwiftServer
from tests.servers.tcp_proxy import TcpProxy
from tests.settings import intake

LAUNCH = (
    "mutation($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename } }"
)
SLOTS = 12
SEEN_SECONDS = 60.0


@pytest.mark.timeout(600)
def test_a_store_that_hangs_turns_a_check_red_and_holds_up_one_run_and_no_small_job(
    tmp_path: Path, swift: SwiftServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots that are sealed meanwhile become partitions without runs; when the store is back, all
    of them are stored, and the check is green again."""
    monkeypatch.setenv("TEST_SECRET", swift.secret_key)
    names, layout = Names("docs", None), Layout(tmp_path / "data" / "docs")
    source = EmbeddedQueue(path=tmp_path / "queue-docs")

    with TcpProxy(swift.port) as line:
        store = swift.settings(kind="s3", endpoint_url=f"http://127.0.0.1:{line.port}")
        each = {"commit_messages": MESSAGES, "prefetch_count": 3 * MESSAGES}  # a slot a commit
        settings = configuration(tmp_path, docs=pipeline(tmp_path, "docs", store=store, **each))
        with QuickDaemon(tmp_path, settings) as daemon:
            instance = daemon.instance

            def check() -> bool | None:
                key = names.reachable_check
                storage = instance.event_log_storage
                record = storage.get_latest_asset_check_execution_by_key([key]).get(key)
                event = record.event.dagster_event if record and record.event else None
                return event.asset_check_evaluation_data.passed if event else None

            def partitions() -> int:
                return len(instance.get_dynamic_partitions(names.partition_set))

            line.cut()
            publish(intake(tmp_path, source=source), files(MESSAGES, prefix="first"))
            daemon.until(lambda: "STARTED" in daemon.statuses(), "a run")
            began = time.monotonic()
            daemon.until(lambda: check() is False, "the check to be red")
            assert time.monotonic() - began < SEEN_SECONDS
            (run,) = daemon.runs()
            for number in range(1, SLOTS):
                publish(intake(tmp_path, source=source), files(MESSAGES, prefix=f"{number}-"))
            daemon.until(lambda: partitions() == SLOTS, "all slots to be partitions")
            said = instance.all_logs(run.dagster_run.run_id)
            assert any("the object store does not answer" in one.user_message for one in said)
            _launch(daemon, names.seal_job)
            daemon.until(
                lambda: daemon.runs()[-1].dagster_run.status is dg.DagsterRunStatus.SUCCESS,
                "the small job",
            )
            shipping = daemon.runs(**{PIPELINE_TAG: "docs"})
            assert len(shipping) == 1, "no run was asked for that could only wait"
            line.mend()
            daemon.until(lambda: len(receipts_between(layout)) == SLOTS, "all to be stored", 300)
            daemon.until(lambda: check() is True, "the check to be green")
    assert sealed_partitions(layout) == []


def _launch(daemon: QuickDaemon, job: str) -> None:
    """As somebody presses "Launch run" in the UI."""
    place = {"repositoryLocationName": "fuploader", "repositoryName": "__repository__"}
    parameters = {"selector": {**place, "jobName": job}, "runConfigData": {}}
    answer = execute_dagster_graphql(daemon.request_context(), LAUNCH, {"params": parameters})
    assert answer.data["launchRun"]["__typename"] == "LaunchRunSuccess", answer.data
