"""Of two machines, or two copies of a disk, one writes; the other stops and says which is which."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.contracts.state import StateSettings
from fuploader_dagster.resources.states.redis import RedisState
from fuploader_dagster.resources.states.sqlite import SqliteState
from fuploader_dagster.settings.pipeline import Intake
from tests.copied_disks import copy_disk, wait_until_said
from tests.drains import (
    assert_exactly_once,
    backlog,
    draining,
    embedded,
    files,
    one_worker,
    publish,
    seals,
    stored,
    wait_until_stored,
)


@pytest.fixture(params=["redis", "sqlite"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> StateSettings:
    if request.param == "sqlite":
        return SqliteState(path=tmp_path / "state.sqlite")
    url = request.getfixturevalue("redis_server").url()
    return RedisState(url=url, key_prefix=f"test-{secrets.token_hex(4)}")


Drains = Callable[..., Intake]


@pytest.fixture
def drain_in(tmp_path: Path, state: StateSettings) -> Drains:
    """Drains of one queue with one state store, each with a storage root of its own."""

    def made(name: str, **values: Any) -> Intake:
        return embedded(tmp_path, state=state, storage_root=tmp_path / name, **values)

    return made


def test_a_copied_disk_waits_while_the_first_writes_and_stops_for_good_when_it_is_outdated(
    drain_in: Drains,
) -> None:
    first, copy = drain_in("one", seal_messages=100), drain_in("two", seal_messages=100)
    contents = files(150)
    publish(first, contents)
    with draining(first):
        wait_until_stored(first, contents)
        copy_disk(first, copy)
        copied = stored(copy.layout), len(seals(copy.layout))
        with draining(copy) as of_copy:
            said = wait_until_said(of_copy, "written by a copy of this storage root")
            assert str(first.layout.root) in said
            assert str(copy.layout.root) in said
            more = files(100, seed=2, prefix="more-")
            publish(first, more)
            wait_until_stored(first, more)
            os.kill(one_worker(first).pid, signal.SIGKILL)  # its successor takes the slot over
            wait_until_said(of_copy, "this is an older copy")
            contents |= more
    last = files(50, seed=3, prefix="last-")
    publish(first, last)
    with draining(copy) as of_copy:  # nobody holds the slot now
        wait_until_said(of_copy, "this is an older copy")
    assert backlog(first) == len(last)
    assert (stored(copy.layout), len(seals(copy.layout))) == copied
    with draining(first):
        wait_until_stored(first, last)
    assert_exactly_once(first, contents | last)
    # Only if the first one is lost: as its hint says.
    (copy.layout.root / "root-id").unlink()
    publish(copy, files(10, seed=4, prefix="after-"))
    with draining(copy):
        wait_until_stored(copy, files(10, seed=4, prefix="after-"))


def test_of_two_machines_with_one_node_name_the_second_waits_and_says_what_to_do(
    drain_in: Drains,
) -> None:
    """Without node_id both are called `local`. A worker that is replaced keeps its slots."""
    first, second = drain_in("one", max_tasks_per_child=30), drain_in("two")
    contents = files(20)
    publish(first, contents)
    with ExitStack() as stack:
        with draining(first):
            wait_until_stored(first, contents)
            waiting = stack.enter_context(draining(second))
            said = wait_until_said(waiting, "Give each a node_id of its own")
            assert str(first.layout.root) in said
            assert str(second.layout.root) in said
            more = files(200, seed=2, prefix="more-")
            publish(first, more)
            wait_until_stored(first, more)
        assert stored(second.layout) == set()
        last = files(20, seed=3, prefix="last-")
        publish(second, last)
        wait_until_stored(second, last)
    assert_exactly_once(first, contents | more)
    assert_exactly_once(second, last)
