"""Runs whose process is gone are ended, so that their slots are asked for again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent, DagsterEventType, EngineEventData
from dagster._core.utils import make_new_run_id

from fuploader_dagster.assets.partitions import PARTITION_TAG
from fuploader_dagster.assets.run_machine import MACHINE_TAG, machine_of, machine_tag
from fuploader_dagster.assets.seal_job import build_seal_job
from fuploader_dagster.disk.place import machine
from fuploader_dagster.sensors.dead_runs import end_dead_runs
from tests.code_location.test_recovery_schedule import Recovering

STARTED = dg.DagsterRunStatus.STARTED


def begin(
    recovering: Recovering, pid: int, *, key: str = "", job_name: str = "", machine: str = "this"
) -> str:
    """A run that is under way in a process, as Dagster's code server and its first step record one.

    `machine`: where; "this", a machine in words, or "" if it has come to no step.
    """
    run_id = make_new_run_id()
    told = {"this": machine_tag(run_id), "": {}}.get(
        machine, {MACHINE_TAG: f"{machine}, run {run_id[:8]}"}
    )
    run = dg.DagsterRun(
        job_name=job_name or recovering.names.ship_job,
        run_id=run_id,
        status=STARTED,
        tags={PARTITION_TAG: key, **told},
    )
    recovering.instance.add_run(run)
    recovering.instance.report_engine_event("Started", run, EngineEventData.in_process(pid))
    return run.run_id


def status(recovering: Recovering, run_id: str) -> dg.DagsterRunStatus:
    run = recovering.instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs for as long as its test."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_slot_of_a_run_whose_process_was_killed_is_asked_for_again(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """While its process lives it is left alone; then it fails, and a minute later it is asked."""
    recovering = Recovering(tmp_path)
    keys = recovering.slots(2)
    run_id = begin(recovering, sleeper.pid, key=keys[0])
    assert recovering.tick() == [keys[1:]]
    assert status(recovering, run_id) is STARTED
    sleeper.kill()
    assert recovering.tick(1) == [keys[1:]]  # Dagster itself may be about to start it again
    assert status(recovering, run_id) is dg.DagsterRunStatus.FAILURE
    assert recovering.tick(2) == [keys]


def test_a_run_that_was_being_terminated_when_its_process_was_killed_is_canceled(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """Dagster leaves it CANCELING for ever, in one of the places for runs."""
    recovering = Recovering(tmp_path)
    keys = recovering.slots(1)
    run_id = begin(recovering, sleeper.pid, key=keys[0])
    run = recovering.instance.get_run_by_id(run_id)
    assert run is not None
    recovering.instance.report_run_canceling(run)
    assert recovering.tick() == []
    assert status(recovering, run_id) is dg.DagsterRunStatus.CANCELING
    sleeper.kill()
    sleeper.wait()
    assert recovering.tick(1) == [keys]
    assert status(recovering, run_id) is dg.DagsterRunStatus.CANCELED


def test_a_run_whose_process_never_came_up_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recovering = Recovering(tmp_path)
    job = recovering.names.ship_job
    run = dg.DagsterRun(job_name=job, status=dg.DagsterRunStatus.STARTING)
    recovering.instance.add_run(run)
    assert end_dead_runs(recovering.instance, recovering.names) == []
    monkeypatch.setattr("fuploader_dagster.sensors.dead_runs.LONGEST_START_SECONDS", -1.0)
    assert len(end_dead_runs(recovering.instance, recovering.names)) == 1
    assert status(recovering, run.run_id) is dg.DagsterRunStatus.FAILURE


def test_a_process_that_got_the_number_later_is_not_the_run(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart of a container low numbers are given out again at once."""
    recovering = Recovering(tmp_path)
    run_id = begin(recovering, sleeper.pid)
    assert end_dead_runs(recovering.instance, recovering.names) == []
    monkeypatch.setattr("fuploader_dagster.sensors.dead_runs._YOUNGER_SECONDS", -60.0)
    (dead,) = end_dead_runs(recovering.instance, recovering.names)
    assert dead.run_id == run_id


def test_runs_of_others_and_runs_without_a_process_yet_are_left_alone(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """Another pipeline's run, one that is just starting, and one that has ended meanwhile."""
    recovering = Recovering(tmp_path)
    sleeper.kill()
    sleeper.wait()
    theirs = begin(recovering, sleeper.pid, job_name="somebody_elses")
    ended = begin(recovering, sleeper.pid)
    run = recovering.instance.get_run_by_id(ended)
    assert run is not None
    recovering.instance.report_run_canceled(run)
    recovering.run(dg.DagsterRunStatus.STARTING, **{PARTITION_TAG: "any"})
    assert end_dead_runs(recovering.instance, recovering.names) == []
    assert status(recovering, theirs) is STARTED


def test_a_run_that_begins_a_second_time_is_not_taken_for_its_first_process(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """It went back into the queue: its next process has not said anything yet."""
    recovering = Recovering(tmp_path)
    run_id = begin(recovering, sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    run = recovering.instance.get_run_by_id(run_id)
    assert run is not None
    starting = DagsterEvent(DagsterEventType.PIPELINE_STARTING.value, run.job_name)
    recovering.instance.report_dagster_event(starting, run_id)
    assert end_dead_runs(recovering.instance, recovering.names) == []
    recovering.instance.report_engine_event("Started", run, EngineEventData.in_process(sleeper.pid))
    assert len(end_dead_runs(recovering.instance, recovering.names)) == 1


def test_a_run_of_another_machine_is_left_alone_though_no_process_here_has_its_number(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """Two machines that share an instance, and a node name or none: each judges its own runs."""
    recovering = Recovering(tmp_path)
    sleeper.kill()
    sleeper.wait()
    theirs = begin(recovering, sleeper.pid, machine="another (boot 1f3c9a2b-41d0)")
    assert end_dead_runs(recovering.instance, recovering.names) == []
    assert status(recovering, theirs) is STARTED
    before_the_boot = f"{machine().partition(' (boot ')[0]} (boot 1f3c9a2b-41d0)"
    ours = begin(recovering, sleeper.pid, machine=before_the_boot)
    (dead,) = end_dead_runs(recovering.instance, recovering.names)
    assert dead.run_id == ours


def test_a_run_that_has_come_to_no_step_is_ended_only_when_nothing_is_heard_of_it(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows on which machine it is. A run that is started again has the first one's tags."""
    recovering = Recovering(tmp_path)
    sleeper.kill()
    sleeper.wait()
    begin(recovering, sleeper.pid, machine="")
    again = begin(recovering, sleeper.pid, machine="")
    recovering.instance.add_run_tags(again, machine_tag("of-another-run"))
    assert end_dead_runs(recovering.instance, recovering.names) == []
    monkeypatch.setattr("fuploader_dagster.sensors.dead_runs.LONGEST_START_SECONDS", -1.0)
    assert len(end_dead_runs(recovering.instance, recovering.names)) == 2


def test_a_run_says_on_which_machine_it_works_whoever_launched_it(tmp_path: Path) -> None:
    recovering = Recovering(tmp_path)
    job = build_seal_job(recovering.settings)
    done = job.execute_in_process(instance=recovering.instance)
    run = recovering.instance.get_run_by_id(done.run_id)
    assert run is not None
    assert machine_of(run) == machine()


def test_a_run_of_another_machine_is_not_terminated_by_its_process_number(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    launcher = {"module": "fuploader_dagster.warm_runs", "class": "WarmRunLauncher"}
    overrides = {"run_launcher": launcher}
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides=overrides) as instance:
        told = {MACHINE_TAG: "another (boot 1f3c9a2b-41d0), run 0000aaaa"}
        run = dg.DagsterRun("docs_ship", run_id="0000aaaa-1", status=STARTED, tags=told)
        instance.add_run(run)
        instance.report_engine_event("Started", run, EngineEventData.in_process(sleeper.pid))
        assert instance.run_launcher.terminate(run.run_id) is False
        after = instance.get_run_by_id(run.run_id)
        assert after is not None
        assert after.status is STARTED
        said = [entry.message for entry in instance.all_logs(run.run_id)]
    assert any("This run works on another (boot 1f3c9a2b-41d0)" in one for one in said)
