"""What strangers put into a pipeline's keys in Redis, and what a clock set back does to claims."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import redis

from fuploader_dagster.contracts.state import HIGHEST_NUMBER, Claim, SlotCount, Snapshot, StateStore
from fuploader_dagster.errors import SlotInUse
from fuploader_dagster.resources.states.redis import RedisState
from fuploader_dagster.testing.state_store_contract import ROOT_A, ROOT_B, record
from tests.contract.states.test_redis_refusals import looked
from tests.servers.ports import wait_until
from tests.servers.redis import RedisServer

EIGHT_HOURS_MS = 8 * 3600 * 1000
NO_NUMBERS = {
    "text": "abc",
    "400 digits": "9" * 400,
    "5,000 digits": "9" * 5000,
    "18 digits": "9" * 18,
    "negative": "-7",
    "a fraction": "1.5",
    "nothing": "",
    "nan": "nan",
    "inf": "inf",
    "hexadecimal": "0x10",
    "Arabic digits": "\u0663",
    "no UTF-8": b"\xff\xfe",
    "three words": "x y z",
    "two numbers": "1 2",
    "many numbers": "1 2 3 4",
    "a line": "5\n",
    "blanks": " 5",
    "a zero byte": "5\x00",
    "a claim": "99999999999999999 somebody",
}


@dataclass
class Keys:
    """A pipeline's keys, for writing into them."""

    client: redis.Redis
    settings: RedisState

    def name(self, key: str) -> str:
        return f"{self.settings.key_prefix}:{{docs:local}}:{key}"

    def put(self, key: str, field: str | bytes, value: str | bytes) -> None:
        self.client.hset(self.name(key), field, value)  # type: ignore[arg-type]

    def get(self, key: str, field: str) -> str | None:
        return self.client.hget(self.name(key), field)  # type: ignore[return-value]

    def store(self) -> StateStore:
        return self.settings.store(pipeline="docs", node="local")

    def now_ms(self) -> int:
        seconds, microseconds = self.client.time()  # type: ignore[misc]
        return int(seconds) * 1000 + int(microseconds) // 1000


@pytest.fixture
def keys(redis_server: RedisServer) -> Iterator[Keys]:
    prefix = f"test-{secrets.token_hex(4)}"
    with redis_server.client() as client:
        yield Keys(client, RedisState(url=redis_server.url(), key_prefix=prefix))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", NO_NUMBERS.values(), ids=NO_NUMBERS.keys())
def test_values_that_are_none_of_ours_are_passed_over_told_once_and_written_over(
    keys: Keys, value: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for key in ("highest", "slots", "claims", "epochs"):
        keys.put(key, "0", value)
        keys.put(key, "x\ny", value)
        keys.put(key, "9" * 5000, value)
        keys.put(key, b"\xff", value)
    for total in ("stored_messages", "stored_bytes", "duplicates", "dead_letters", "other"):
        keys.put("totals", total, value)
    store = keys.store()
    with caplog.at_level(logging.WARNING):
        assert store.highest_number(0) == 0
        for _ in range(3):
            store.snapshot()
            store.highest_number(0)
        told = [entry.getMessage() for entry in caplog.records]
    assert len(told) == len(set(told))
    assert any(keys.name("highest") in one and "'0'" in one for one in told)
    assert all(one.isprintable() and len(one) < 500 for one in told)
    found = looked(keys.settings)["state values"]
    assert found.verdict == "warning"
    assert found.found.isprintable()
    if value != NO_NUMBERS["a claim"]:
        (claim,) = store.take([Claim(0, ROOT_A, "here", 3, "a3")], 60)
        assert claim.epoch == 3
        record(store, SlotCount(0, 7, 3, 4), stored_messages=1, stored_bytes=1, duplicates=1)
        snapshot = store.snapshot()
        assert snapshot.slots == (SlotCount(0, 7, 3, 4),)
        assert snapshot.owners == {0: ROOT_A}
        assert store.highest_number(0) == 7
    if value not in ("-7", "9" * 18):  # numbers of this length may be counts
        assert store.snapshot().stored_messages in (0, 1)
    store.release([0], ROOT_A)
    store.close()


def test_a_total_that_would_overflow_begins_anew(keys: Keys) -> None:
    keys.put("totals", "stored_messages", str(2**63 - 1))
    store = keys.store()
    record(store, stored_messages=5)
    assert store.snapshot() == Snapshot(stored_messages=5)
    store.close()


def test_a_directory_number_above_the_bound_is_not_believed_and_one_below_is(keys: Keys) -> None:
    store = keys.store()
    keys.put("highest", "0", str(HIGHEST_NUMBER + 1))
    keys.put("highest", "1", str(HIGHEST_NUMBER))
    assert store.highest_number(0) == 0
    assert store.highest_number(1) == HIGHEST_NUMBER
    record(store, SlotCount(0, 12, 1, 1), SlotCount(1, 12, 1, 1))
    assert keys.get("highest", "0") == "12"
    assert keys.get("highest", "1") == str(HIGHEST_NUMBER)
    store.close()


def test_a_redis_whose_clock_went_back_by_eight_hours_keeps_a_claim_only_while_it_is_renewed(
    keys: Keys,
) -> None:
    """Such a claim stands there as one that runs for eight hours more."""
    holder, rival = keys.store(), keys.store()
    keys.put("claims", "0", f"{keys.now_ms() + EIGHT_HOURS_MS} {ROOT_A}")
    with pytest.raises(SlotInUse, match=ROOT_A):
        rival.claim([0], ROOT_B, 60)
    lapses_at = int(str(keys.get("claims", "0")).split()[0])
    assert lapses_at <= keys.now_ms() + 60_000
    holder.claim([0], ROOT_A, 60)  # it lives, and so keeps it
    with pytest.raises(SlotInUse):
        rival.claim([0], ROOT_B, 0.1)
    keys.put("claims", "0", f"{keys.now_ms() + EIGHT_HOURS_MS} {ROOT_A}")
    wait_until(
        lambda: taken(lambda: rival.claim([0], ROOT_B, 0.2)),
        seconds=120,
        what="the claim of a root that is gone",
        diagnose=lambda: str(keys.get("claims", "0")),
    )
    holder.close()
    rival.close()


def taken(claim: Callable[[], None]) -> bool:
    try:
        claim()
    except SlotInUse:
        return False
    return True


def test_the_clocks_of_the_machines_do_not_matter(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = keys.store(), keys.store()
    monkeypatch.setattr("time.time", lambda: 10_000.0)  # this machine believes in 1970
    one.claim([0], ROOT_A, 60)
    monkeypatch.setattr("time.time", lambda: 10_000_000_000.0)  # and this one in 2286
    with pytest.raises(SlotInUse):
        two.claim([0], ROOT_B, 60)
    assert two.snapshot().owners == {0: ROOT_A}
    one.close()
    two.close()


def test_strings_of_any_kind_leave_the_list_of_sealed_slots_as_they_came(keys: Keys) -> None:
    odd = [b"\xff\xfe", b"", b"a\x00b", b"x\ny", b"\x1b[31m", b"k" * 3000]
    keys.client.zadd(keys.name("sealed"), dict.fromkeys(odd, 0))  # type: ignore[arg-type]
    store = keys.store()
    found = store.sealed(100)
    assert len(found) == len(odd)
    store.forget_sealed(found)
    assert store.sealed(100) == []
    store.close()
