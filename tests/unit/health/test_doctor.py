"""What the doctor makes of what it sees, decided from values alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.contracts.diagnosis import Diagnosis, Verdict, exit_code, trouble
from fuploader_dagster.errors import StateUnavailable, StoreRefused
from fuploader_dagster.health import machine
from fuploader_dagster.health.doctor import (
    headers_of_the_queue,
    judge_clock,
    prefetch_against_batch,
    strategies,
)
from fuploader_dagster.resources.sources.rabbitmq import examination as rabbitmq_examination
from fuploader_dagster.resources.sources.redis_list.source import RedisList
from fuploader_dagster.resources.states import redis_examination
from tests.settings import intake, pipeline

GIB = 1 << 30
GOOD = machine.Disk(
    folder=Path("/srv/data"),
    kind="ext4",
    options=frozenset({"rw"}),
    journal=True,
    free_bytes=100 * GIB,
    free_inodes=1_000_000,
    fsync_seconds=0.002,
)
MIB = 1 << 20


@pytest.mark.parametrize(
    ("change", "settings", "expected"),
    [
        ({}, {}, {}),
        ({"free_bytes": 511 * MIB}, {}, {"disk space": "wrong"}),
        ({"free_bytes": 600 * MIB}, {}, {"disk space": "warning"}),
        ({"free_inodes": 900}, {}, {"inodes": "wrong"}),
        ({"free_inodes": 11_000}, {}, {}),
        ({"free_inodes": 11_000}, {"slot_format": "files"}, {"inodes": "wrong"}),
        ({"free_inodes": None}, {"slot_format": "files"}, {}),
        ({"kind": "tmpfs", "journal": None}, {}, {"file system": "wrong"}),
        ({"kind": "nfs4", "journal": None}, {}, {"file system": "warning"}),
        ({"kind": "fuse.sshfs", "journal": None}, {}, {"file system": "warning"}),
        ({"kind": "overlay", "journal": None}, {}, {"file system": "warning"}),
        ({"journal": False}, {}, {"file system": "warning"}),
        ({"kind": "xfs", "journal": None}, {}, {}),
        ({"options": frozenset({"rw", "nobarrier"})}, {}, {"file system": "wrong"}),
        ({"fsync_seconds": 0.2}, {}, {"fsync": "warning"}),
    ],
)
def test_a_disk_is_judged_by_what_a_pipeline_needs_of_it(
    tmp_path: Path, change: dict[str, Any], settings: dict[str, Any], expected: dict[str, str]
) -> None:
    found = list(machine.judge_disk(replace(GOOD, **change), intake(tmp_path, **settings)))
    assert [one.check for one in found] == ["disk space", "inodes", "file system", "fsync"]
    assert not_good(found) == expected


def test_headers_of_a_queue_that_has_none_are_a_warning(tmp_path: Path) -> None:
    redis_list = RedisList(url="redis://localhost", key="documents")
    for source, headers, expected in (
        ({}, ["cmd"], {}),
        ({"source": redis_list}, [], {}),
        ({"source": redis_list}, ["cmd", "id"], {"headers": "warning"}),
    ):
        found = list(headers_of_the_queue(pipeline(tmp_path, headers=headers, **source)))
        assert not_good(found) == expected
    assert "documents" in found[0].found
    assert "cmd, id" in found[0].found


def test_reading_a_real_disk_leaves_nothing_and_tells_what_the_kernel_knows(tmp_path: Path) -> None:
    disk = machine.read_disk(tmp_path / "new")
    assert disk.kind
    assert disk.free_bytes > 0
    assert disk.fsync_seconds > 0
    assert list((tmp_path / "new").iterdir()) == []
    assert machine.read_disk(Path("/dev/shm")).kind == "tmpfs"


@pytest.mark.parametrize(("limit", "verdict"), [(259, "wrong"), (260, "good"), (1 << 30, "good")])
def test_too_few_open_files_are_named_with_what_a_worker_needs(
    tmp_path: Path, limit: int, verdict: str
) -> None:
    found = machine.judge_open_files(limit, intake(tmp_path))
    assert found.verdict == verdict
    assert "260" in found.found


@pytest.mark.parametrize(
    ("prefetch", "batch", "verdict"),
    [(2000, 500, "good"), (1000, 500, "good"), (999, 500, "warning")],
)
def test_a_prefetch_below_two_batches_is_a_warning(
    tmp_path: Path, prefetch: int, batch: int, verdict: str
) -> None:
    settings = intake(tmp_path, prefetch_count=prefetch, commit_messages=batch)
    assert prefetch_against_batch(settings).verdict == verdict


@pytest.mark.parametrize(
    ("seconds", "verdict", "said"),
    [
        (0.0, "good", "0 s behind"),
        (59.0, "good", "59 s ahead of"),
        (-61.0, "warning", "61 s behind"),
        (601.0, "wrong", "601 s ahead of"),
        (-86_400.0, "wrong", "86,400 s behind"),
    ],
)
def test_a_clock_that_is_off_is_said_with_its_direction(
    seconds: float, verdict: str, said: str
) -> None:
    found = judge_clock(seconds)
    assert found.verdict == verdict
    assert said in found.found


@pytest.mark.parametrize(
    ("arguments", "verdict", "said"),
    [
        ({}, "good", "classic, durable"),
        ({"x-queue-type": "quorum"}, "good", "quorum"),
        ({"x-queue-type": "stream"}, "wrong", "stream"),
        ({"durable": "false"}, "wrong", "durable false"),
        ({"x-message-ttl": "60000"}, "warning", "x-message-ttl 60000"),
        ({"x-max-length": "10", "x-queue-type": "quorum"}, "warning", "quorum, x-max-length 10"),
        ({"x-max-priority": "5"}, "good", "x-max-priority 5"),
        (None, "good", "unknown"),
    ],
)
def test_a_queue_is_judged_by_what_it_does_with_messages_before_us(
    arguments: dict[str, str] | None, verdict: str, said: str
) -> None:
    found = rabbitmq_examination.judge(arguments)
    assert (found.verdict, said in found.found) == (verdict, True)


REDIS = {"redis_version": "7.0.15", "role": "master", "maxmemory_policy": "noeviction"}


@pytest.mark.parametrize(
    ("info", "save", "expected"),
    [
        ({"aof_enabled": 1}, "", {}),
        ({}, "3600 1 300 100", {}),
        ({}, None, {}),
        ({}, "", {"persistence": "warning"}),
        ({"rdb_last_bgsave_status": "err"}, "3600 1", {"persistence": "wrong"}),
        ({"maxmemory_policy": "allkeys-lru"}, None, {}),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": 1}, None, {"eviction": "warning"}),
        ({"maxmemory": 100, "used_memory": 91}, None, {"eviction": "warning"}),
        ({"maxmemory": 100, "used_memory": 50}, None, {}),
        ({"maxmemory_policy": "volatile-lru", "maxmemory": 1}, None, {}),
        ({"role": "slave"}, None, {"state server": "wrong"}),
    ],
)
def test_redis_is_judged_by_what_it_may_do_to_our_keys(
    info: dict[str, Any], save: str | None, expected: dict[str, str]
) -> None:
    assert not_good(redis_examination.judge({**REDIS, **info}, save)) == expected


def a_key(archive: str) -> str:
    return archive


def test_each_function_of_the_user_is_looked_up_by_its_name(tmp_path: Path) -> None:
    (found,) = strategies(pipeline(tmp_path, key=a_key))
    assert (found.check, found.verdict) == ("key", "good")
    gone = pipeline(tmp_path).model_copy(update={"parser": lambda body: body})
    (found,) = strategies(gone)
    assert (found.check, found.verdict) == ("parser", "wrong")


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], 0),
        (["good", "warning"], 0),
        (["unreachable", "good"], 3),
        (["unreachable", "wrong"], 4),
    ],
)
def test_the_exit_code_is_that_of_the_worst(verdicts: list[Verdict], expected: int) -> None:
    assert exit_code(Diagnosis("c", verdict, "f") for verdict in verdicts) == expected


def test_trouble_keeps_the_errors_own_words_and_hint() -> None:
    passing = trouble("state", StateUnavailable("it does not answer", hint="is it running?"))
    assert passing == Diagnosis("state", "unreachable", "it does not answer", "is it running?")
    lasting = trouble("store", StoreRefused("no"))
    assert lasting.verdict == "wrong"
    assert lasting.hint


def not_good(found: list[Diagnosis]) -> dict[str, str]:
    """Verdicts of what is not in order. Whatever is not has a hint."""
    bad = [one for one in found if one.verdict != "good"]
    assert all(one.hint for one in bad)
    return {one.check: one.verdict for one in bad}
