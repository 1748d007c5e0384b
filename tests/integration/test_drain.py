"""The drain, from a real queue to sealed slots: everything once, or among the dead letters."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.dead_letters.letters import read_dead_letters
from fuploader_dagster.delivery.recovery import seal_on_request
from fuploader_dagster.intake.supervisor import Supervisor
from fuploader_dagster.processing.envelope import encode
from tests.drains import (
    assert_exactly_once,
    backlog,
    draining,
    embedded,
    files,
    on_servers,
    one_worker,
    pids,
    publish,
    publish_bodies,
    sealed_files,
    seals,
    snapshot,
    wait_for,
    wait_until_handled,
    wait_until_stored,
)
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer


@pytest.fixture(params=["servers", "embedded"])
def parts(request: pytest.FixtureRequest) -> dict[str, Any]:
    """RabbitMQ and Redis, or the parts that need no server."""
    if request.param == "embedded":
        return {}
    rabbitmq: RabbitMQServer = request.getfixturevalue("rabbitmq")
    redis: RedisServer = request.getfixturevalue("redis_server")
    return on_servers(rabbitmq, redis)


@pytest.mark.parametrize(
    ("parts", "slot_format", "processes", "slots"),
    [
        ("servers", "segment", 2, 2),
        ("servers", "files", 1, 1),
        ("embedded", "segment", 1, 1),
        ("embedded", "files", 2, 2),
    ],
    indirect=["parts"],
)
def test_everything_published_is_in_sealed_slots_exactly_once_with_its_bytes(
    tmp_path: Path, parts: dict[str, Any], slot_format: str, processes: int, slots: int
) -> None:
    settings = embedded(
        tmp_path,
        **parts,
        slot_format=slot_format,
        process_count=processes,
        slots_per_worker=slots,
        seal_messages=300,
    )
    contents = files(2_500)
    publish(settings, contents)
    with draining(settings) as supervisor:
        wait_until_stored(settings, contents)
        assert supervisor.problems() == []
    assert_exactly_once(settings, contents)
    counts = snapshot(settings)
    assert counts.stored_messages == len(contents)
    assert counts.stored_bytes == sum(map(len, contents.values()))
    assert counts.duplicates == counts.dead_letters == 0
    assert counts.owners == {}


def test_full_batches_go_to_the_slots_in_turn_and_a_slow_queue_fills_one(tmp_path: Path) -> None:
    settings = embedded(tmp_path, slots_per_worker=4, commit_messages=50)
    contents = files(400)
    publish(settings, contents)
    with draining(settings):
        wait_until_handled(settings, 400)
        seal_on_request(settings)
        wait_for(lambda: len(seals(settings.layout)) == 4, settings, "the seals")
        assert [seal.messages for seal in seals(settings.layout)] == [100] * 4
        for number in range(5):
            publish(settings, files(1, prefix=f"slow-{number}-"))
            wait_until_handled(settings, 401 + number)
        assert sorted(slot.messages for slot in snapshot(settings).slots) == [0, 0, 0, 5]
    seal_on_request(settings)
    assert len(sealed_files(settings.layout)) == 405


@pytest.mark.parametrize("parts", ["servers"], indirect=True)
def test_workers_are_replaced_after_their_quota_and_nothing_is_lost_or_doubled(
    tmp_path: Path, parts: dict[str, Any]
) -> None:
    settings = embedded(
        tmp_path,
        **parts,
        process_count=2,
        max_tasks_per_child=400,
        commit_messages=100,
        seal_messages=350,
        lease_seconds=60,
    )
    contents = files(3_000)
    publish(settings, contents)
    seen: set[int] = set()

    def done() -> bool:
        seen.update(pids(settings))
        return snapshot(settings).stored_messages == len(contents)

    supervisor = Supervisor(settings)
    supervisor.renew()  # once: replacing a worker does not wait for the next renewal
    try:
        wait_for(done, settings, "the drain")
        assert supervisor.problems() == []
    finally:
        supervisor.stop()
    assert len(seen) >= 4
    assert_exactly_once(settings, contents)


@pytest.mark.parametrize(
    ("reason", "limit", "messages", "expected"),
    [
        ("count", {"seal_messages": 100, "commit_messages": 50}, 300, [100, 100, 100]),
        ("bytes", {"seal_bytes": 50_000, "commit_messages": 1}, 100, None),
        ("age", {"seal_age_seconds": 0.5}, 100, [100]),
        ("request", {}, 100, [100]),
        ("shutdown", {"residue_file_upload": True}, 100, [100]),
    ],
)
def test_a_slot_is_sealed_for_each_reason_and_says_which_one_fired(
    tmp_path: Path, reason: str, limit: dict[str, Any], messages: int, expected: list[int] | None
) -> None:
    settings = embedded(tmp_path, **limit)
    contents = files(messages)
    publish(settings, contents)
    with draining(settings):
        wait_until_stored(settings, contents)
        if reason == "request":
            assert seal_on_request(settings) == []  # the worker owns the slot and does it itself
        if reason != "shutdown":
            wait_for(lambda: bool(seals(settings.layout)), settings, "the seal")
    found = seals(settings.layout)
    assert {seal.reason for seal in found} == {reason}
    if expected is None:
        assert all(50_000 <= seal.payload_bytes < 53_100 for seal in found)
    else:
        assert [seal.messages for seal in found] == expected
    assert len({seal.partition for seal in found}) == len(found)
    if reason != "bytes":
        assert sealed_files(settings.layout) == {name: [body] for name, body in contents.items()}
    sealed = settings.state.store(pipeline=settings.name, node=settings.node).sealed(100)
    assert sealed == sorted(seal.partition for seal in found)


def test_a_request_to_seal_is_seen_though_the_clock_was_set_back(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    request = settings.layout.seal_request
    request.parent.mkdir(parents=True)
    request.touch()
    in_eight_hours = time.time() + 28_800  # it was made before the clock was set back
    os.utime(request, (in_eight_hours, in_eight_hours))
    publish(settings, files(10))
    with draining(settings):
        wait_until_handled(settings, 10)
        seal_on_request(settings)
        wait_for(lambda: bool(seals(settings.layout)), settings, "the seal")


def test_a_request_to_seal_that_is_removed_is_no_request(tmp_path: Path) -> None:
    settings = embedded(tmp_path)
    request = settings.layout.seal_request
    request.parent.mkdir(parents=True)
    request.touch()
    publish(settings, files(10))
    with draining(settings):
        wait_until_handled(settings, 10)
        request.unlink()
        for _ in range(2):  # it looks for requests each time before it writes its status again
            seen = one_worker(settings).updated_at
            wait_for(lambda: one_worker(settings).updated_at > seen, settings, "the status")  # noqa: B023
        assert seals(settings.layout) == []


def test_without_residue_upload_a_leaving_worker_leaves_its_slot_open_for_the_next(
    tmp_path: Path,
) -> None:
    settings = embedded(tmp_path)
    for round_number in (1, 2):
        publish(settings, files(50, seed=round_number, prefix=f"r{round_number}-"))
        with draining(settings):
            wait_until_handled(settings, 50 * round_number)
    assert seals(settings.layout) == []
    (slot,) = snapshot(settings).slots
    assert (slot.number, slot.messages) == (1, 100)


def test_what_cannot_become_a_file_is_a_dead_letter_at_once_and_the_others_flow(
    tmp_path: Path, parts: dict[str, Any]
) -> None:
    settings = embedded(tmp_path, **parts, commit_messages=20)
    good = files(200)
    bad = {
        b"no JSON at all": "not an envelope",
        b"\xff\xfe\x00": "not an envelope",
        b"": "not an envelope",
        b'{"file_name": "a", "compression": "gzip", "payload": "AAAA"}': "not an envelope",
        encode("x", b"x").replace(b'"x"', b'"../x"'): "not a plain file name",
        encode("x", b"x").replace(b'"x"', b'"/etc/x"'): "not a plain file name",
        encode("x" * 300, b"x"): "the limit is 255",
    }
    publish(settings, dict(list(good.items())[:100]))
    publish_bodies(settings, list(bad), origin="somewhere", attempt=3)
    publish(settings, dict(list(good.items())[100:]))
    with draining(settings) as supervisor:
        wait_until_handled(settings, len(good) + len(bad))
        assert supervisor.problems() == []
    letters = list(read_dead_letters(settings.layout))
    assert sorted(letter.body for letter in letters) == sorted(bad)
    for letter in letters:
        assert bad[letter.body] in letter.reason
        assert letter.attributes["headers"] == {"origin": "somewhere", "attempt": 3}
        assert not letter.redelivered
    assert snapshot(settings).dead_letters == len(bad)
    assert_exactly_once(settings, good)


def test_a_flood_of_bad_messages_neither_stalls_the_good_ones_nor_floods_the_log(
    tmp_path: Path,
    rabbitmq: RabbitMQServer,
    redis_server: RedisServer,
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings = embedded(
        tmp_path, **on_servers(rabbitmq, redis_server), prefetch_count=50, commit_messages=25
    )
    good = files(100)
    publish_bodies(settings, [b"poison %d" % number for number in range(5_000)])
    publish(settings, good)
    capfd.readouterr()
    with draining(settings):
        wait_until_handled(settings, 5_100)
        wait_for(lambda: one_worker(settings).dead_letters == 5_000, settings, "the status")
        assert "not an envelope" in one_worker(settings).last_dead_reason
    assert len(list(read_dead_letters(settings.layout))) == 5_000
    assert_exactly_once(settings, good)
    logged = capfd.readouterr().err.splitlines()
    counts = [int(line.split(": ")[1].split()[0]) for line in logged if "dead letters" in line]
    assert sum(counts) == 5_000
    assert len(logged) < 15, logged


def test_a_redelivered_message_is_not_a_second_file_and_other_bytes_are_not_lost(
    tmp_path: Path,
) -> None:
    settings = embedded(tmp_path)
    publish_bodies(
        settings,
        [encode("a.json", body, "bytes") for body in (b"1", b"1", b"2", b"1", b"3", b"2")],
    )
    with draining(settings):
        wait_until_handled(settings, 6)
    seal_on_request(settings)
    assert sealed_files(settings.layout) == {
        "a.json": [b"1"],
        "a~2.json": [b"2"],
        "a~3.json": [b"3"],
    }
    assert snapshot(settings).duplicates == 3
    assert backlog(settings) == 0
