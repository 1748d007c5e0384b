"""The whole way, on real parts, as a user starts it: queue, workers, daemon, runs, object store."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import file_uploader
import pika
import pytest

from fuploader_dagster.cli.init import write_project
from tests.servers.dagster_dev import DagsterDev
from tests.servers.queue_fixtures import channel, new_queue, waiting
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.servers.swift import SwiftServer
from tests.settings import archived_files, archives_in

MESSAGES = 5000


def documents(count: int) -> dict[str, bytes]:
    """File name to the bytes that must come out, for `file_uploader`'s three content types."""
    dice = random.Random(7)
    made: dict[str, bytes] = {}
    for number in range(count):
        text = "".join(dice.choices("abcdefghij äöü 字", k=dice.randint(0, 2000)))
        if number % 10 == 7:
            made[f"text-{number}.txt"] = text.encode()
        elif number % 10 == 8:
            made[f"bytes-{number}.bin"] = dice.randbytes(dice.randint(1, 3000))
        else:
            document = {"id": number, "text": text}
            made[f"doc-{number}.json"] = json.dumps(
                document, ensure_ascii=False, separators=(",", ":")
            ).encode()
    return made


def payload(name: str, content: bytes) -> Any:
    """What a producer hands to `file_uploader` so that it sends these bytes."""
    if name.endswith(".json"):
        return json.loads(content)
    return content.decode() if name.endswith(".txt") else content


def publish_with_fuploader(server: RabbitMQServer, queue: str, files: dict[str, bytes]) -> None:
    """Send the files in the envelope that the FUploader package itself makes."""
    with channel(server) as open_channel:
        open_channel.confirm_delivery()

        def send(body: str) -> None:
            open_channel.basic_publish(
                "", queue, body.encode(), pika.BasicProperties(delivery_mode=2), mandatory=True
            )

        messages = [
            file_uploader.FileMessage(file_name=name, payload=payload(name, content))
            for name, content in files.items()
        ]
        asyncio.run(file_uploader.publish_file_messages(messages, send))


def download(swift: SwiftServer, bucket: str, folder: Path) -> None:
    """Fetch the whole bucket with a plain client."""
    client = swift.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", []):
            target = folder / entry["Key"]
            target.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, entry["Key"], str(target))


@pytest.mark.timeout(900)
def test_every_message_of_fuploader_is_found_once_with_its_bytes_in_the_s3_server(
    rabbitmq: RabbitMQServer, redis_server: RedisServer, swift: SwiftServer, tmp_path: Path
) -> None:
    files = documents(MESSAGES)
    queue, bucket = new_queue(rabbitmq), swift.fresh_bucket()
    publish_with_fuploader(rabbitmq, queue, files)
    configuration = {
        "storage_root": "data",
        "pipelines": {
            "docs": {
                "source": {"kind": "rabbitmq", "url": {"env": "RABBITMQ_URL"}, "queue": queue},
                "state": {"kind": "redis", "url": {"env": "REDIS_URL"}},
                "store": {
                    "kind": "s3",
                    "bucket": bucket,
                    "endpoint_url": swift.endpoint,
                    "region": "us-east-1",
                    "access_key_id": swift.access_key,
                    "secret_access_key": {"env": "S3_SECRET"},
                },
                "seal_messages": 700,
                "seal_age_seconds": 5,
                "process_count": 2,
            }
        },
    }
    environment = {
        "RABBITMQ_URL": rabbitmq.url,
        "REDIS_URL": redis_server.url(),
        "S3_SECRET": swift.secret_key,
    }
    dev = DagsterDev(tmp_path / "project", configuration, environment)
    dev.start()
    try:
        dev.wait_for(lambda: _stored(dev) >= MESSAGES, "all messages to be stored")
        dev.wait_for(lambda: not _unfinished(dev), "runs to say so and to check it")
        uploaded = dev.materialized("docs", "uploaded_archive")
        assert set(uploaded) == set(dev.materialized("docs", "sealed_slot"))
        assert {run["status"] for run in dev.runs()} == {"SUCCESS"}
    finally:
        dev.stop()
    download(swift, bucket, tmp_path / "bucket")
    found = archived_files(tmp_path / "bucket")
    assert found == {name: [content] for name, content in files.items()}
    assert waiting(rabbitmq, queue) == 0
    root = tmp_path / "project" / "data" / "docs"
    assert not list(root.glob("sealed/*/*"))
    assert not list(root.glob("active/*/dir-*"))
    assert not list((root / "archives").iterdir())
    assert not list(root.glob("dead-letters/*"))
    secrets = (swift.secret_key, rabbitmq.url, redis_server.url())
    assert not [secret for secret in secrets if secret in dev.log.read_text()]


def _unfinished(dev: DagsterDev) -> list[str]:
    """Runs that have not ended: a receipt comes before its run's events, a check after them."""
    return [run["status"] for run in dev.runs() if run["status"] not in ("SUCCESS", "FAILURE")]


def _stored(dev: DagsterDev) -> int:
    """Messages in archives that the store has confirmed, by the receipts."""
    receipts = (dev.folder / "data" / "docs" / "receipts").glob("*.jsonl")
    lines = [line for path in receipts for line in path.read_text().splitlines()]
    return sum(json.loads(line)["messages"] for line in lines)


@pytest.mark.timeout(900)
def test_a_new_project_runs_with_its_own_parser_and_goes_on_where_it_stopped(
    tmp_path: Path,
) -> None:
    write_project(tmp_path / "project")
    dev = DagsterDev(tmp_path / "project", None, {})
    store = tmp_path / "project" / "data" / "object-store"
    dev.start(samples=2200)
    try:
        dev.wait_for(lambda: len(archives_in(store)) >= 4, "four archives")
    finally:
        dev.stop()
    dev.start(samples=0)
    try:
        dev.wait_for(lambda: len(archives_in(store)) >= 5, "the fifth archive")
        dev.wait_for(lambda: len(dev.materialized("documents", "uploaded_archive")) >= 5, "history")
        assert len(dev.runs()) >= 2
    finally:
        dev.stop()
    found = archived_files(store)
    assert len(found) == 2200
    assert {len(contents) for contents in found.values()} == {1}
    assert {json.loads(content)["words"] for (content,) in found.values()} == {250}
