"""A pipeline without Dagster: the example runs, and the parts do what the whole does."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fuploader_dagster import drain_pipeline, recover_pipeline, run_pipeline, ship_pipeline
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.standalone import Shipped
from tests import drains
from tests.drains import (
    MARK,
    files,
    on_servers,
    publish,
    stored,
    wait_for,
    wait_until_stored,
)
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.settings import archived_files, pipeline

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example_stores_everything(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "one_process.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1000 messages in ")
    found = archived_files(tmp_path / "archives")
    assert found == {f"{n}.json": [b'{"number":%d}' % n] for n in range(1000)}


def test_until_empty_waits_out_a_broker_that_restarts(
    tmp_path: Path,
    rabbitmq: RabbitMQServer,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings: Pipeline = pipeline(
        tmp_path, **on_servers(rabbitmq, redis_server), parser=drains.slowly
    )
    contents = files(2_000)
    publish(settings.intake(), contents)
    rabbitmq.sync_definitions()
    done: list[object] = []

    def run() -> None:
        try:
            done.append(run_pipeline(settings, until_empty=True))
        except Exception as error:
            done.append(error)

    running = threading.Thread(target=run)
    running.start()
    wait_for(lambda: bool(stored(settings.layout)), settings, "the drain")
    rabbitmq.kill()
    try:
        wait_for(
            lambda: bool(done) or "cannot tell yet whether" in caplog.text, settings, "a look at it"
        )
    finally:
        rabbitmq.start()
    running.join(120)
    (shipped,) = done
    assert isinstance(shipped, Shipped), shipped
    assert archived_files(tmp_path / "objects") == {n: [body] for n, body in contents.items()}


def test_writer_recovery_and_shipper_can_be_used_one_by_one(tmp_path: Path) -> None:
    settings: Pipeline = pipeline(
        tmp_path, source=EmbeddedQueue(path=tmp_path / "queue"), min_free_bytes=MARK
    )
    contents = files(50)
    publish(settings.intake(), contents)
    stop = threading.Event()
    writer = threading.Thread(target=drain_pipeline, args=[settings, stop])
    writer.start()
    try:
        wait_until_stored(settings.intake(), contents)
    finally:
        stop.set()
        writer.join()
    assert ship_pipeline(settings).messages == 0  # the slot is not full
    assert recover_pipeline(settings).messages == 50
    assert archived_files(tmp_path / "objects") == {n: [body] for n, body in contents.items()}
