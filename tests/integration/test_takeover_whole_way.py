"""FUploader is killed, `fuploader dev` is started in its place, then `fuploader migrate --yes`."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.drains import publish_bodies
from tests.former import NODE, Former, Mode, Servers, encoded, messages
from tests.servers.dagster_dev import DagsterDev
from tests.servers.queue_fixtures import waiting
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.servers.swift import SwiftServer

MESSAGES = 500
FORMER_MESSAGES = 400


@pytest.mark.timeout(420)
def test_started_in_place_of_a_killed_fuploader_it_waits_for_migrate_and_then_stores_all_once(
    rabbitmq: RabbitMQServer, redis_server: RedisServer, swift: SwiftServer, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    former = Former(Servers(rabbitmq, redis_server, swift), tmp_path, Mode())
    published = messages(MESSAGES, dice)
    files = list(published.items())
    publish_bodies(former.pipeline().intake(), encoded(dict(files[:FORMER_MESSAGES])))
    former.die_at("half removed", dice)
    publish_bodies(former.pipeline().intake(), encoded(dict(files[FORMER_MESSAGES:])))
    on_its_disk, stored = former.on_disk(), former.in_store()
    assert on_its_disk
    assert stored == Counter(stored.keys())
    # What it was writing when it was killed is not whole. It is kept, because nobody can know that,
    # and its message comes again.
    torn = on_its_disk.keys() - published.items()
    assert all(published[name].startswith(content) for name, content in torn)
    assert former.keys()
    assert len(on_its_disk.keys() | stored.keys()) < MESSAGES

    dev = DagsterDev(
        tmp_path / "project", former.configuration(seal_age_seconds=5), former.environment()
    )
    dev.start(samples=None)
    try:
        dev.wait_for(lambda: any(map(_refuses, _ticks(dev))), "the refusal")
        assert former.on_disk() == on_its_disk
        assert not list((former.root / "docs").glob("active/*/*"))
        former.migrate(dev.folder / "fuploader.yaml")
        assert not _left(former)
        assert not former.keys()
        dev.wait_for(
            lambda: _receipted(former) >= MESSAGES + len(torn) - stored.total(),
            "everything to be stored",
            120,
        )
        dev.wait_for(lambda: _ended(dev), "the runs' end")
        uploaded = dev.materialized("docs", NODE, "uploaded_archive")
        assert set(uploaded) == set(dev.materialized("docs", NODE, "sealed_slot"))
        assert {run["status"] for run in dev.runs()} == {"SUCCESS"}
    finally:
        dev.stop()
    assert former.in_store() == Counter([*published.items(), *torn])
    assert waiting(rabbitmq, former.queue) == 0
    ours = former.root / "docs"
    assert not [path for path in ours.glob("sealed/*/*") if path.is_dir()]
    assert not list((ours / "archives").iterdir())
    for folder in ("adopting", "set-aside", "dead-letters"):
        assert not list(ours.glob(f"{folder}/*"))
    assert not _left(former)
    assert not former.keys()


def _ticks(dev: DagsterDev) -> list[str]:
    """What the ticks of the drain sensor failed with, or said when they were skipped."""
    selector = {
        "repositoryLocationName": "fuploader",
        "repositoryName": "__repository__",
        "sensorName": f"docs_{NODE}_drain",
    }
    data = dev.query(
        "query($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) {"
        " ... on Sensor { sensorState { ticks(limit: 20) { skipReason error { message } } } } } }",
        selector=selector,
    )
    ticks = data["sensorOrError"]["sensorState"]["ticks"]
    return [f"{tick['skipReason']} {(tick['error'] or {}).get('message')}" for tick in ticks]


def _refuses(said: str) -> bool:
    return "`fuploader migrate --pipeline docs`" in said


def _left(former: Former) -> list[str]:
    """What of FUploader's lies below its root."""
    return [path.name for path in former.root.iterdir() if path.name != "docs"]


def _receipted(former: Former) -> int:
    """Messages in archives of ours that the store has confirmed."""
    lines = [
        line
        for path in (former.root / "docs" / "receipts").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    return sum(json.loads(line)["messages"] for line in lines)


def _ended(dev: DagsterDev) -> bool:
    return all(run["status"] in ("SUCCESS", "FAILURE") for run in dev.runs())
