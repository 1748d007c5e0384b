"""Runs that fail, and runs that are killed: nothing is lost, and the slots get through.

Real runs, started by Dagster's own daemon loops in a code server of their own, with the instance
settings of the repository.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from dagster._core.storage.partition_status_cache import AssetPartitionStatus

from fuploader_dagster.assets.partitions import PIPELINE_TAG, Names
from fuploader_dagster.delivery.failures import Failure, all_failures
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.slots.receipts import receipts_between
from tests.drains import files, publish, sealed_files
from tests.packers import HOLD, held_packer
from tests.servers.dagster_part import processes_of
from tests.servers.ports import wait_until
from tests.servers.quick_daemon import QuickDaemon
from tests.servers.small_disks import MIB, fill, make_room, small_disk
from tests.servers.webhook import Webhook
from tests.settings import archived_files, intake

MESSAGES = 20
BASE_SECONDS = 1.0
LOOK_SECONDS = 0.05
PACKER_THAT_FAILS = """
def pack(folder):
    raise RuntimeError("there is no 7z on this machine")
"""


def pipeline(folder: Path, name: str, **values: Any) -> dict[str, Any]:
    """The settings of a pipeline whose messages fill one slot."""
    return {
        "source": {"kind": "embedded", "path": str(folder / f"queue-{name}")},
        "state": {"kind": "sqlite", "path": str(folder / "state.sqlite")},
        "store": {"kind": "local", "path": str(folder / f"objects-{name}")},
        "seal_messages": MESSAGES,
        "recovery_base_seconds": BASE_SECONDS,
        "max_retries": 1,
        "retry_delay_seconds": 0.1,
        "min_free_bytes": 1024,
        **values,
    }


def configuration(folder: Path, **pipelines: dict[str, Any]) -> dict[str, Any]:
    return {"storage_root": str(folder / "data"), "pipelines": pipelines}


def fill_a_slot(folder: Path, name: str, prefix: str | None = None) -> dict[str, bytes]:
    contents = files(MESSAGES, prefix=prefix or name)
    publish(intake(folder, source=EmbeddedQueue(path=folder / f"queue-{name}")), contents)
    return contents


class Failures:
    """How the slot of a pipeline failed, as its note said at some time. A context manager, which
    looks all the while: on a busy machine a round of the daemon takes longer than a note lasts."""

    def __init__(self, daemon: QuickDaemon, name: str) -> None:
        self.daemon, self.name = daemon, name
        self.layout = Layout(daemon.folder / "data" / name)
        self.by_attempts: dict[int, Failure] = {}
        self._end = threading.Event()
        self._looking = threading.Thread(target=self._look)

    def __enter__(self) -> Failures:
        self._looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._looking.join()

    def _look(self) -> None:
        while not self._end.wait(LOOK_SECONDS):
            self.by_attempts |= {one.attempts: one for one in all_failures(self.layout)}

    def statuses(self) -> list[str]:
        return self.daemon.statuses(**{PIPELINE_TAG: self.name})

    def told(self, webhook: Webhook) -> str:
        """What the webhook was told first of a failure; empty if nothing."""
        told = [one for one in webhook.posted if one["pipeline"] == self.name]
        return next((str(one["failures"]) for one in told if "failures" in one), "")

    def is_red(self, asset: str) -> bool:
        """Whether the UI shows the partition as failed."""
        names, key = Names(self.name, None), next(iter(self.by_attempts.values())).partition
        found = self.daemon.instance.get_status_by_partition(
            names.asset(asset), [key], names.partitions()
        )
        return found is not None and found[key] is AssetPartitionStatus.FAILED

    def is_stored(self) -> bool:
        return bool(receipts_between(self.layout)) and "SUCCESS" in self.statuses()

    def assert_paused_and_shipped(self, attempts_a_run: int) -> None:
        """Each run was asked for no sooner than the pause after the failures before it says."""
        runs = self.daemon.runs(**{PIPELINE_TAG: self.name})
        assert self.statuses() == ["FAILURE"] * (len(runs) - 1) + ["SUCCESS"]
        assert list(all_failures(self.layout)) == []
        for number, run in enumerate(runs[1:], start=1):
            failure = self.by_attempts[number * attempts_a_run]
            pause = BASE_SECONDS * 2 ** (failure.attempts - 1)
            asked_at = run.create_timestamp.timestamp()
            assert asked_at >= failure.failed_at + pause - 1  # the storage knows full seconds


@pytest.mark.timeout(420)
def test_a_slot_that_fails_stays_is_seen_is_told_and_gets_through_when_the_cause_is_gone(
    tmp_path: Path,
) -> None:
    """A packer that always fails, and a store that is full. What a person corrects is a file, or
    the store; the rest comes by itself, after pauses that grow."""
    packer = tmp_path / "packing.py"
    packer.write_text(PACKER_THAT_FAILS)
    with Webhook() as webhook, small_disk(tmp_path / "disk", size_bytes=4 * MIB) as disk:
        fill(disk)
        settings = {"alert_webhook": webhook.url}
        full = {"kind": "local", "path": str(disk), "retry_budget_seconds": 0}
        pipelines = {
            "docs": pipeline(tmp_path, "docs", packer="packing:pack", **settings),
            "logs": pipeline(tmp_path, "logs", store=full, **settings),
        }
        contents = {name: fill_a_slot(tmp_path, name) for name in pipelines}
        with (
            QuickDaemon(tmp_path, configuration(tmp_path, **pipelines)) as daemon,
            Failures(daemon, "docs") as docs,
            Failures(daemon, "logs") as logs,
        ):
            both, until = (docs, logs), daemon.until
            until(lambda: all(one.told(webhook) for one in both), "both to be told of")
            assert "no 7z on this machine" in docs.told(webhook)
            assert "no space left" in logs.told(webhook)
            assert 2 in logs.by_attempts, "a store may come back, so the step was tried again"
            until(lambda: docs.is_red("packed_archive"), "a red partition")
            until(lambda: logs.is_red("uploaded_archive"), "a red partition")
            for one in both:
                wanted = {file: [body] for file, body in contents[one.name].items()}
                assert sealed_files(one.layout) == wanted
            make_room(disk)
            until(lambda: docs.statuses().count("FAILURE") > 1, "another failure of the packer")
            wanted = {file: [body] for file, body in contents["docs"].items()}
            assert sealed_files(docs.layout) == wanted
            packer.write_text(held_packer("packing"))
            until(lambda: all(one.is_stored() for one in both), "both to be stored")
            docs.assert_paused_and_shipped(attempts_a_run=1)
            logs.assert_paused_and_shipped(attempts_a_run=2)
            said = daemon.code_server.process.log.read_text()
        for name, folder in (("docs", tmp_path / "objects-docs"), ("logs", disk)):
            wanted = {file: [body] for file, body in contents[name].items()}
            assert archived_files(folder) == wanted
    assert webhook.secret not in said


@pytest.mark.timeout(420)
def test_a_run_that_is_killed_alone_or_with_its_code_server_ships_its_slot_once_in_the_end(
    tmp_path: Path,
) -> None:
    """kill -9 in the middle of packing; then of the code server while the retry is queued, which
    waits for it; then of both, after which nobody but the recovery schedule knows of the run."""
    (tmp_path / "packing.py").write_text(held_packer("packing"))
    hold, packing = tmp_path / HOLD, tmp_path / "packing"
    hold.touch()
    contents = fill_a_slot(tmp_path, "docs")
    layout = Layout(tmp_path / "data" / "docs")

    def packs(*earlier: int) -> bool:
        found = packing.read_text() if packing.exists() else ""
        return found != "" and int(found) not in earlier

    values = {"packer": "packing:pack", "recovery_base_seconds": 3600}  # so it is not who asks
    settings = configuration(tmp_path, docs=pipeline(tmp_path, "docs", **values))
    with QuickDaemon(tmp_path, settings) as daemon:
        daemon.until(packs, "the run to pack")
        os.kill(first := int(packing.read_text()), signal.SIGKILL)
        while "QUEUED" not in daemon.statuses():
            daemon.ask()
        daemon.code_server.kill()
        for _ in range(3):
            daemon.launch()
            assert daemon.statuses() == ["FAILURE", "QUEUED"]
        daemon.code_server.start()
        daemon.until(lambda: packs(first), "the retry to pack")
        second = int(packing.read_text())
        daemon.code_server.kill()
        wait_until(
            lambda: second not in processes_of(str(tmp_path)),
            seconds=120,
            what="the end of the run",
            diagnose=str,
        )
        assert daemon.statuses() == ["FAILURE", "STARTED"]
        hold.unlink()
        daemon.code_server.start()
        daemon.until(lambda: bool(receipts_between(layout)), "the slot to be stored")
        daemon.until(lambda: "STARTED" not in daemon.statuses(), "the run to say so")
        assert daemon.statuses() == ["FAILURE", "FAILURE", "SUCCESS"]
    (receipt,) = receipts_between(layout)
    assert layout.sealed_dirs() == []
    (stored,) = (tmp_path / "objects-docs").rglob("*.tar.zst")
    assert stored.name == f"{receipt}.tar.zst"
    assert archived_files(tmp_path / "objects-docs") == {n: [body] for n, body in contents.items()}


@pytest.mark.timeout(420)
def test_a_run_that_was_being_terminated_when_the_power_went_holds_its_slot_no_longer(
    tmp_path: Path,
) -> None:
    """A host project with Dagster's own defaults: nobody monitors its runs."""
    (tmp_path / "packing.py").write_text(held_packer("packing"))
    hold, packing = tmp_path / HOLD, tmp_path / "packing"
    hold.touch()
    contents = fill_a_slot(tmp_path, "docs")
    settings = configuration(tmp_path, docs=pipeline(tmp_path, "docs", packer="packing:pack"))
    with QuickDaemon(tmp_path, settings, monitoring=False) as daemon:
        daemon.until(lambda: packing.exists() and packing.read_text() != "", "the run to pack")
        (record,) = daemon.runs()
        daemon.instance.report_run_canceling(record.dagster_run)
        daemon.code_server.kill()
        hold.unlink()
        assert daemon.statuses() == ["CANCELING"]
        daemon.code_server.start()
        stored = tmp_path / "objects-docs"
        wanted = {name: [body] for name, body in contents.items()}
        daemon.until(lambda: archived_files(stored) == wanted, "the slot to be stored")
        daemon.until(lambda: daemon.statuses() == ["CANCELED", "SUCCESS"], "both runs to be over")
