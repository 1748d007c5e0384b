"""Strings in the list of sealed slots that are no partition keys: no tick fails, no slot waits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.assets.partitions import node_in_names
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.resources.states.redis import RedisState
from fuploader_dagster.sensors import waiting_list
from tests.servers.redis import RedisServer
from tests.settings import pipeline, sealed
from tests.ticking import Ticking, new_keys

OURS = "20261126T150520476Z-local-s0-"
JUNK = {
    "Dagster refuses it": ["a...b"],
    "a newline": ["x\ny", f"{OURS}000001\n"],
    "a path": ["../../etc/passwd"],
    "markup": ["<img src=x onerror=alert(1)>"],
    "long": ["k" * 3000],
    "a key of ours with thousands of digits": [f"{OURS}{'9' * 3000}"],
    "nothing": [""],
    "terminal control": ["\x1b[31m"],
    "another node": ["20261126T150520476Z-other-s0-000001"],
    "a date that is none": ["20261399T150520476Z-local-s0-000001"],
    "many": [f"{'a' * 300}{number}" for number in range(400)],
    "many that come first": [f"!{number:05}" for number in range(2_000)],
}


def ticking(folder: Path, **values: Any) -> Ticking:
    source = EmbeddedQueue(path=folder / "queue")
    return Ticking(pipeline(folder, source=source, drain_by="command", **values))


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK.keys())
def test_the_first_tick_registers_the_real_slot_and_takes_the_junk_out(
    tmp_path: Path,
    junk: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(waiting_list, "KEYS_LOOKED_AT", 1_000)
    one = ticking(tmp_path)
    key = sealed(one.settings, {"a": b"1"}).seal.partition
    one.store().add_sealed([key, *junk])
    with caplog.at_level(logging.WARNING):
        result = one.tick()
    assert new_keys(result) == [key]
    one.accept(result)
    told = [entry.getMessage() for entry in caplog.records if "not partition keys" in entry.message]
    assert told
    assert all(line.isprintable() and len(line) < 800 for line in told)
    assert new_keys(one.tick()) == []
    assert one.store().sealed(10_000) == []


def test_junk_that_is_no_text_at_all_is_taken_out_of_redis(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    state = RedisState(url=redis_server.url(), key_prefix="sealed-junk")  # type: ignore[arg-type]
    one = ticking(tmp_path, state=state)
    key = sealed(one.settings, {"a": b"1"}).seal.partition
    with redis_server.client() as client:
        name = f"sealed-junk:{{{one.settings.name}:local}}:sealed"
        client.zadd(name, {b"\xff\xfe": 0, b"a\x00b": 0, key: 0})  # type: ignore[dict-item]
        assert new_keys(one.tick()) == [key]
        assert client.zcard(name) == 1


def test_a_slot_that_was_sealed_under_this_machines_former_name_is_registered(
    tmp_path: Path,
) -> None:
    before = ticking(tmp_path, node_id="former")
    key = sealed(before.settings, {"a": b"1"}).seal.partition
    after = ticking(tmp_path, node_id="new")
    after.store().add_sealed([key, key.replace("former", "stranger")])
    assert new_keys(after.tick()) == [key]


def test_a_node_id_that_dagster_would_refuse_in_each_partition_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"\.\.\."):
        node_in_names("a...b")
    assert node_in_names("a..b") == "a__b_xpp"
