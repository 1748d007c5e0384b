"""The drain when its workers, its broker, its state store or its disk fail, and come back."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fuploader_dagster.delivery.recovery import seal_on_request
from fuploader_dagster.intake.supervisor import Supervisor
from fuploader_dagster.intake.worker import Job
from fuploader_dagster.settings.loading import dump_intake
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.slots.index import COMMIT_BYTES, HEADER_BYTES, record
from tests.drains import (
    assert_exactly_once,
    backlog,
    contents_of,
    draining,
    embedded,
    files,
    on_servers,
    one_worker,
    pids,
    publish,
    publishing,
    sealed_files,
    seals,
    snapshot,
    stored,
    wait_for,
    wait_until_handled,
    wait_until_stored,
)
from tests.servers.process import binary
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer

ROOT = Path(__file__).parents[2]


def second_copies(settings: Intake, contents: dict[str, bytes]) -> int:
    """After the workers left: none is lost, none has wrong bytes; how many lie in two slots."""
    seal_on_request(settings)
    found = sealed_files(settings.layout)
    assert found.keys() == contents.keys()
    for name, bodies in found.items():
        assert set(bodies) == {contents[name]}
    for directory in settings.layout.sealed_dirs():
        names = [name for name, _ in contents_of(directory)]
        assert len(names) == len(set(names))
    assert backlog(settings) == 0
    return sum(map(len, found.values())) - len(found)


@pytest.mark.parametrize("parts", ["servers", "embedded"])
def test_kill_9_of_workers_under_load_loses_nothing_and_changes_no_byte(
    tmp_path: Path, parts: str, request: pytest.FixtureRequest
) -> None:
    servers = (
        on_servers(request.getfixturevalue("rabbitmq"), request.getfixturevalue("redis_server"))
        if parts == "servers"
        else {}
    )
    settings = embedded(tmp_path, **servers, process_count=2, commit_messages=20, seal_messages=400)
    dice = random.Random(7)
    killed: set[int] = set()
    with draining(settings):
        with publishing(settings) as contents:
            for _ in range(4):
                before = len(stored(settings.layout))
                wait_for(lambda: len(stored(settings.layout)) > before, settings, "the drain")  # noqa: B023
                wait_for(lambda: bool(pids(settings) - killed), settings, "a worker to kill")
                victim = dice.choice(sorted(pids(settings) - killed))
                os.kill(victim, signal.SIGKILL)
                killed.add(victim)
        wait_until_stored(settings, contents)
        wait_for(lambda: backlog(settings) == 0, settings, "redelivered messages")
        handled = snapshot(settings).stored_messages
        wait_for(lambda: len(pids(settings)) == 2, settings, "the last replacements")
    assert handled <= len(contents) + len(killed) * 40
    assert second_copies(settings, contents) == 0


@contextmanager
def down(server: RabbitMQServer | RedisServer) -> Iterator[None]:
    """The server is killed, and comes back after the block."""
    server.kill()
    try:
        yield
    finally:
        server.start()


def test_a_killed_broker_is_a_pause_that_says_where_and_why(
    tmp_path: Path, rabbitmq: RabbitMQServer, redis_server: RedisServer
) -> None:
    settings = embedded(tmp_path, **on_servers(rabbitmq, redis_server), commit_messages=5)
    contents = files(3_000)
    publish(settings, contents)
    rabbitmq.sync_definitions()
    with draining(settings) as supervisor:
        wait_for(lambda: len(stored(settings.layout)) > 50, settings, "the drain")
        with down(rabbitmq):
            wait_for(lambda: bool(supervisor.problems()), settings, "the problem")
            (problem,) = supervisor.problems()
            assert f"127.0.0.1:{rabbitmq.port}" in problem
            assert "can this machine reach it?" in problem
            assert rabbitmq.password not in problem
            worker = one_worker(settings)
            assert (worker.doing, f"worker 0: {worker.problem}") == ("trouble", problem)
        wait_until_stored(settings, contents)
        wait_for(lambda: supervisor.problems() == [], settings, "the all-clear")
        assert one_worker(settings).pid == worker.pid
    assert second_copies(settings, contents) == 0


def test_workers_leave_within_their_lease_though_the_broker_hangs(
    tmp_path: Path, rabbitmq: RabbitMQServer, redis_server: RedisServer
) -> None:
    """A second, and not as long as one waits for a broker, nor until a hung worker ends itself."""
    parts = on_servers(rabbitmq, redis_server)
    patient = {"heartbeat_seconds": 600, "connect_timeout_seconds": 300}
    parts["source"] = parts["source"].model_copy(update=patient)
    settings = embedded(tmp_path, **parts, lease_seconds=60)
    contents = files(200)
    publish(settings, contents)
    connected, connecting = Supervisor(settings), Supervisor(settings)
    connected.renew()
    wait_until_stored(settings, contents)
    rabbitmq.pause()
    try:
        for supervisor in (connected, connecting):
            supervisor.renew()
            wait_for(lambda: bool(supervisor.statuses()), settings, "the worker")  # noqa: B023
            began = time.monotonic()
            supervisor.stop(60)
            assert time.monotonic() - began < 25
    finally:
        rabbitmq.resume()
    with draining(settings):  # what was acknowledged into the void comes again
        wait_for(lambda: backlog(settings) == 0, settings, "the rest")
    assert_exactly_once(settings, contents)


def test_a_killed_redis_is_a_pause_that_says_where_and_why(
    tmp_path: Path, rabbitmq: RabbitMQServer, redis_server: RedisServer
) -> None:
    settings = embedded(
        tmp_path, **on_servers(rabbitmq, redis_server), commit_messages=5, seal_messages=200
    )
    contents = files(2_000)
    publish(settings, contents)
    with draining(settings) as supervisor:
        wait_for(lambda: len(stored(settings.layout)) > 50, settings, "the drain")
        with down(redis_server):
            wait_for(lambda: bool(supervisor.problems()), settings, "the problem")
            (problem,) = supervisor.problems()
            assert f"Redis at redis://127.0.0.1:{redis_server.port}" in problem
            assert "is Redis running" in problem
            assert redis_server.password not in problem
        wait_until_stored(settings, contents)
        wait_for(lambda: supervisor.problems() == [], settings, "the all-clear")
        state = settings.state.store(pipeline=settings.name, node=settings.node)
        wait_for(
            lambda: state.sealed(100) == sorted(seal.partition for seal in seals(settings.layout)),
            settings,
            "all that was sealed to wait for its run",
        )
        state.close()
    assert len(seals(settings.layout)) >= 9
    assert second_copies(settings, contents) == 0


def test_an_emptied_redis_is_filled_again_from_the_directories(
    tmp_path: Path, rabbitmq: RabbitMQServer, redis_server: RedisServer
) -> None:
    settings = embedded(
        tmp_path, **on_servers(rabbitmq, redis_server), commit_messages=10, seal_messages=100
    )
    contents = files(1_050)
    first = dict(list(contents.items())[:550])
    publish(settings, first)
    with draining(settings):
        wait_until_stored(settings, first)
        redis_server.flush()
        publish(settings, dict(list(contents.items())[550:]))
        wait_until_stored(settings, contents)
    with draining(settings):  # whoever starts next gives back what the directories say
        wait_for(lambda: one_worker(settings).doing == "draining", settings, "the worker")
    found = seals(settings.layout)
    assert [seal.number for seal in found] == list(range(1, len(found) + 1))
    store = settings.state.store(pipeline=settings.name, node=settings.node)
    assert store.sealed(100) == sorted(seal.partition for seal in found)
    (active,) = store.snapshot().slots
    assert (active.number, active.messages) == (11, 50)
    store.close()
    assert_exactly_once(settings, contents)


def test_a_storage_root_that_cannot_be_written_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    settings = embedded(tmp_path)
    with draining(settings) as supervisor:
        wait_for(lambda: bool(supervisor.problems()), settings, "the problem")
        assert str(tmp_path / "data") in supervisor.problems()[0]


def test_a_damaged_sealed_slot_does_not_keep_the_drain_from_draining(tmp_path: Path) -> None:
    settings = embedded(tmp_path, seal_messages=50, commit_messages=50)
    contents = files(200)
    publish(settings, dict(list(contents.items())[:100]))
    with draining(settings):
        wait_until_handled(settings, 100)
    (settings.layout.sealed(0, 1) / "seal.json").write_text("{}")
    (settings.layout.sealed(0, 2) / "seal.json").unlink()
    publish(settings, dict(list(contents.items())[100:]))
    with draining(settings) as supervisor:
        wait_until_stored(settings, contents)
        assert supervisor.problems() == []


_CALL = re.compile(
    r"\d+ +(?P<call>\w+)\(\d+<(?P<path>[^>]*)>(?:, \"(?P<content>[^\"]*)\".*)?\) += (?P<result>\d+)"
)
_ACK = re.compile(rb"\x01\x00\x01\x00\x00\x00\x0d\x00\x3c\x00\x50(........)\x01\xce", re.DOTALL)
"""AMQP 0-9-1: method frame on channel 1, basic.ack with its delivery tag, `multiple`, frame end."""


def test_no_ack_leaves_before_its_batch_is_synced_in_segment_and_index(
    tmp_path: Path, rabbitmq: RabbitMQServer, redis_server: RedisServer
) -> None:
    """Seen from outside, by the system calls of a worker."""
    settings = embedded(tmp_path, **on_servers(rabbitmq, redis_server), commit_messages=50)
    contents = files(1_000)
    publish(settings, contents)
    trace = tmp_path / "trace"
    worker = subprocess.Popen(
        [
            binary("strace", package="strace"),
            *("-f", "-y", "-xx", "-s", "100000", "-o", str(trace)),
            *("-e", "trace=write,pwrite64,sendto,fdatasync,fsync"),
            *(sys.executable, "-m", "fuploader_dagster.intake.worker"),
        ],
        stdin=subprocess.PIPE,
        cwd=ROOT,
    )
    assert worker.stdin is not None
    job = Job(0, 60, [str(ROOT)], 2, msgspec.Raw(dump_intake(settings)))
    worker.stdin.write(msgspec.json.encode(job) + b"\n")
    worker.stdin.flush()
    wait_until_stored(settings, contents)
    wait_until_handled(settings, len(contents))
    worker.stdin.close()
    assert worker.wait(60) == 0
    one_record = len(record(next(iter(contents)).encode(), 0, 0, 0, bytes(32)))
    acks = assert_synced_before_acks(trace, one_record)
    assert acks[-1] == len(contents)
    assert len(acks) >= len(contents) / settings.commit_messages


def assert_synced_before_acks(trace: Path, one_record: int) -> list[int]:
    """Go through the calls in their order; return the delivery tags that were acknowledged."""
    written = {"index": 0, "segment.tar": 0}
    commits = 0
    unsynced = dict(written)
    acks: list[int] = []
    for call in _calls(trace):
        name = Path(_bytes(call["path"]).decode()).name
        if name in written:
            if call["call"] in ("fdatasync", "fsync"):
                written[name] += unsynced[name]
                unsynced[name] = 0
            else:
                unsynced[name] += int(call["result"])
                commits += name == "index" and unsynced[name] > HEADER_BYTES
        elif call["call"] == "sendto":
            for tag in _ACK.findall(_bytes(call["content"])):
                acks.append(int.from_bytes(tag, "big"))
                records = (written["index"] - HEADER_BYTES - commits * COMMIT_BYTES) // one_record
                assert records >= acks[-1], f"{acks[-1]} acknowledged, {records} synced"
                assert unsynced["segment.tar"] == 0
    assert written["segment.tar"] > 0
    return acks


def _calls(trace: Path) -> Iterator[dict[str, Any]]:
    for line in trace.read_text().splitlines():
        if match := _CALL.match(line):
            yield match.groupdict()


def _bytes(shown: str) -> bytes:
    """What strace shows with `-xx`."""
    return bytes.fromhex(shown.replace("\\x", ""))
