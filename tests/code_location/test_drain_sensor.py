"""The drain sensor: ticks in milliseconds, sealed slots become runs once, trouble is said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fuploader_dagster.assets.partitions import RANGE_END_TAG, RANGE_START_TAG
from fuploader_dagster.contracts.state import Commit
from fuploader_dagster.definitions import build_resources
from fuploader_dagster.delivery.processor_trouble import (
    end_processor_trouble,
    note_processor_trouble,
)
from fuploader_dagster.delivery.ship import upload_partitions
from fuploader_dagster.delivery.store_trouble import end_trouble, note_refusal, note_trouble
from fuploader_dagster.errors import SourceUnavailable
from fuploader_dagster.intake.supervisor import supervisor_for
from fuploader_dagster.intake.worker_status import StatusReport
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from fuploader_dagster.resources.states.redis import RedisState
from fuploader_dagster.sensors import drain_sensor
from fuploader_dagster.sensors.drain_sensor import DrainTrouble
from fuploader_dagster.slots.sealing import find_sealed
from fuploader_dagster.standalone import ship_pipeline
from tests.drains import files, pids, publish, publish_bodies, wait_for, wait_until_handled
from tests.processors_for_tests import Script
from tests.servers.ports import free_port
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.settings import pipeline, sealed
from tests.ticking import Ticking, new_keys

LONGEST_TICK_SECONDS = 20.0
"""A hurried state store may take one second and try again; no broker is waited for."""


@pytest.fixture
def ticking(tmp_path: Path) -> Iterator[Any]:
    """Call it for a sensor whose workers, if it has any, leave after the test."""
    made: list[Ticking] = []

    def make(**values: Any) -> Ticking:
        made.append(
            Ticking(
                pipeline(
                    tmp_path,
                    **{
                        "source": EmbeddedQueue(path=tmp_path / "queue"),
                        "min_free_bytes": 0,
                        "lease_seconds": 60,  # workers may take long to start, and ticks to come
                        **values,
                    },
                )
            )
        )
        return made[-1]

    yield make
    for one in made:
        if one.settings.drain_by == "sensor":
            supervisor_for(one.settings.intake()).stop()


def says(worker: StatusReport, *, messages_per_second: float) -> None:
    worker.write()  # works out its own figure, once a second
    worker.status.messages_per_second = messages_per_second
    worker.write(now=True)


def queued(ticking: Ticking, count: int) -> list[str]:
    """Sealed slots on disk, queued in the state store as a worker does it."""
    keys = [
        sealed(ticking.settings, {f"{n}.json": b"x" * n}).seal.partition
        for n in range(1, count + 1)
    ]
    ticking.store().add_sealed(keys)
    return keys


def test_a_tick_registers_sealed_slots_and_asks_for_their_runs_in_one_answer(ticking: Any) -> None:
    one: Ticking = ticking(drain_by="command", partitions_per_run=3)
    keys = queued(one, 7)
    result = one.tick()
    assert new_keys(result) == keys
    requests = result.run_requests or []
    asked = [(r.tags[RANGE_START_TAG], r.tags[RANGE_END_TAG]) for r in requests]
    assert asked == [(keys[0], keys[2]), (keys[3], keys[5]), (keys[6], keys[6])]
    assert len({request.run_key for request in requests}) == 3
    events = [one for one in result.asset_events if isinstance(one, dg.AssetMaterialization)]
    assert [event.partition for event in events] == keys
    assert {event.asset_key for event in events} == {one.names.sealed_slot}
    metadata = {event.partition: event.metadata for event in events}
    assert metadata[keys[4]]["payload_bytes"].value == 5
    assert metadata[keys[4]]["reason"].value == "request"


def test_while_the_last_run_is_not_over_slots_wait_for_a_common_next_one(
    ticking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one: Ticking = ticking(drain_by="command", partitions_per_run=4)
    first = queued(one, 1)
    one.accept(one.tick())
    run = one.start_run()
    worker = StatusReport(one.settings.layout, 0)
    says(worker, messages_per_second=5000.0)
    waiting = queued(one, 3)
    held = one.tick()
    assert new_keys(held) == []
    assert not held.run_requests
    sentence = f"3 sealed slots wait for the end of run {run.run_id} (STARTED since 20"
    assert sentence in str(held.skip_reason)
    enough = [*waiting, *queued(one, 1)]
    asked = one.tick()
    assert new_keys(asked) == enough
    assert len(asked.run_requests or []) == 1
    one.accept(asked)
    later = queued(one, 2)
    assert new_keys(one.tick()) == []
    monkeypatch.setattr(drain_sensor, "LONGEST_WAIT_SECONDS", 0.0)  # of a run that hangs
    assert new_keys(one.tick()) == later
    monkeypatch.undo()
    assert new_keys(one.tick()) == []
    says(worker, messages_per_second=0.0)
    assert new_keys(one.tick()) == later
    says(worker, messages_per_second=5000.0)
    one.instance.report_run_canceled(run)
    assert new_keys(one.tick()) == later
    assert first[0] not in later
    worker.remove()


def test_keys_leave_the_waiting_list_only_when_the_instance_has_their_partitions(
    ticking: Any,
) -> None:
    one: Ticking = ticking(drain_by="command")
    keys = queued(one, 3)
    lost = one.tick()
    repeated = one.tick()
    assert new_keys(repeated) == new_keys(lost) == keys
    assert repeated.run_requests == lost.run_requests
    assert one.store().sealed(10) == keys
    one.accept(repeated)
    after = one.tick()
    assert new_keys(after) == []
    assert not after.run_requests
    assert after.skip_reason is not None
    assert one.store().sealed(10) == []
    later = queued(one, 1)
    assert new_keys(one.tick()) == later


def test_a_run_takes_at_most_64_slots_and_a_tick_a_bounded_number(
    ticking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain_sensor, "KEYS_PER_TICK", 150)
    one: Ticking = ticking(drain_by="command")
    keys = queued(one, 200)
    sizes = []
    for expected in (keys[:150], keys[150:]):
        result = one.tick()
        assert new_keys(result) == expected
        for request in result.run_requests or []:
            start, end = request.tags[RANGE_START_TAG], request.tags[RANGE_END_TAG]
            sizes.append(keys.index(end) - keys.index(start) + 1)
        one.accept(result)
    assert sizes == [64, 64, 22, 50]


def test_a_tick_leaves_slots_that_are_not_on_this_disk_to_the_machine_that_has_them(
    ticking: Any, tmp_path: Path
) -> None:
    """Another machine has the same node name, here none, and the same state store."""
    one: Ticking = ticking(drain_by="command")
    other: Ticking = ticking(drain_by="command", storage_root=tmp_path / "other")
    theirs, ours = queued(other, 2), queued(one, 3)
    result = one.tick()
    assert new_keys(result) == ours
    one.accept(result)
    after = one.tick()
    assert not after.run_requests
    assert "2 sealed slots are of node local, but not on the disk of this machine" in str(
        after.skip_reason
    )
    assert "a node_id of its own" in str(after.skip_reason)
    assert new_keys(other.tick()) == theirs
    assert one.store().sealed(10) == theirs


def test_a_slot_that_was_stored_before_any_tick_saw_it_is_registered(ticking: Any) -> None:
    one: Ticking = ticking(drain_by="command")
    (key,) = queued(one, 1)
    ship_pipeline(one.settings)
    assert find_sealed(one.settings.layout, key) is None
    assert new_keys(one.tick()) == [key]


def test_new_slots_do_not_wait_behind_many_that_were_registered_before(
    ticking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain_sensor, "KEYS_PER_TICK", 10)
    one: Ticking = ticking(drain_by="command")
    old = [f"20260101T000000{n:03d}Z-local-s0-{n:06d}" for n in range(1, 500)]
    one.instance.add_dynamic_partitions(one.names.partition_set, old)
    new = queued(one, 2)
    one.store().add_sealed(old)  # as every worker does that starts while the store is down
    assert new_keys(one.tick()) == new


def test_ticks_keep_the_same_workers_and_ship_what_they_seal(ticking: Any) -> None:
    one: Ticking = ticking(process_count=2, seal_messages=50, commit_messages=25)
    publish(one.settings, files(400))
    one.tick()
    wait_for(lambda: len(pids(one.settings)) == 2, one.settings, "the workers")
    first = pids(one.settings)
    for _ in range(5):
        one.accept(one.tick())
    wait_until_handled(one.settings, 400)
    one.accept(one.tick())
    assert pids(one.settings) == first
    keys = one.instance.get_dynamic_partitions(one.names.partition_set)
    assert len(keys) >= 4


def test_a_tick_registers_the_pieces_of_a_slot_that_is_divided(ticking: Any) -> None:
    one: Ticking = ticking(
        seal_messages=60,
        commit_messages=30,
        message_format="json",
        name_fields="id",
        split_by=["tenant"],
        key="tenant={tenant}/{archive}",
    )
    bodies = [b'{"id": "m%d", "tenant": "t%d"}' % (n, n % 3) for n in range(60)]
    publish_bodies(one.settings, bodies)
    one.tick()
    wait_until_handled(one.settings, 60)
    events: list[dg.AssetMaterialization] = []

    def registered() -> bool:
        result = one.tick()
        one.accept(result)
        events.extend(e for e in result.asset_events if isinstance(e, dg.AssetMaterialization))
        return len(events) >= 3

    wait_for(registered, one.settings, "the pieces")
    assert {event.metadata["split"].value for event in events} == {f"tenant=t{n}" for n in range(3)}
    assert {event.metadata["messages"].value for event in events} == {20}
    assert {event.partition for event in events} == set(
        one.instance.get_dynamic_partitions(one.names.partition_set)
    )
    store = one.settings.store.open()
    keys = [str(event.partition) for event in events]
    assert len(list(upload_partitions(keys, one.settings, store))) == 3
    stored = (one.settings.storage_root.parent / "objects").glob("tenant=*")
    assert {path.name for path in stored} == {"tenant=t0", "tenant=t1", "tenant=t2"}


def test_with_drain_by_command_a_tick_starts_no_worker(ticking: Any) -> None:
    one: Ticking = ticking(drain_by="command")
    publish(one.settings, files(10))
    one.tick()
    time.sleep(1)
    assert pids(one.settings) == set()


@pytest.mark.parametrize(
    "rubbish", ["", "rubbish", "[1, 2]", '{"at": "x"}', '{"at": 1e999}', "\ud800", "null"]
)
def test_a_cursor_that_cannot_be_read_starts_the_rates_anew(ticking: Any, rubbish: str) -> None:
    one: Ticking = ticking(drain_by="command")
    one.cursor = rubbish
    result = one.tick()
    assert result.skip_reason is not None
    assert result.skip_reason.skip_message is not None
    assert result.skip_reason.skip_message.startswith("0 messages/s;")
    assert '"at"' in (result.cursor or "")


def test_a_tick_says_what_goes_on(ticking: Any) -> None:
    one: Ticking = ticking(drain_by="command")
    one.tick()
    one.store().record(Commit(stored_messages=5_000, duplicates=2), root_id="root", ttl_seconds=10)
    time.sleep(0.1)
    said = one.tick().skip_reason
    assert said is not None
    assert "; 5,000 stored, 2 duplicates, 0 dead letters" in str(said.skip_message)
    assert not str(said.skip_message).startswith("0 messages/s")


def test_a_tick_says_which_worker_reads_what_where_the_queue_gives_each_a_part(
    ticking: Any,
) -> None:
    one: Ticking = ticking(drain_by="command")
    workers = [StatusReport(one.settings.layout, number) for number in range(10)]
    workers[0].status.reads = "orders[0-2]"
    for worker in workers:
        worker.write(now=True)
    said = str(one.tick().skip_reason)
    assert "in total; worker 0 reads orders[0-2]" in said
    assert "worker 1" not in said  # of which nothing is known
    for worker in workers:  # a rebalance
        worker.status.reads = f"orders[{worker.status.worker}]"
        worker.write(now=True)
    said = str(one.tick().skip_reason)
    assert "in total; worker 0 reads orders[0]; worker 1 reads orders[1]; " in said
    assert "worker 7 reads orders[7]; and 2 more" in said
    for worker in workers:
        worker.remove()


def test_a_tick_says_that_messages_became_dead_letters_and_why(ticking: Any) -> None:
    one: Ticking = ticking()
    one.tick()
    publish_bodies(one.settings, [b"no JSON"] * 30)
    wait_until_handled(one.settings, 30)
    wait_for(
        lambda: "30 messages became dead letters" in str(one.tick().skip_reason),
        one.settings,
        "the sentence",
    )


def assert_trouble_is_said(one: Ticking, *expected: str, secret: str) -> None:
    """Ticks are short before and while there is trouble, and fail with its sentence."""

    def troubled() -> bool:
        began = time.monotonic()
        try:
            one.tick()
        except DrainTrouble as trouble:
            assert time.monotonic() - began < LONGEST_TICK_SECONDS
            assert all(part in str(trouble) for part in expected), str(trouble)
            assert secret not in str(trouble)
            return True
        assert time.monotonic() - began < LONGEST_TICK_SECONDS
        return False

    wait_for(troubled, one.settings, "the trouble")


def test_a_broker_that_refuses_connections_makes_the_tick_fail_with_a_sentence(
    ticking: Any, redis_server: RedisServer
) -> None:
    port = free_port()
    url = f"amqp://someone:top-secret@127.0.0.1:{port}/%2F"
    one: Ticking = ticking(
        source=RabbitMQ(url=url, queue="q"),
        state=RedisState(url=redis_server.url(), key_prefix=f"q{port}"),
    )
    assert_trouble_is_said(
        one,
        f"worker 0: could not connect to queue 'q' on RabbitMQ (amqp://someone@127.0.0.1:{port}",
        "is the broker running, and can this machine reach it?",
        secret="top-secret",
    )


def test_a_tick_waits_for_no_broker_that_does_not_answer(
    ticking: Any, rabbitmq: RabbitMQServer
) -> None:
    source = RabbitMQ(url=rabbitmq.url, queue="q", connect_timeout_seconds=1)
    one: Ticking = ticking(source=source)
    rabbitmq.pause()
    try:
        assert_trouble_is_said(
            one, f"@127.0.0.1:{rabbitmq.port}", "worker 0: could not", secret=rabbitmq.password
        )
    finally:
        rabbitmq.resume()
    wait_for(lambda: quiet(one), one.settings, "the all-clear")


def quiet(one: Ticking) -> bool:
    try:
        return one.tick().skip_reason is not None
    except DrainTrouble:
        return False


def test_a_state_store_that_is_gone_makes_the_tick_fail_with_a_sentence(ticking: Any) -> None:
    port = free_port()
    state = RedisState(url=f"redis://:top-secret@127.0.0.1:{port}/0", timeout_seconds=1)
    one: Ticking = ticking(state=state, drain_by="command")
    assert_trouble_is_said(
        one, f"redis://127.0.0.1:{port}/0 failed", "is Redis running", secret="top-secret"
    )


def test_a_state_store_that_hangs_holds_a_tick_up_for_about_a_second(
    ticking: Any, redis_server: RedisServer
) -> None:
    state = RedisState(url=redis_server.url(), key_prefix="hung", timeout_seconds=30)
    one: Ticking = ticking(state=state, drain_by="command")
    redis_server.pause()
    try:
        began = time.monotonic()
        with pytest.raises(DrainTrouble, match="is Redis running"):
            one.tick()
        assert time.monotonic() - began < LONGEST_TICK_SECONDS
    finally:
        redis_server.resume()
    wait_for(lambda: quiet(one), one.settings, "the all-clear")


def test_slots_are_registered_though_a_worker_has_trouble(ticking: Any) -> None:
    one: Ticking = ticking(min_free_bytes=10**18)
    keys = queued(one, 2)
    results = []

    def troubled() -> bool:
        results.append(one.tick())
        return bool(supervisor_for(one.settings.intake()).problems())

    wait_for(troubled, one.settings, "the worker's trouble")
    assert new_keys(one.tick()) == keys
    one.accept(results[-1])
    with pytest.raises(DrainTrouble, match=r"less than min_free_bytes .*free some space"):
        one.tick()


def test_while_the_store_is_known_to_be_down_no_run_is_asked_for_and_the_check_is_red(
    ticking: Any,
) -> None:
    """Slots become partitions all the same. The check is told when it changes, not at each tick."""
    one: Ticking = ticking(drain_by="command")

    def checks(result: Any) -> list[bool]:
        return [
            event.passed
            for event in result.asset_events
            if getattr(event, "check_name", "") == "store_reachable"
        ]

    assert checks(one.tick()) == [True]
    note_trouble(one.settings.layout, "connection refused")
    keys = queued(one, 2)
    down = one.tick()
    assert new_keys(down) == keys
    assert not down.run_requests
    assert checks(down) == [False]
    one.accept(down)
    said = one.tick()
    assert "the object store has not answered since" in str(said.skip_reason)
    assert "connection refused" in str(said.skip_reason)
    assert checks(said) == []
    end_trouble(one.settings.layout)
    later = queued(one, 1)
    back = one.tick()
    assert checks(back) == [True]
    assert new_keys(back) == later
    assert len(back.run_requests or []) == 1


def test_while_the_store_refuses_us_the_check_is_red_and_runs_are_asked_for(ticking: Any) -> None:
    one: Ticking = ticking(drain_by="command")
    one.tick()
    note_refusal(one.settings.layout, "403 AccessDenied", by_upload=True)
    queued(one, 1)
    asked = one.tick()
    assert len(asked.run_requests or []) == 1
    (red,) = (one for one in asked.asset_events if isinstance(one, dg.AssetCheckEvaluation))
    assert (red.check_name, red.passed) == ("store_reachable", False)
    assert "403 AccessDenied" in str(red.description)
    one.accept(asked)
    said = one.tick()
    assert "has refused us since" in str(said.skip_reason)


def test_a_trouble_that_lasts_fails_a_tick_now_and_then_and_is_a_line_of_log_between(
    ticking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tick that fails leaves 40 lines of traceback in the daemon's log."""
    one: Ticking = ticking(drain_by="command")
    worker = StatusReport(one.settings.layout, 0)

    def trouble(problem: str) -> None:
        worker.doing("trouble", SourceUnavailable(problem))
        worker.write(now=True)

    def tick() -> str:
        context = dg.build_sensor_context(
            instance=one.instance, resources=build_resources(one.settings)
        )
        try:
            result = one.sensor(context)
        except DrainTrouble as error:
            return f"failed: {error}"
        assert isinstance(result, dg.SensorResult)
        assert result.skip_reason is not None
        return str(result.skip_reason.skip_message)

    trouble("1,000 bytes free")
    assert tick() == "failed: worker 0: 1,000 bytes free"
    trouble("999 bytes free")
    assert tick() == "in trouble: worker 0: 999 bytes free"
    trouble("no such queue")
    assert tick() == "failed: worker 0: no such queue"
    assert tick() == "in trouble: worker 0: no such queue"
    monkeypatch.setattr(drain_sensor, "FAIL_AGAIN_SECONDS", 0.0)
    assert tick() == "failed: worker 0: no such queue"
    monkeypatch.undo()
    worker.doing("draining")
    worker.write(now=True)
    assert tick().startswith("0 messages/s")
    trouble("no such queue")
    assert tick() == "failed: worker 0: no such queue"
    worker.remove()


def test_while_nothing_can_be_processed_new_slots_wait_without_runs(
    ticking: Any,
) -> None:
    one: Ticking = ticking(drain_by="command", process=Script(partitions_per_run=2))
    note_processor_trouble(one.settings.layout, "http://handler works for no item")
    keys = queued(one, 3)
    down = one.tick()
    assert new_keys(down) == keys
    assert not down.run_requests
    one.accept(down)
    assert "http://handler works for no item" in str(one.tick().skip_reason)
    end_processor_trouble(one.settings.layout)
    queued(one, 3)
    requests = one.tick().run_requests
    assert requests is not None
    assert len(requests) == 2  # of two slots each at most
