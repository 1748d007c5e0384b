"""The watch: figures at the asset `queue` each minute, and checks that turn red and green again."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.loader import LoadingContextForTest

from fuploader_dagster.assets.checks import CHECK_NAME, JUDGED, check_keys
from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.definitions import build_definitions, build_resources
from fuploader_dagster.delivery.attempts import Done, Failed
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.delivery.store_trouble import FAILING_SECONDS, find_trouble, note_trouble
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.errors import SourceUnavailable, StoreRefused, StoreUnavailable
from fuploader_dagster.front.health import _Look
from fuploader_dagster.front.route import Served
from fuploader_dagster.health import remembered
from fuploader_dagster.health.status import status_of
from fuploader_dagster.intake.worker_status import StatusReport
from fuploader_dagster.processing.envelope import encode
from fuploader_dagster.resources.object_stores import S3
from fuploader_dagster.resources.object_stores.local import LocalObjectStore
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.sensors.old_events import remove_old_events
from fuploader_dagster.sensors.watch_schedule import LookFailed, build_watch_schedule
from fuploader_dagster.settings.pipeline import Pipeline
from tests.code_location.test_assets import Location
from tests.servers.ports import wait_until
from tests.servers.swift import SwiftServer
from tests.settings import pipeline, sealed

DAY = 86_400.0
FILES = {f"{n}.json": b"%d" % n for n in range(10)}


class Watching:
    """A pipeline's watch in an instance of its own."""

    def __init__(self, folder: Path, **values: Any) -> None:
        queue = EmbeddedQueue(path=folder / "queue")
        self.settings: Pipeline = pipeline(folder, source=queue, **values)
        self.names = Names.of(self.settings)
        self.keys = check_keys(self.names)
        home = folder / "home"
        home.mkdir(exist_ok=True)
        self.instance = dg.DagsterInstance.local_temp(str(home))
        self.schedule = build_watch_schedule(self.settings, running=True)

    def tick(self) -> str:
        with dg.build_schedule_context(
            instance=self.instance, resources=build_resources(self.settings)
        ) as context:
            answer = self.schedule(context)
        assert isinstance(answer, dg.SkipReason)
        assert answer.skip_message is not None
        return answer.skip_message

    def publish(self, count: int) -> None:
        with closing(self.settings.source.publisher()) as publisher:
            publisher.publish((encode(f"{n}.json", b"x", "bytes"), {}) for n in range(count))

    def reports(self) -> list[dict[str, Any]]:
        """Metadata of each report of the queue, the newest first."""
        records = self.instance.fetch_materializations(self.names.queue, limit=1000).records
        return [
            {name: one.value for name, one in record.asset_materialization.metadata.items()}
            for record in records
            if record.asset_materialization
        ]

    def evaluations(self, check: str) -> list[dg.AssetCheckEvaluation]:
        """What was reported of a check, the newest first."""
        storage = self.instance.event_log_storage
        records = storage.get_asset_check_execution_history(self.keys[check], limit=100)
        return [record.evaluation for record in records if record.evaluation]

    def red(self) -> list[str]:
        """The checks whose last result is a failure."""
        return [name for name in self.keys if not self.evaluations(name)[0].passed]

    def is_shown(self, check: str) -> bool:
        """Whether the UI shows the newest result, by Dagster's own rule."""
        key = self.keys[check]
        storage = self.instance.event_log_storage
        record = storage.get_latest_asset_check_execution_by_key([key])[key]
        return asyncio.run(
            record.targets_latest_materialization(LoadingContextForTest(self.instance))
        )

    def by_hand(self, check: str) -> dg.AssetCheckEvaluation:
        job = build_definitions(self.settings).get_implicit_global_asset_job_def()
        run = job.get_subset(asset_selection=set(), asset_check_selection={self.keys[check]})
        (found,) = run.execute_in_process(instance=self.instance).get_asset_check_evaluations()
        return found


def test_each_tick_reports_the_queue_and_only_what_changed_of_the_checks(tmp_path: Path) -> None:
    watching = Watching(tmp_path)
    said = watching.tick()
    assert said == "0 messages wait, 0 workers take them; all is well"
    assert watching.red() == []
    for _ in range(3):
        watching.tick()
    assert len(watching.reports()) == 4
    assert {len(watching.evaluations(name)) for name in watching.keys} == {1}
    record = watching.instance.get_latest_materialization_event(watching.names.queue)
    assert record is not None
    assert record.run_id == ""  # it costs no run
    letters = watching.instance.fetch_materializations(watching.names.dead_letters, limit=9)
    assert len(letters.records) == 1  # nothing in the graph was never materialised
    assert isinstance(watching.reports()[0]["disk_free_bytes"], float)  # or it would not be plotted


def test_a_drain_that_is_off_while_messages_wait_is_red_until_somebody_drains(
    tmp_path: Path,
) -> None:
    watching = Watching(tmp_path)
    watching.tick()
    watching.publish(5)
    said = watching.tick()
    assert said.startswith("5 messages wait, 0 workers take them; being_drained: 5 messages wait")
    assert "\n" not in said
    assert watching.red() == ["being_drained", "keeping_up"]
    cannot_tell = watching.evaluations("keeping_up")[0]
    assert cannot_tell.severity is dg.AssetCheckSeverity.WARN
    assert "cannot be told: 5 messages wait" in str(cannot_tell.description)
    failed = watching.evaluations("being_drained")[0]
    assert failed.severity is dg.AssetCheckSeverity.ERROR
    assert "What to do: switch on the pipeline's drain sensor" in str(failed.description)
    watching.publish(1)
    watching.tick()  # another number is no news
    assert len(watching.evaluations("being_drained")) == 2
    assert not watching.by_hand("being_drained").passed
    report = StatusReport(watching.settings.layout, 0)
    report.doing("draining")
    watching.tick()
    assert watching.red() == []
    assert watching.by_hand("being_drained").passed
    assert not any("workers" in one for one in watching.reports())
    report.doing("trouble", SourceUnavailable("no broker"))
    watching.tick()
    assert watching.red() == ["being_drained", "keeping_up"]
    row = watching.reports()[0]["workers"].records[0].data
    assert (row["doing"], row["problem"]) == ("trouble", "no broker")
    report.remove()


def test_a_slot_that_somebody_removed_is_red_whatever_else_happens(tmp_path: Path) -> None:
    watching = Watching(tmp_path)
    settings = watching.settings
    lost, kept = sealed(settings, FILES), sealed(settings, FILES, slot=1)
    watching.tick()
    assert watching.red() == []
    shutil.rmtree(lost.directory)
    watching.tick()
    assert watching.red() == ["nothing_lost"]
    assert lost.seal.partition in str(watching.evaluations("nothing_lost")[0].description)
    assert kept.seal.partition not in str(watching.evaluations("nothing_lost")[0].description)
    assert len(list(ship(settings, settings.store.open()))) == 1
    remembered._memories.clear()  # another code server
    restarted = Watching(tmp_path)
    restarted.tick()
    assert not restarted.by_hand("nothing_lost").passed
    assert restarted.by_hand("nothing_lost").metadata["lost"].value == len(FILES)


class SwitchedStore:
    """A store that is up or down, as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.down = False
        monkeypatch.setattr(LocalObjectStore, "check", self._check)

    def _check(self, *_: object) -> None:
        if self.down:
            raise StoreUnavailable("connection refused")


def test_what_runs_note_of_the_store_turns_its_check_red_until_the_store_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No upload and no other schedule has to come along for that."""
    watching, store = Watching(tmp_path), SwitchedStore(monkeypatch)
    layout = watching.settings.layout
    store.down = True
    note_trouble(layout, "no route to host")
    watching.tick()
    assert watching.red() == ["store_reachable"]
    noted = find_trouble(layout)
    assert noted is not None
    assert noted.error == "connection refused", "it was looked at again"
    store.down = False
    watching.tick()
    assert watching.red() == []
    assert find_trouble(layout) is None


def test_while_a_run_waits_for_the_store_a_look_ends_no_trouble_that_it_has_just_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store may answer and refuse what is sent. Once no attempt fails, it is well: the archive
    may take an hour."""
    watching, layout = Watching(tmp_path), Watching(tmp_path).settings.layout
    note_trouble(layout, "503 slow down")
    with FileLock(layout.store_wait_lock):
        watching.tick()
        assert watching.red() == ["store_reachable"]
        later = time.time() + FAILING_SECONDS
        monkeypatch.setattr("fuploader_dagster.delivery.store_trouble.time.time", lambda: later)
        watching.tick()
    assert watching.red() == []


def test_a_store_that_a_person_finds_down_stays_red_until_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching, store = Watching(tmp_path), SwitchedStore(monkeypatch)
    watching.tick()
    store.down = True
    assert not watching.by_hand("store_reachable").passed
    watching.tick()
    assert watching.red() == ["store_reachable"]
    store.down = False
    assert watching.by_hand("store_reachable").passed
    watching.tick()
    assert watching.red() == []


def test_a_store_that_refuses_us_is_red_everywhere_until_an_upload_gets_through(
    tmp_path: Path, swift: SwiftServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_SECRET", swift.secret_key)
    bucket = f"later-{secrets.token_hex(6)}"
    values = {**swift.settings(bucket=bucket), "secret_access_key": dg.EnvVar("TEST_SECRET")}
    watching = Watching(tmp_path, store=S3(**values))
    settings = watching.settings

    def troubles() -> list[str]:
        return list(asyncio.run(_Look(Served(settings)).found())["troubles"])

    watching.tick()
    assert not watching.by_hand("store_reachable").passed
    watching.tick()
    assert watching.red() == ["store_reachable"]
    swift.client().create_bucket(Bucket=bucket)
    watching.tick()
    assert watching.red() == []
    assert watching.by_hand("store_reachable").passed
    assert troubles() == []
    swift.client().delete_bucket(Bucket=bucket)

    sealed(settings, FILES)
    (failed,) = ship(settings, settings.store.open())
    assert isinstance(failed, Failed)
    watching.tick()
    assert watching.red() == ["store_reachable"]
    for said in (
        str(watching.evaluations("store_reachable")[0].description),
        str(watching.by_hand("store_reachable").description),
        *[one["found"] for one in status_of(settings)["judgements"] if not one["passed"]],
    ):
        assert "NoSuchBucket" in said
        assert bucket in said
    (trouble,) = troubles()
    assert trouble.startswith("object store: ")
    assert "NoSuchBucket" in trouble
    swift.client().create_bucket(Bucket=bucket)
    watching.tick()
    assert watching.red() == ["store_reachable"], "nothing was stored yet"
    assert len(troubles()) == 1
    (done,) = ship(settings, settings.store.open())
    assert isinstance(done, Done)
    watching.tick()
    assert watching.red() == []
    assert troubles() == []


def test_reading_that_is_refused_does_not_say_that_the_store_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`archive_matches_seal` reports both checks."""
    location = Location(pipeline(tmp_path))
    assert location.ship([sealed(location.settings, FILES).seal.partition]).success

    def refused(*_: object) -> None:
        raise StoreRefused("403 AccessDenied")

    monkeypatch.setattr(LocalObjectStore, "head", refused)
    monkeypatch.setattr(LocalObjectStore, "get_range", refused)
    key = dg.AssetCheckKey(location.names.uploaded_archive, CHECK_NAME)
    job = location.definitions.get_implicit_global_asset_job_def().get_subset(
        asset_selection=set(), asset_check_selection={key}
    )
    run = job.execute_in_process(instance=location.instance)
    assert [one.passed for one in run.get_asset_check_evaluations()] == [False]


@pytest.mark.parametrize("check", ["being_drained", "nothing_lost"])
def test_a_check_that_somebody_ran_is_shown_in_the_next_minute_too(
    tmp_path: Path, check: str
) -> None:
    """Dagster shows a result until the asset is materialised by another run, and the watch and the
    drain sensor materialise without one: a red check would be gray in the next minute."""
    watching = Watching(tmp_path)
    watching.publish(5)
    lost = sealed(watching.settings, FILES)
    watching.tick()
    shutil.rmtree(lost.directory)
    assert not watching.by_hand(check).passed
    moment = dg.AssetMaterialization(watching.keys[check].asset_key)
    watching.instance.report_runless_asset_event(moment)
    assert not watching.is_shown(check)

    def shown() -> bool:
        watching.tick()
        return watching.is_shown(check)

    # SQLite knows only the second in which a check was reported.
    wait_until(shown, seconds=60, what="the check to be shown", diagnose=str)
    assert check in watching.red()
    count = len(watching.evaluations(check))
    watching.tick()
    assert len(watching.evaluations(check)) == count


@pytest.mark.parametrize("check", JUDGED)
def test_each_check_can_be_run_by_hand(tmp_path: Path, check: str) -> None:
    found = Watching(tmp_path).by_hand(check)
    assert found.passed
    assert found.metadata


def test_rates_come_from_the_minute_before_also_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_795_262_400.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    watching = Watching(tmp_path)
    settings = watching.settings
    slot = sealed(settings, FILES, seconds_ago=30)
    watching.tick()
    assert "messages_out_per_second" not in watching.reports()[0]
    assert watching.reports()[0]["oldest_unshipped_seconds"] == 30.0
    assert len(list(ship(settings, settings.store.open()))) == 1
    remembered._memories.clear()
    now[0] += 60
    Watching(tmp_path).tick()
    found = watching.reports()[0]
    assert found["messages_out_per_second"] == round(len(FILES) / 60, 3)
    assert (found["stored_messages"], found["stored_archives"]) == (len(FILES), 1)
    assert found["bytes_out_per_second"] > 0
    assert "last_upload" in found
    assert not slot.directory.exists()


def test_a_queue_that_does_not_answer_is_said_and_hides_nothing_else(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)  # its broker is nowhere
    watching = Watching(tmp_path)
    watching.settings, watching.schedule = settings, build_watch_schedule(settings, running=True)
    said = watching.tick()
    assert said.startswith("an unknown number of messages wait")
    assert watching.red() == ["being_drained", "keeping_up"]
    found = watching.reports()[0]
    assert "never-opened" in found["trouble"]
    assert "depth" not in found
    assert found["disk_free_bytes"] > 0


def test_a_test_by_hand_says_what_it_would_report_and_reports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = Watching(tmp_path)
    monkeypatch.setattr("fuploader_dagster.sensors.watch_schedule.is_dry_run", bool)
    assert "a tick would report: 0 messages wait" in watching.tick()
    assert watching.reports() == []
    assert not watching.settings.storage_root.exists()


def test_old_reports_go_and_the_newest_and_those_of_registered_slots_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = Watching(tmp_path, tick_history_days=1, run_history_days=2, retention_days=2)
    instance, names = watching.instance, watching.names
    for _ in range(3):
        watching.tick()
    instance.add_dynamic_partitions(names.partition_set, ["registered"])
    for key in ("folded", "registered", "newest"):
        instance.report_runless_asset_event(
            dg.AssetMaterialization(names.sealed_slot, partition=key)
        )
    instance.report_runless_asset_event(dg.AssetMaterialization(dg.AssetKey("somebody_elses")))

    def left() -> tuple[int, list[str | None]]:
        found = instance.fetch_materializations(names.sealed_slot, limit=10).records
        return len(watching.reports()), [one.partition_key for one in found]

    def remove(days: float) -> int:
        now = time.time() + days * DAY
        return remove_old_events(instance, watching.settings, now=now)

    assert remove(0.9) == 0
    assert remove(1.1) == 2
    assert left() == (1, ["newest", "registered", "folded"])
    assert remove(2.1) == 1
    assert left() == (1, ["newest", "registered"])
    assert remove(400) == 0
    assert instance.get_latest_materialization_event(dg.AssetKey("somebody_elses")) is not None
    assert [check for check in JUDGED if not watching.evaluations(check)] == []


def test_a_folder_that_cannot_be_read_fails_the_tick_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = Watching(tmp_path)

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(watching.settings.layout.root))

    monkeypatch.setattr("fuploader_dagster.sensors.watch_schedule.look", denied)
    with pytest.raises(LookFailed) as caught:
        watching.tick()
    assert "cannot look at docs: [Errno 13] Permission denied" in str(caught.value)
    assert caught.value.__suppress_context__  # the trace shows one error
    assert watching.reports() == []
