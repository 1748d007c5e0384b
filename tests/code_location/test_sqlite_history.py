"""Dagster's history: the same as with Dagster's own storage, killed or not, with few syncs."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy
from dagster import EventLogEntry

from fuploader_dagster.dagster_internals.sqlite_history import SqliteHistory, _Engines
from tests.servers.ports import wait_until
from tests.sqlite_races import PROCESSES, assert_waits_for_another_program, together

OURS = """
storage:
  custom:
    module: fuploader_dagster.sqlite_history
    class: SqliteHistory
    config: {base_dir: BASE}
"""
DAGSTERS = "storage: {sqlite: {base_dir: BASE}}"
WRITER = """
import sys, dagster as dg
from tests.code_location.test_sqlite_history import written
instance = dg.DagsterInstance.from_config(sys.argv[1])
written(instance, int(sys.argv[2]))
print("written", flush=True)
sys.stdin.read()
"""

SYNCING = """
import os, sys, dagster as dg
from tests.code_location.test_sqlite_history import written
instance = dg.DagsterInstance.from_config(sys.argv[1])
written(instance, 1)
os.getsid(0)  # a mark among the system calls
written(instance, int(sys.argv[2]))
os.getsid(0)
"""


def instance(folder: Path, settings: str) -> dg.DagsterInstance:
    (folder / "dagster.yaml").write_text(settings.replace("BASE", str(folder / "storage")))
    return dg.DagsterInstance.from_config(str(folder))


def written(one: dg.DagsterInstance, events: int) -> None:
    one.add_dynamic_partitions("slots", [f"key-{number}" for number in range(events)])
    for number in range(events):
        one.report_runless_asset_event(dg.AssetMaterialization("a", partition=f"key-{number}"))


def found(one: dg.DagsterInstance) -> tuple[int, int]:
    events = one.fetch_materializations(dg.AssetKey("a"), limit=1000).records
    return len(one.get_dynamic_partitions("slots")), len(events)


def test_what_one_storage_wrote_the_other_reads(tmp_path: Path) -> None:
    with instance(tmp_path, DAGSTERS) as before:
        written(before, 2)
    with instance(tmp_path, OURS) as ours:
        assert isinstance(ours.get_ref().storage, SqliteHistory)
        assert found(ours) == (2, 2)
        written(ours, 3)
        assert found(ours) == (3, 5)
    with instance(tmp_path, DAGSTERS) as after:
        assert found(after) == (3, 5)


def message_of(entry: EventLogEntry) -> str:
    return str(entry.get_dagster_event().message)


@pytest.mark.parametrize("settings", [OURS, DAGSTERS], ids=["ours", "dagsters"])
def test_who_watches_a_run_is_told_each_event(tmp_path: Path, settings: str) -> None:
    """Or the page of a run would show its first lines until somebody loads it again."""
    seen: list[str] = []
    with instance(tmp_path, settings) as one:
        one.report_engine_event("enqueued", run_id="a-run", job_name="a-job")
        one.watch_event_logs("a-run", None, lambda entry, _: seen.append(message_of(entry)))
        for number in range(3):
            said = f"event {number}"
            one.report_engine_event(said, run_id="a-run", job_name="a-job")
            wait_until(lambda: said in seen, seconds=60, what=said, diagnose=lambda: str(seen))  # noqa: B023
        assert seen == ["enqueued", *(f"event {number}" for number in range(3))]


def test_a_killed_process_leaves_every_event(tmp_path: Path) -> None:
    with instance(tmp_path, OURS):
        pass
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), "5"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        writer.send_signal(signal.SIGKILL)
    with instance(tmp_path, OURS) as after:
        assert found(after) == (5, 5)


def test_an_event_costs_a_fraction_of_the_syncs(tmp_path: Path) -> None:
    syncs = {}
    for name, settings in (("ours", OURS), ("dagster's", DAGSTERS)):
        folder = tmp_path / name
        folder.mkdir()
        with instance(folder, settings) as one:
            written(one, 1)  # makes the databases
        syncs[name] = synced(folder, events=5) / 5
    assert syncs["dagster's"] > 2  # else this storage has lost its reason
    assert syncs["ours"] < 0.5


def synced(folder: Path, events: int) -> int:
    """How often a process syncs while it writes so many events, which are not its first."""
    log = folder / "strace"
    command = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-o",
        str(log),
        "-e",
        "trace=fsync,fdatasync,getsid",
    ]
    subprocess.run([*command, sys.executable, "-c", SYNCING, str(folder), str(events)], check=True)
    _, between, _ = log.read_text().split("getsid(")
    return between.count("sync(")


def test_databases_elsewhere_are_left_alone(tmp_path: Path) -> None:
    with instance(tmp_path, OURS):
        other = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'other.sqlite'}")
        with other.connect() as connection:
            (synchronous,) = connection.execute(sqlalchemy.text("pragma synchronous")).one()
        assert synchronous == 2


def test_a_run_leaves_the_same_history_as_with_dagsters_own(tmp_path: Path) -> None:
    """Its events come in batches here, its partitions' states and tags are the same."""
    told = {}
    for name, settings in (("ours", OURS), ("dagster's", DAGSTERS)):
        folder = tmp_path / name
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch, instance(folder, settings) as one:
            if name == "dagster's":
                patch.delenv(BATCH_VARIABLE, raising=False)
            told[name] = history_of_runs(one)
    assert told["ours"] == told["dagster's"]


BATCH_VARIABLE = "DAGSTER_EVENT_BATCH_SIZE"


def history_of_runs(one: dg.DagsterInstance) -> dict[str, object]:
    """Two runs of five partitions of two assets, the second of which fails: all but times, ids."""
    slots = dg.DynamicPartitionsDefinition(name="slots")
    policy = dg.BackfillPolicy.single_run()

    @dg.asset(partitions_def=slots, backfill_policy=policy, output_required=False)
    def packed(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        for key in context.partition_keys:
            context.add_asset_metadata({"of": key}, partition_key=key)
        yield dg.MaterializeResult(tags={"tagged": "yes"})

    @dg.asset(deps=[packed], partitions_def=slots, backfill_policy=policy)
    def stored(context: dg.AssetExecutionContext) -> None:
        if "fails" in context.run.tags:
            raise RuntimeError("it fails")

    keys = [f"key-{number}" for number in range(5)]
    one.add_dynamic_partitions("slots", keys)
    ends = {"dagster/asset_partition_range_start": keys[0]}
    ends["dagster/asset_partition_range_end"] = keys[-1]
    runs = [
        dg.materialize([packed, stored], instance=one, tags={**ends, **tags}, raise_on_error=False)
        for tags in ({}, {"fails": "yes"})
    ]
    assets = [dg.AssetKey("packed"), dg.AssetKey("stored")]
    return {
        "events": [
            [
                (entry.dagster_event_type, event.step_key, event.asset_key, event.partition)
                for entry in one.all_logs(run.run_id)
                if (event := entry.dagster_event) is not None
            ]
            for run in runs
        ],
        "materialized": {
            asset: [
                (record.partition_key, record.asset_materialization.metadata.get("of"))
                for record in one.fetch_materializations(asset, limit=100).records
                if record.asset_materialization is not None
            ]
            for asset in assets
        },
        "planned": [
            record.partition_key
            for record in one.get_event_records(
                dg.EventRecordsFilter(dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
            )
        ],
        "latest": {
            asset: event.dagster_event.partition
            for asset, event in one.get_latest_materialization_events(assets).items()
            if event is not None and event.dagster_event is not None
        },
        "last runs": [
            [run.run_id for run in runs].index(str(record.asset_entry.last_run_id))
            for record in one.get_asset_records(assets)
        ],
        "tags": [sorted(tags) for tags in one.get_event_tags_for_asset(assets[0])],
        "states": [one.get_status_by_partition(asset, keys, slots) for asset in assets],
        "runs": [record.dagster_run.status for record in one.get_run_records()],
    }


def test_threads_of_two_instances_write_at_the_same_time(tmp_path: Path) -> None:
    with instance(tmp_path, OURS) as one, instance(tmp_path, OURS) as other:

        def write(number: int) -> None:
            written = (one, other)[number % 2]
            written.report_runless_asset_event(dg.AssetMaterialization("a", partition=str(number)))

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(write, range(200)))
        assert found(one) == found(other) == (0, 200)


def test_what_is_wiped_is_gone_and_what_comes_later_is_kept(tmp_path: Path) -> None:
    with instance(tmp_path, OURS) as one:
        written(one, 2)
        one.wipe()
        assert found(one) == (0, 0)
        written(one, 1)
    with instance(tmp_path, DAGSTERS) as after:
        assert found(after) == (1, 1)


def use(runs: Path, number: int) -> None:
    """Make or open the history that has this file, and write into all of its databases."""
    history = SqliteHistory(str(runs.parent.parent))
    assert history.run_storage.get_runs() == []
    events = history.event_log_storage
    events.add_dynamic_partitions("slots", [str(number)])
    events.store_event(event_of_run("one for all", number))
    assert history.schedule_storage.all_instigator_state() == []
    history.dispose()


def event_of_run(run_id: str, number: int) -> EventLogEntry:
    return EventLogEntry(
        error_info=None, level=20, user_message=str(number), run_id=run_id, timestamp=float(number)
    )


def test_processes_that_make_the_history_at_the_same_moment_all_can(tmp_path: Path) -> None:
    def path_of(turn: int) -> Path:
        return tmp_path / str(turn) / "history" / "runs.db"

    assert together(use, path_of, 3) == []
    with instance(tmp_path, OURS.replace("BASE", str(tmp_path / "2"))) as one:
        assert len(one.get_dynamic_partitions("slots")) == PROCESSES
        assert len(one.all_logs("one for all")) == PROCESSES


def test_who_makes_the_history_waits_for_a_program_that_writes_it_at_the_moment(
    tmp_path: Path,
) -> None:
    assert_waits_for_another_program(use, tmp_path / "history" / "runs.db")


def test_a_history_that_was_replaced_while_it_was_open_is_the_one_that_is_written(
    tmp_path: Path,
) -> None:
    with instance(tmp_path, OURS) as one:
        written(one, 2)
        (tmp_path / "storage").rename(tmp_path / "before")
        SqliteHistory(str(tmp_path / "storage"))
        written(one, 1)
        assert found(one) == (1, 1)
        (tmp_path / "storage").rename(tmp_path / "later")
        (tmp_path / "before").rename(tmp_path / "storage")
        assert found(one) == (2, 2)


def test_no_more_than_some_databases_stay_open(tmp_path: Path) -> None:
    engines = _Engines(2)
    for number in range(5):
        with engines.of(f"sqlite:///{tmp_path / str(number)}").begin() as connection:
            connection.exec_driver_sql("pragma journal_mode = wal")
            connection.exec_driver_sql("create table t (x)")
    assert {log.name for log in tmp_path.glob("*-wal")} == {"3-wal", "4-wal"}


@pytest.mark.parametrize(
    "project", ["dagster.yaml", "fuploader_dagster/cli/new_project/dagster.yaml"]
)
def test_projects_of_ours_use_it(project: str) -> None:
    settings = (Path(__file__).parents[2] / project).read_text()
    assert "class: SqliteHistory" in settings
