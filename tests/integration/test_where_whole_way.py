"""One message over HTTP and on real servers, asked for wherever it is."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.resources.object_stores import S3
from fuploader_dagster.resources.sinks.sql import SqlSink
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from fuploader_dagster.resources.states.redis import RedisState
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.receipts import receipts_between
from tests.drains import MARK, draining, publish_bodies, seal_on_request
from tests.servers.front_door import FrontDoor, front_door
from tests.servers.ports import wait_until
from tests.servers.queue_fixtures import new_queue
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.servers.swift import SwiftServer
from tests.settings import pipeline


@pytest.fixture
def settings(
    tmp_path: Path,
    rabbitmq: RabbitMQServer,
    redis_server: RedisServer,
    swift: SwiftServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Pipeline:
    monkeypatch.setenv("TEST_SECRET", swift.secret_key)
    queue = new_queue(rabbitmq)
    return pipeline(
        tmp_path,
        source=RabbitMQ(url=rabbitmq.url, queue=queue),
        state=RedisState(url=redis_server.url(), key_prefix=queue, timeout_seconds=5),
        store=S3(
            bucket=swift.fresh_bucket(),
            endpoint_url=swift.endpoint,
            region=swift.region,
            addressing_style="path",
            access_key_id=swift.access_key,
            secret_access_key={"env": "TEST_SECRET"},
        ),
        sinks={"rows": SqlSink(url=f"sqlite:///{tmp_path / 'r.sqlite'}", table="t")},
        min_free_bytes=MARK,
        message_format="json",
        name_fields=["rec_id"],
        headers=["message_id"],
        seal_age_seconds=3600,
        serve=True,
    )


def asked(door: FrontDoor, message: str) -> dict[str, Any]:
    found: dict[str, Any] = door.ask("GET", f"/docs/messages/{message}").json()
    return found


def until(what: str, door: FrontDoor, message: str, done: Callable[[dict[str, Any]], bool]) -> Any:
    wait_until(
        lambda: done(asked(door, message)),
        seconds=120,
        what=what,
        diagnose=lambda: json.dumps(asked(door, message)),
    )
    return asked(door, message)


def test_a_published_message_is_found_in_every_state_up_to_the_bucket_and_the_sink(
    settings: Pipeline, tmp_path: Path
) -> None:
    body = json.dumps({"rec_id": "a-1", "data": "text"}).encode()
    with front_door(settings) as door:
        answer = door.ask("POST", "/docs/messages", body, {"content-type": "application/json"})
        assert (answer.status, answer.json()) == (202, {"ids": ["a-1"]})
        assert asked(door, "a-1")["state"] == "waiting"
        publish_bodies(settings, [b"no JSON"], message_id="bad 1")
        with draining(settings.intake()):
            active = until("the drain", door, "a-1", lambda one: one["state"] == "active")
            letter = until("the letter", door, "bad%201", lambda one: one["state"] == "dead letter")
        assert "not a JSON object" in letter["dead_letters"][0]["reason"]
        assert door.ask("GET", "/docs/files/a-1").body == body
        seal_on_request(settings)
        sealed = asked(door, "a-1")
        assert sealed["state"] == "sealed"
        assert sealed["copies"][0]["sha256"] == active["copies"][0]["sha256"]
        assert door.ask("GET", "/docs/files/a-1").body == body
        list(ship(settings, settings.store.open()))  # the sink has no table yet
        (receipt,) = receipts_between(settings.layout).values()
        (copy,) = asked(door, "a-1")["copies"]
        assert (copy["state"], copy["address"]) == ("stored", receipt.address)
        assert copy["address"].startswith("s3://")
        assert (copy["sinks"]["rows"]["state"], "t" in copy["sinks"]["rows"]["error"]) == (
            "owed",
            True,
        )
        with closing(sqlite3.connect(tmp_path / "r.sqlite")) as database, database:
            database.execute("CREATE TABLE t (rec_id TEXT, data TEXT)")
        list(ship(settings, settings.store.open()))
        assert asked(door, "a-1")["copies"][0]["sinks"]["rows"]["state"] == "stored"
        file = door.ask("GET", "/docs/files/a-1")
        assert (file.status, file.body) == (200, body)
        assert file.headers["fuploader-partition"] == receipt.partition
        part = door.ask("GET", "/docs/files/a-1", headers={"range": "bytes=2-7"})
        assert (part.status, part.body) == (206, body[2:8])
