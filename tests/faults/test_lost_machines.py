"""A machine falls silent or is gone, and its disk, or a copy of it, is drained on another one."""

from __future__ import annotations

import os
import secrets
import signal
from pathlib import Path

import pytest

from fuploader_dagster.contracts.state import StateSettings
from fuploader_dagster.disk.place import MACHINE_VARIABLE
from fuploader_dagster.intake.drain import CLAIM_SECONDS
from fuploader_dagster.intake.pauses import STANDBY_PAUSE_SECONDS
from fuploader_dagster.resources.states.redis import RedisState
from fuploader_dagster.resources.states.sqlite import SqliteState
from tests.copied_disks import another_process, copy_disk, wait_until_said
from tests.drains import (
    assert_exactly_once,
    backlog,
    draining,
    embedded,
    files,
    one_worker,
    publish,
    stored,
    wait_for,
    wait_until_stored,
)


@pytest.fixture(params=["redis", "sqlite"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> StateSettings:
    if request.param == "sqlite":
        return SqliteState(path=tmp_path / "state.sqlite")
    url = request.getfixturevalue("redis_server").url()
    return RedisState(url=url, key_prefix=f"test-{secrets.token_hex(4)}")


def test_a_copy_goes_on_when_the_first_machine_is_silent_and_that_one_stops_when_it_is_back(
    tmp_path: Path, state: StateSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, copy = (
        embedded(tmp_path, state=state, storage_root=tmp_path / name, lease_seconds=60)
        for name in ("one", "two")
    )
    contents = files(20)
    publish(first, contents)
    with another_process(first) as supervising:
        wait_until_stored(first, contents)
        wait_for(lambda: backlog(first) == 0, first, "the drain")
        worker = one_worker(first).pid
        for process in (supervising.pid, worker):
            os.kill(process, signal.SIGSTOP)
        copy_disk(first, copy)
        monkeypatch.setenv(MACHINE_VARIABLE, "the-other")
        more = files(20, seed=2, prefix="more-")
        publish(copy, more)
        with draining(copy) as of_copy:
            said = wait_until_said(of_copy, "written by a copy of this storage root")
            assert "/the-other (boot" in said
            wait_until_stored(copy, more)  # once the claim has lapsed
            os.kill(worker, signal.SIGCONT)
            wait_for(lambda: "older copy" in one_worker(first).problem, first, "the old holder")
            last = files(20, seed=3, prefix="last-")
            publish(copy, last)
            wait_until_stored(copy, last)
        os.kill(supervising.pid, signal.SIGCONT)
    assert stored(first.layout) == contents.keys()
    assert_exactly_once(copy, contents | more | last)
    assert CLAIM_SECONDS + 2 * STANDBY_PAUSE_SECONDS < 20


def test_a_disk_that_is_attached_to_another_machine_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = embedded(tmp_path, lease_seconds=60)
    contents = files(20)
    publish(disk, contents)
    with another_process(disk) as supervising:
        wait_until_stored(disk, contents)
        os.kill(supervising.pid, signal.SIGSTOP)
        os.kill(one_worker(disk).pid, signal.SIGKILL)
    monkeypatch.setenv(MACHINE_VARIABLE, "the-other")
    more = files(20, seed=2, prefix="more-")
    publish(disk, more)
    with draining(disk):
        wait_until_stored(disk, more)
    assert_exactly_once(disk, contents | more)
