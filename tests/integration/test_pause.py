"""A pause under load: nothing is lost, the count stands still, and a resume continues at once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.control.wishes import PARTS, Part, wish
from fuploader_dagster.delivery.recovery import seal_on_request
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.intake.worker_status import read_statuses
from fuploader_dagster.settings.pipeline import Intake
from tests.drains import (
    assert_exactly_once,
    backlog,
    draining,
    embedded,
    files,
    on_servers,
    pids,
    publish,
    publishing,
    sealed_files,
    snapshot,
    wait_for,
    wait_until_stored,
)
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer

STANDS_STILL_SECONDS = 3.0
"""How long the count is watched: three looks of a worker."""


@pytest.fixture(params=["classic", "quorum", "embedded"])
def parts(request: pytest.FixtureRequest) -> dict[str, Any]:
    """RabbitMQ and Redis, or the parts that need no server."""
    if request.param == "embedded":
        return {}
    rabbitmq: RabbitMQServer = request.getfixturevalue("rabbitmq")
    redis: RedisServer = request.getfixturevalue("redis_server")
    return on_servers(rabbitmq, redis, request.param)


def say(settings: Intake, paused: bool, *, wanted: tuple[Part, ...] = PARTS) -> None:
    done = wish(settings, wanted, paused=paused, by="ada", reason="the index is rebuilt")
    assert done.trouble == ""


def doing(layout: Layout) -> list[str]:
    return [one.doing for one in read_statuses(layout)]


def wait_until_held(settings: Intake, workers: int) -> None:
    wait_for(lambda: doing(settings.layout) == ["held"] * workers, settings, "held workers")


def stored(settings: Intake) -> int:
    return snapshot(settings).stored_messages


def assert_stands_still(settings: Intake) -> None:
    """The count does not change while messages wait; it is watched for a while."""
    before = stored(settings)
    assert backlog(settings) > 0
    watched_until = time.monotonic() + STANDS_STILL_SECONDS
    while time.monotonic() < watched_until:
        assert stored(settings) == before
        time.sleep(0.2)


def test_a_pause_under_load_stands_still_and_a_resume_stores_everything_once(
    tmp_path: Path, parts: dict[str, Any]
) -> None:
    settings = embedded(tmp_path, process_count=2, seal_messages=500, **parts)
    with draining(settings) as supervisor:
        with publishing(settings) as contents:
            for _ in range(2):
                more = stored(settings) + 300
                wait_for(lambda: stored(settings) >= more, settings, "the drain")  # noqa: B023
                say(settings, True, wanted=("intake",))
                wait_until_held(settings, 2)
                wait_for(lambda: backlog(settings) > 0, settings, "messages that wait")
                assert_stands_still(settings)
                assert supervisor.problems() == []
                say(settings, False)
        wait_until_stored(settings, contents)
        wait_for(lambda: backlog(settings) == 0, settings, "the rest")
    assert_exactly_once(settings, contents)
    assert snapshot(settings).duplicates == 0  # nothing in hand was delivered again


def test_workers_killed_during_a_pause_are_replaced_and_take_nothing(
    tmp_path: Path, parts: dict[str, Any]
) -> None:
    settings = embedded(tmp_path, process_count=2, **parts)
    contents = files(300)
    say(settings, True)
    publish(settings, contents)
    with draining(settings) as supervisor:
        wait_until_held(settings, 2)
        killed = pids(settings)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not pids(settings) & killed, settings, "the end of the killed")
        wait_until_held(settings, 2)
        assert_stands_still(settings)
        assert stored(settings) == 0
        assert backlog(settings) == len(contents)
        assert supervisor.problems() == []
        say(settings, False)
        wait_until_stored(settings, contents)
    assert_exactly_once(settings, contents)


@pytest.mark.parametrize("parts", ["embedded"], indirect=True)
def test_a_pause_while_workers_start_and_a_resume_at_once_end_as_the_last_one_says(
    tmp_path: Path, parts: dict[str, Any]
) -> None:
    settings = embedded(tmp_path, **parts)
    contents = files(200)
    publish(settings, contents)
    with draining(settings):
        for _ in range(20):
            say(settings, True)
            say(settings, False)
        wait_until_stored(settings, contents)
        say(settings, True)
        wait_until_held(settings, 1)
    assert_exactly_once(settings, contents)


@pytest.mark.parametrize("parts", ["embedded"], indirect=True)
def test_a_paused_worker_still_seals_what_is_old_and_leaves_when_its_lease_ends(
    tmp_path: Path, parts: dict[str, Any]
) -> None:
    settings = embedded(tmp_path, seal_age_seconds=2, **parts)
    contents = files(20)
    publish(settings, contents)
    with draining(settings):
        wait_until_stored(settings, contents)
        say(settings, True, wanted=("intake",))
        wait_until_held(settings, 1)
        wait_for(lambda: bool(settings.layout.sealed_dirs()), settings, "a seal by age")
    assert pids(settings) == set()
    assert snapshot(settings).owners == {}


def test_nodes_that_share_redis_obey_a_pause_on_one_of_them_through_an_outage_and_a_loss(
    tmp_path: Path, rabbitmq: RabbitMQServer, redis_server: RedisServer
) -> None:
    shared = on_servers(rabbitmq, redis_server)
    here, there = (
        embedded(tmp_path, storage_root=tmp_path / name, node_id=name, **shared)
        for name in ("node-1", "node-2")
    )
    contents = files(400)
    with draining(here), draining(there):
        for one in (here, there):
            wait_for(lambda: doing(one.layout) == ["draining"], one, "a worker")  # noqa: B023
        say(here, True)
        for one in (here, there):
            wait_until_held(one, 1)
        publish(here, contents)
        redis_server.stop()
        wait_for(lambda: doing(there.layout) == ["trouble"], there, "the outage")
        redis_server.start()
        redis_server.flush()
        for one in (here, there):
            wait_until_held(one, 1)
        assert backlog(here) == len(contents)
        assert stored(here) + stored(there) == 0
        say(there, False)  # on the other node, after the store has lost everything
        wait_for(
            lambda: stored(here) + stored(there) >= len(contents),
            here,
            "the drain of both",
        )
    assert backlog(here) == 0
    seal_on_request(here)
    seal_on_request(there)
    found = {**sealed_files(here.layout), **sealed_files(there.layout)}
    assert found == {name: [body] for name, body in contents.items()}
