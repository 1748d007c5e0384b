"""What every state store does, run against Redis and SQLite; then what is special to each."""

from __future__ import annotations

import random
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import ValidationError

from fuploader_dagster.contracts.state import Commit, SlotCount, Snapshot, StateSettings, StateStore
from fuploader_dagster.errors import SlotInUse, StateRefused, StateUnavailable
from fuploader_dagster.resources.states.redis import RedisState
from fuploader_dagster.resources.states.sqlite import SqliteState
from fuploader_dagster.testing import StateStoreContract
from fuploader_dagster.testing.state_store_contract import ROOT_A, ROOT_B, record
from tests.servers.redis import RedisServer


def redis_settings(server: RedisServer) -> RedisState:
    return RedisState(url=server.url(), key_prefix=f"test-{secrets.token_hex(4)}")  # type: ignore[arg-type]


class TestStateStore(StateStoreContract):
    @pytest.fixture(params=["redis", "sqlite"])
    def settings(self, request: pytest.FixtureRequest, tmp_path: Path) -> StateSettings:
        """Each backend with nothing in it."""
        if request.param == "sqlite":
            return SqliteState(path=tmp_path / "state" / "state.sqlite")
        server: RedisServer = request.getfixturevalue("redis_server")
        return redis_settings(server)


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
        assert time.monotonic() - begun < 60
    finally:
        redis_server.resume()
    store.snapshot()
    store.close()


def test_a_wrong_redis_password_is_said_without_showing_it(redis_server: RedisServer) -> None:
    url = f"redis://:wrong-secret@127.0.0.1:{redis_server.port}/0"
    store = RedisState(url=url).store(pipeline="p", node="n")  # type: ignore[arg-type]
    with pytest.raises(StateRefused, match="check user and password") as caught:
        store.open()
    assert "wrong-secret" not in str(caught.value)


def test_keys_that_something_else_uses_are_said(redis_server: RedisServer) -> None:
    settings = redis_settings(redis_server)
    with redis_server.client() as client:
        client.set(f"{settings.key_prefix}:{{p:n}}:slots", "not a hash")
    store = settings.store(pipeline="p", node="n")
    with pytest.raises(StateRefused, match="key_prefix"):
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


@pytest.mark.parametrize("value", ["abc", "9" * 400, -7, 1.5, 10**18, b"\xff", None])
def test_a_highest_number_that_is_none_is_not_believed_and_written_over(
    tmp_path: Path, value: object
) -> None:
    settings = SqliteState(path=tmp_path / "state.sqlite")
    store = settings.store(pipeline="p", node="n")
    record(store, SlotCount(0, 5, 1, 1))
    with sqlite3.connect(settings.path) as db:
        db.execute("UPDATE highest_numbers SET number = ?", (value,))
    assert store.highest_number(0) == 0
    record(store, SlotCount(0, 6, 1, 1))
    assert store.highest_number(0) == 6
    store.close()


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
    with pytest.raises(StateRefused, match="you may remove it"):
        store.open()
    path.unlink()
    store.open()
    store.close()


def test_a_state_file_with_tables_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE slots (something TEXT)")
    store = SqliteState(path=path).store(pipeline="p", node="n")
    with pytest.raises(StateRefused, match="not a state file of ours"):
        record(store, SlotCount(0, 1, 1, 1))
    store.close()


def test_a_state_file_that_another_process_holds_is_tried_again(tmp_path: Path) -> None:
    settings = SqliteState(path=tmp_path / "state.sqlite", busy_timeout_seconds=0.1)
    store = settings.store(pipeline="p", node="n")
    store.open()
    with closing(sqlite3.connect(settings.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateUnavailable, match="locked"):
            record(store, SlotCount(0, 1, 1, 1))
    record(store, SlotCount(0, 1, 1, 1))
    store.close()


NONSENSE: list[object] = ["abc", "9" * 400, -7, 1.5, 2**62, float("inf"), b"\xff", None]


@pytest.mark.parametrize("value", NONSENSE)
@pytest.mark.parametrize(
    "column", ["slots.messages", "slots.number", "totals.duplicates", "totals.stored_bytes"]
)
def test_a_count_that_is_none_is_left_out_and_written_over(
    tmp_path: Path, column: str, value: object
) -> None:
    settings = SqliteState(path=tmp_path / "state.sqlite")
    store = settings.store(pipeline="p", node="n")
    record(store, SlotCount(0, 5, 1, 1), SlotCount(1, 1, 1, 1), stored_messages=2)
    table, name = column.split(".")
    where = "WHERE slot = 0" if table == "slots" else ""
    with closing(sqlite3.connect(settings.path, isolation_level=None)) as db:
        db.execute(f"UPDATE {table} SET {name} = ? {where}", (value,))  # noqa: S608
    seen = store.snapshot()
    assert seen.stored_messages == 2
    assert SlotCount(1, 1, 1, 1) in seen.slots
    assert len(seen.slots) == (1 if table == "slots" else 2)
    record(store, SlotCount(0, 5, 2, 2), stored_bytes=3, duplicates=4)
    healed = store.snapshot()
    assert SlotCount(0, 5, 2, 2) in healed.slots
    assert (healed.stored_messages, healed.stored_bytes, healed.duplicates) == (2, 3, 4)
    store.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [("root_id", b"\xff"), ("root_id", None), ("lapses_at", "later"), ("lapses_at", None)],
)
def test_a_claim_that_is_none_holds_nobody_up(tmp_path: Path, column: str, value: object) -> None:
    settings = SqliteState(path=tmp_path / "state.sqlite")
    store = settings.store(pipeline="p", node="n")
    store.claim([0], ROOT_A, 60)
    with closing(sqlite3.connect(settings.path, isolation_level=None)) as db:
        db.execute(f"UPDATE claims SET {column} = ?", (value,))  # noqa: S608
    assert store.snapshot().owners == {}
    store.claim([0], ROOT_B, 60)
    assert store.snapshot().owners == {0: ROOT_B}
    store.close()


@pytest.mark.parametrize("lapses_at", [9e99, float("inf"), 2**62])
def test_a_claim_for_ever_is_cut_when_it_is_met(tmp_path: Path, lapses_at: float) -> None:
    settings = SqliteState(path=tmp_path / "state.sqlite")
    store = settings.store(pipeline="p", node="n")
    store.claim([0], ROOT_A, 60)
    with closing(sqlite3.connect(settings.path, isolation_level=None)) as db:
        db.execute("UPDATE claims SET lapses_at = ?", (lapses_at,))
        with pytest.raises(SlotInUse):
            store.claim([0], ROOT_B, 30)
        (cut,) = db.execute("SELECT lapses_at FROM claims").fetchone()
    assert cut <= time.time() + 30
    store.close()


def test_sealed_keys_that_are_no_text_are_left_out_and_bytes_of_no_encoding_can_be_forgotten(
    tmp_path: Path,
) -> None:
    settings = SqliteState(path=tmp_path / "state.sqlite")
    store = settings.store(pipeline="p", node="n")
    store.add_sealed(["k1"])
    with closing(sqlite3.connect(settings.path, isolation_level=None)) as db:
        for value in ("CAST(x'ff80' AS TEXT)", "CAST(x'eda080' AS TEXT)", "x'00ff'"):
            db.execute(f"INSERT INTO sealed VALUES ('p', 'n', {value})")  # noqa: S608
    keys = store.sealed(10)
    assert keys[0] == "k1"
    assert len(keys) == store.snapshot().sealed_waiting == 3
    store.forget_sealed(keys)
    assert store.sealed(10) == []
    assert store.snapshot().sealed_waiting == 0
    store.close()


USES: list[Callable[[StateStore], object]] = [
    lambda store: store.open(),
    lambda store: store.snapshot(),
    lambda store: record(store, SlotCount(0, 6, 1, 1), stored_messages=1),
    lambda store: store.forget_sealed(store.sealed(1_000)),
    lambda store: store.highest_number(0),
]


def test_whatever_bits_of_the_state_file_change_only_errors_of_ours_come(tmp_path: Path) -> None:
    """With 8 changed bits each, half of the time all in the first page: that is the schema."""
    dice = random.Random(6)
    settings = SqliteState(path=tmp_path / "state.sqlite")
    store = settings.store(pipeline="p", node="n")
    store.add_sealed([f"k{number}" for number in range(300)])
    record(store, SlotCount(0, 5, 6, 7), stored_messages=9)
    store.close()
    good = settings.path.read_bytes()
    refused = 0
    for turn in range(150):
        content = bytearray(good)
        for _ in range(8):
            content[dice.randrange(len(good) if turn % 2 else 4096)] ^= 1 << dice.randrange(8)
        for ending in ("-wal", "-shm"):
            settings.path.with_name(settings.path.name + ending).unlink(missing_ok=True)
        settings.path.write_bytes(content)
        store = settings.store(pipeline="p", node="n")
        for use in USES:
            try:
                use(store)
            except (StateRefused, StateUnavailable, SlotInUse) as error:
                refused += 1
                assert error.hint
        store.close()
    assert refused > 20
