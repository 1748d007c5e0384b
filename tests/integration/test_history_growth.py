"""Nothing that a pipeline leaves in Dagster's history grows without end."""

from __future__ import annotations

import time
from pathlib import Path

import dagster as dg
import pytest

from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.sensors.old_history import remove_old_runs, remove_old_ticks
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import receipts_between
from tests.integration import test_failing_runs as failing
from tests.servers.quick_daemon import QuickDaemon
from tests.settings import pipeline

DAY = 86_400.0
QUIET_TICKS = 20


@pytest.mark.timeout(420)
def test_quiet_ticks_leave_no_file_and_what_is_old_is_removed_and_nothing_else(
    tmp_path: Path,
) -> None:
    """Real ticks and a real run. The clock of the removal runs ahead."""
    names, layout = Names("docs", None), Layout(tmp_path / "data" / "docs")
    settings = failing.configuration(tmp_path, docs=failing.pipeline(tmp_path, "docs"))
    ours: Pipeline = pipeline(tmp_path, source=EmbeddedQueue(path=tmp_path / "queue-docs"))
    failing.fill_a_slot(tmp_path, "docs")
    logs = tmp_path / ".dagster" / "compute_logs"
    runs = tmp_path / ".dagster" / "storage" / "history" / "runs"
    with QuickDaemon(tmp_path, settings, monitoring=False) as daemon:
        instance = daemon.instance
        daemon.until(lambda: "SUCCESS" in daemon.statuses(), "a run")
        ticks = logs / "__repository__" / names.drain_sensor
        before = len(list(ticks.iterdir())) if ticks.is_dir() else 0
        for _ in range(QUIET_TICKS):
            daemon.ask()
        after = len(list(ticks.iterdir())) if ticks.is_dir() else 0
        assert after == before, f"{QUIET_TICKS} ticks in which nothing happened left files"

        failing.fill_a_slot(tmp_path, "docs", "newer")
        daemon.until(lambda: daemon.statuses().count("SUCCESS") == 2, "a newer run")
        record, newer = daemon.runs()
        run_id, newer_id = record.dagster_run.run_id, newer.dagster_run.run_id
        (foreign,) = (instance.add_run(dg.DagsterRun(job_name="somebody_elses")),)
        instance.report_run_canceled(foreign)
        now = time.time()
        assert remove_old_runs(instance, ours, now=now + 29 * DAY) == 0
        assert (runs / f"{run_id}.db").exists()
        assert (logs / run_id).exists()
        assert remove_old_runs(instance, ours, now=now + 31 * DAY) == 1
        assert {one.run_id for one in instance.get_runs()} == {foreign.run_id, newer_id}
        assert remove_old_runs(instance, ours, now=now + 365 * DAY) == 0, "it reported the newest"
        assert list(runs.glob(f"{run_id}*")) == []
        assert not (logs / run_id).exists()
        assert instance.all_logs(run_id) == []  # asking makes an empty file anew
        assert len(receipts_between(layout)) == 2

        def rows() -> int:
            states = [
                one for one in instance.all_instigator_state() if one.name in names.instigators
            ]
            return sum(
                len(instance.get_ticks(one.instigator_origin_id, one.selector_id)) for one in states
            )

        (ticks / "1.err").parent.mkdir(parents=True, exist_ok=True)
        (ticks / "1.err").write_text("a line")
        assert rows() > QUIET_TICKS
        ahead = now + 365 * DAY  # the daemon's ticks are dated ahead of the clock
        assert remove_old_ticks(instance, ours, "__repository__", now=now) == 0
        assert remove_old_ticks(instance, ours, "__repository__", now=ahead) >= 1
        assert rows() == 0
        assert list(ticks.iterdir()) == []
