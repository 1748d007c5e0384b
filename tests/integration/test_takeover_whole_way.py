"""FUploader is killed, `fuploader dev` is started in its place, and nobody does anything else."""

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

MESSAGES = 400


@pytest.mark.timeout(420)
def test_started_in_place_of_a_killed_fuploader_it_stores_every_message_once_by_itself(
    rabbitmq: RabbitMQServer, redis_server: RedisServer, swift: SwiftServer, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    former = Former(Servers(rabbitmq, redis_server, swift), tmp_path, Mode())
    published = messages(MESSAGES, dice)
    publish_bodies(former.pipeline().intake(), encoded(published))
    former.die_at("half removed", dice)
    on_its_disk, stored = former.on_disk(), former.in_store()
    assert on_its_disk
    assert stored == Counter(stored.keys())
    assert former.keys()
    assert len(on_its_disk.keys() | stored.keys()) < MESSAGES

    dev = DagsterDev(
        tmp_path / "project",
        _configuration(former),
        {
            "RABBITMQ_URL": rabbitmq.url,
            "REDIS_URL": redis_server.url(),
            "S3_SECRET": swift.secret_key,
        },
    )
    dev.start(samples=None)
    try:
        dev.wait_for(lambda: not _left(former) and not former.keys(), "the take-over")
        dev.wait_for(
            lambda: _receipted(former) >= MESSAGES - stored.total(), "everything to be stored", 120
        )
        dev.wait_for(lambda: _ended(dev), "the runs' end")
        uploaded = dev.materialized("docs", NODE, "uploaded_archive")
        assert set(uploaded) == set(dev.materialized("docs", NODE, "sealed_slot"))
        assert {run["status"] for run in dev.runs()} == {"SUCCESS"}
    finally:
        dev.stop()
    assert former.in_store() == Counter(published.items())
    assert waiting(rabbitmq, former.queue) == 0
    ours = former.root / "docs"
    assert not [path for path in ours.glob("sealed/*/*") if path.is_dir()]
    assert not list((ours / "archives").iterdir())
    for folder in ("adopting", "set-aside", "dead-letters"):
        assert not list(ours.glob(f"{folder}/*"))
    assert not _left(former)
    assert not former.keys()


def _configuration(former: Former) -> dict[str, object]:
    """What somebody writes who comes from FUploader: the same root, queue, Redis and bucket."""
    swift = former.servers.swift
    return {
        "storage_root": str(former.root),
        "pipelines": {
            "docs": {
                "node_id": NODE,
                "source": {
                    "kind": "rabbitmq",
                    "url": {"env": "RABBITMQ_URL"},
                    "queue": former.queue,
                },
                "state": {
                    "kind": "redis",
                    "url": {"env": "REDIS_URL"},
                    "key_prefix": f"ours-{former.task}",
                },
                "store": {
                    "kind": "s3",
                    "bucket": former.bucket,
                    "endpoint_url": swift.endpoint,
                    "region": "us-east-1",
                    "access_key_id": swift.access_key,
                    "secret_access_key": {"env": "S3_SECRET"},
                },
                "key": "aweme/{sealed_at:%Y%m%d}/{archive}",
                "takeover": {"task_name": former.task, "key_prefix": former.key_prefix},
                "seal_age_seconds": 5,
                "min_free_bytes": 1024,
            }
        },
    }


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
