"""What every state store does, run against Redis and SQLite; then what is special to each."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from fuploader_dagster.errors import SlotInUse, StateUnavailable
from fuploader_dagster.resources.redis_state import RedisState
from fuploader_dagster.resources.sqlite_state import SqliteState
from fuploader_dagster.state import Commit, SlotCount, Snapshot, StateSettings, StateStore
from tests.servers.redis import RedisServer

ROOT_A, ROOT_B = "root a", "root-b"


@pytest.fixture(params=["redis", "sqlite"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> StateSettings:
    """Each backend with nothing in it."""
    if request.param == "sqlite":
        return SqliteState(path=tmp_path / "state" / "state.sqlite")
    server: RedisServer = request.getfixturevalue("redis_server")
    return redis_settings(server)


def redis_settings(server: RedisServer) -> RedisState:
    return RedisState(url=server.url(), key_prefix=f"test-{secrets.token_hex(4)}")  # type: ignore[arg-type]


@pytest.fixture
def store(settings: StateSettings) -> Iterator[StateStore]:
    opened = settings.store(pipeline="aweme", node="n1")
    opened.open()
    yield opened
    opened.close()


def record(store: StateStore, *slots: SlotCount, root: str = ROOT_A, **totals: int) -> None:
    store.record(Commit(slots=slots, **totals), root_id=root, ttl_seconds=60)  # type: ignore[arg-type]


def test_an_empty_store_gives_an_empty_snapshot(store: StateStore) -> None:
    assert store.snapshot() == Snapshot()
    assert store.highest_number(0) == 0
    assert store.sealed(10) == []


def test_construction_opens_nothing_and_open_and_close_may_be_repeated(
    settings: StateSettings,
) -> None:
    store = settings.store(pipeline="p", node="")
    store.close()
    store.open()
    store.open()
    store.close()
    store.close()
    store.open()
    assert store.snapshot() == Snapshot()
    store.close()


def test_a_commit_stores_slots_absolutely_and_totals_as_differences(store: StateStore) -> None:
    record(store, SlotCount(0, 7, 10, 1_000), stored_messages=10, stored_bytes=1_000, duplicates=1)
    record(store, SlotCount(0, 7, 15, 1_500), SlotCount(1, 2, 1, 5), stored_messages=6)
    record(store, dead_letters=2, stored_bytes=505)
    assert store.snapshot() == Snapshot(
        slots=(SlotCount(0, 7, 15, 1_500), SlotCount(1, 2, 1, 5)),
        owners={0: ROOT_A, 1: ROOT_A},
        sealed_waiting=0,
        stored_messages=16,
        stored_bytes=1_505,
        duplicates=1,
        dead_letters=2,
    )


def test_counts_beyond_32_bits_are_exact(store: StateStore) -> None:
    large = 2**52 + 1
    record(store, SlotCount(0, 1, 3_000_000_000, large), stored_bytes=large)
    record(store, stored_bytes=large)
    snapshot = store.snapshot()
    assert snapshot.slots == (SlotCount(0, 1, 3_000_000_000, large),)
    assert snapshot.stored_bytes == 2 * large


def test_the_highest_number_of_a_slot_never_falls(store: StateStore) -> None:
    for number in (9, 10, 3):
        record(store, SlotCount(0, number, 1, 1))
    assert store.highest_number(0) == 10
    assert store.highest_number(1) == 0
    assert store.snapshot().slots == (SlotCount(0, 3, 1, 1),)


def test_sealed_keys_wait_in_lexical_order_until_they_are_forgotten(store: StateStore) -> None:
    store.add_sealed(["k3", "k1"])
    commit = Commit(sealed=["k2", "k10"])
    store.record(commit, root_id=ROOT_A, ttl_seconds=60)
    assert store.sealed(3) == ["k1", "k10", "k2"]
    assert store.sealed(100) == ["k1", "k10", "k2", "k3"]
    assert store.sealed(0) == []
    assert store.snapshot().sealed_waiting == 4
    store.forget_sealed(["k1", "k10", "never queued"])
    assert store.sealed(100) == ["k2", "k3"]


def test_queueing_a_key_twice_or_none_at_all_changes_nothing(store: StateStore) -> None:
    store.add_sealed(["k1"])
    store.add_sealed(["k1"])
    store.add_sealed([])
    store.forget_sealed([])
    assert store.sealed(10) == ["k1"]


def test_ten_thousand_sealed_keys_go_through_one_commit(store: StateStore) -> None:
    keys = [f"20261120T234501{n:04}Z-node1-s0-{n:06}" for n in range(10_000)]
    store.record(Commit(sealed=keys), root_id=ROOT_A, ttl_seconds=60)
    assert store.sealed(20_000) == keys


def test_a_slot_is_claimed_by_one_root_at_a_time_and_the_error_names_the_holder(
    store: StateStore,
) -> None:
    store.claim([0, 1], ROOT_A, 60)
    with pytest.raises(SlotInUse, match=f"slot 1 .*{ROOT_A}"):
        store.claim([1], ROOT_B, 60)
    assert store.snapshot().owners == {0: ROOT_A, 1: ROOT_A}


def test_a_claim_takes_all_slots_or_none(store: StateStore) -> None:
    store.claim([1], ROOT_A, 60)
    with pytest.raises(SlotInUse):
        store.claim([0, 1, 2], ROOT_B, 60)
    assert store.snapshot().owners == {1: ROOT_A}


def test_the_holder_renews_its_claim_by_claiming_again(store: StateStore) -> None:
    store.claim([0], ROOT_A, 0.3)
    store.claim([0], ROOT_A, 60)
    time.sleep(0.4)
    with pytest.raises(SlotInUse):
        store.claim([0], ROOT_B, 60)


def test_a_commit_renews_the_claims_of_its_slots(store: StateStore) -> None:
    store.claim([0], ROOT_A, 0.3)
    record(store, SlotCount(0, 1, 1, 1))
    time.sleep(0.4)
    with pytest.raises(SlotInUse):
        store.claim([0], ROOT_B, 60)


def test_a_claim_that_was_not_renewed_lapses(store: StateStore) -> None:
    store.claim([0], ROOT_A, 0.2)
    time.sleep(0.3)
    assert store.snapshot().owners == {}
    store.claim([0], ROOT_B, 60)
    assert store.snapshot().owners == {0: ROOT_B}


def test_only_the_holder_releases_a_claim(store: StateStore) -> None:
    store.claim([0, 1], ROOT_A, 60)
    store.release([0, 1], ROOT_B)
    assert store.snapshot().owners == {0: ROOT_A, 1: ROOT_A}
    store.release([0, 5], ROOT_A)
    assert store.snapshot().owners == {1: ROOT_A}
    store.claim([0], ROOT_B, 60)


def test_a_commit_to_a_slot_of_another_root_changes_nothing_at_all(store: StateStore) -> None:
    store.claim([1], ROOT_B, 60)
    before = store.snapshot()
    with pytest.raises(SlotInUse):
        store.record(
            Commit(
                slots=[SlotCount(0, 1, 1, 1), SlotCount(1, 1, 1, 1)],
                sealed=["k"],
                stored_messages=1,
            ),
            root_id=ROOT_A,
            ttl_seconds=60,
        )
    assert store.snapshot() == before
    assert store.sealed(10) == []
    assert store.highest_number(0) == 0


def test_pipelines_and_nodes_do_not_see_each_other(settings: StateSettings) -> None:
    stores = [
        settings.store(pipeline=pipeline, node=node)
        for pipeline, node in (("a", "1"), ("a", "2"), ("b", "1"))
    ]
    for number, one in enumerate(stores, start=1):
        one.open()
        one.claim([0], f"root{number}", 60)
        record(one, SlotCount(0, number, 1, 1), root=f"root{number}")
        one.add_sealed([f"key{number}"])
    for number, one in enumerate(stores, start=1):
        assert one.highest_number(0) == number
        assert one.sealed(10) == [f"key{number}"]
        assert one.snapshot().owners == {0: f"root{number}"}
        one.close()


def test_what_one_connection_stores_another_one_sees(settings: StateSettings) -> None:
    one, two = (settings.store(pipeline="p", node="n") for _ in range(2))
    record(one, SlotCount(0, 1, 2, 3))
    assert two.snapshot().slots == (SlotCount(0, 1, 2, 3),)
    one.close()
    assert two.highest_number(0) == 1
    two.close()


def test_threads_may_use_one_store_at_once(store: StateStore) -> None:
    def work(slot: int) -> None:
        for number in range(1, 26):
            record(store, SlotCount(slot, number, number, number), stored_messages=1)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    snapshot = store.snapshot()
    assert snapshot.stored_messages == 100
    assert snapshot.slots == tuple(SlotCount(slot, 25, 25, 25) for slot in range(4))


# Redis alone


@pytest.fixture
def in_redis(redis_server: RedisServer) -> Iterator[StateStore]:
    store = redis_settings(redis_server).store(pipeline="p", node="n")
    store.open()
    yield store
    store.close()


def test_redis_gets_one_command_per_commit(in_redis: StateStore, redis_server: RedisServer) -> None:
    commit = Commit(
        slots=[SlotCount(slot, 1, 1, 1) for slot in range(8)],
        sealed=["a", "b"],
        stored_messages=500,
    )
    in_redis.record(commit, root_id=ROOT_A, ttl_seconds=60)  # the first one may load the script
    with redis_server.client() as client:
        before = client.info("stats")["total_commands_processed"]
        scripts_before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        for _ in range(10):
            in_redis.record(commit, root_id=ROOT_A, ttl_seconds=60)
        processed = client.info("stats")["total_commands_processed"] - before
        scripts = client.info("commandstats")["cmdstat_evalsha"]["calls"] - scripts_before
    assert scripts == 10
    calls_inside_a_script = 8 * 4 + 8 + 2 + 1 + 1  # the server counts those as well
    assert processed <= 10 * (calls_inside_a_script + 1) + 5


def test_redis_may_be_flushed_between_two_calls(
    in_redis: StateStore, redis_server: RedisServer
) -> None:
    record(in_redis, SlotCount(0, 5, 1, 1), stored_messages=3)
    redis_server.flush()
    with redis_server.client() as client:
        client.script_flush()
    assert in_redis.snapshot() == Snapshot()
    record(in_redis, SlotCount(0, 6, 1, 1), stored_messages=1)
    assert in_redis.snapshot().stored_messages == 1
    assert in_redis.highest_number(0) == 6


def test_redis_away_is_said_with_its_address_and_without_its_password_and_passes(
    redis_server: RedisServer,
) -> None:
    store = redis_settings(redis_server).store(pipeline="p", node="n")
    store.open()
    record(store, SlotCount(0, 1, 1, 1))
    redis_server.kill()
    try:
        for call in (store.open, store.snapshot, lambda: store.sealed(1)):
            with pytest.raises(StateUnavailable, match=f"127.0.0.1:{redis_server.port}") as caught:
                call()
            assert redis_server.password not in str(caught.value)
    finally:
        redis_server.start()
    assert store.highest_number(0) == 1
    store.close()


def test_a_redis_that_hangs_is_an_error_after_the_timeout(redis_server: RedisServer) -> None:
    settings = RedisState(url=redis_server.url(), timeout_seconds=0.5)  # type: ignore[arg-type]
    store = settings.store(pipeline="p", node="n")
    store.open()
    redis_server.pause()
    try:
        begun = time.monotonic()
        with pytest.raises(StateUnavailable):
            store.snapshot()
        assert time.monotonic() - begun < 3
    finally:
        redis_server.resume()
    store.snapshot()
    store.close()


def test_a_wrong_redis_password_is_said_without_showing_it(redis_server: RedisServer) -> None:
    url = f"redis://:wrong-secret@127.0.0.1:{redis_server.port}/0"
    store = RedisState(url=url).store(pipeline="p", node="n")  # type: ignore[arg-type]
    with pytest.raises(StateUnavailable, match="check user and password") as caught:
        store.open()
    assert "wrong-secret" not in str(caught.value)


def test_keys_that_something_else_uses_are_said(redis_server: RedisServer) -> None:
    settings = redis_settings(redis_server)
    with redis_server.client() as client:
        client.set(f"{settings.key_prefix}:{{p:n}}:slots", "not a hash")
    store = settings.store(pipeline="p", node="n")
    with pytest.raises(StateUnavailable, match="key_prefix"):
        record(store, SlotCount(0, 1, 1, 1))
    store.close()


@pytest.mark.parametrize("url", ["http://:hunter2@host/0", "redis://:hunter2@host:port/0"])
def test_an_unusable_redis_url_names_the_key_and_hides_the_value(url: str) -> None:
    with pytest.raises(ValidationError, match="url must look like") as caught:
        RedisState(url=url)  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)


# SQLite alone


@pytest.mark.parametrize("also_its_log", [False, True])
def test_the_state_file_may_vanish_while_it_is_open(tmp_path: Path, also_its_log: bool) -> None:
    settings = SqliteState(path=tmp_path / "state.sqlite")
    one, two = (settings.store(pipeline="p", node="n") for _ in range(2))
    for store in (one, two):
        record(store, SlotCount(0, 5, 1, 1), stored_messages=3)
    settings.path.unlink()
    if also_its_log:
        for suffix in ("-wal", "-shm"):
            (tmp_path / f"state.sqlite{suffix}").unlink()
    assert one.snapshot() == Snapshot()
    record(one, SlotCount(0, 6, 1, 1), stored_messages=1)
    record(two, SlotCount(1, 1, 1, 1), stored_messages=1)
    one.close()
    assert two.snapshot().stored_messages == 2
    two.close()
    again = settings.store(pipeline="p", node="n")
    assert again.snapshot().stored_messages == 2
    again.close()


def test_a_state_folder_that_vanishes_is_made_again(tmp_path: Path) -> None:
    settings = SqliteState(path=tmp_path / "folder" / "state.sqlite")
    store = settings.store(pipeline="p", node="n")
    store.open()
    (tmp_path / "folder").rename(tmp_path / "elsewhere")
    assert store.snapshot() == Snapshot()
    assert settings.path.exists()
    store.close()


def test_a_state_file_that_is_none_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"this is not a database at all" * 100)
    store = SqliteState(path=path).store(pipeline="p", node="n")
    with pytest.raises(StateUnavailable, match="may be removed"):
        store.open()
    path.unlink()
    store.open()
    store.close()
