"""What the queue delivers again is not stored again, wherever its first copy lies by then."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from fuploader_dagster.delivery.recovery import seal_on_request
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.intake.worker_status import read_statuses
from fuploader_dagster.settings.pipeline import Intake, Pipeline
from tests.drains import (
    backlog,
    draining,
    files,
    on_servers,
    pids,
    publish,
    snapshot,
    stored,
    wait_for,
    wait_until_handled,
)
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.servers.tcp_proxy import TcpProxy
from tests.settings import archived_files, pipeline


@contextmanager
def shipping(settings: Pipeline) -> Iterator[None]:
    """Inside the block whatever is sealed goes to the store at once, and its local data goes."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(0.1):
            ship_all(settings)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def ship_all(settings: Pipeline) -> None:
    list(ship(settings, settings.store.open()))


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_no_redelivered_message_is_a_second_copy_though_acks_connections_and_workers_are_lost(
    tmp_path: Path, rabbitmq: RabbitMQServer, redis_server: RedisServer, queue_type: str
) -> None:
    """Two workers; most directories are sealed, uploaded and removed before a message comes again,
    and some messages come to one worker while the other one is about to commit them."""
    direct = pipeline(
        tmp_path,
        **on_servers(rabbitmq, redis_server, queue_type),
        process_count=2,
        slots_per_worker=2,
        prefetch_count=600,
        commit_messages=30,
        seal_messages=100,
        dedup_window_messages=2_500,
    )
    contents = files(6_000)
    names = list(contents)
    with TcpProxy(rabbitmq.port) as proxy, shipping(direct):
        url = rabbitmq.url.replace(f":{rabbitmq.port}/", f":{proxy.port}/")
        source = direct.source.model_copy(update={"url": SecretStr(url)})
        intake = direct.model_copy(update={"source": source}).intake()
        with draining(intake):
            killed = 0
            for start in range(0, len(contents), 1_000):
                wait_for(lambda: both_drain(intake, killed), intake, "the workers")
                # The more they have settled, the more they have in hand.
                publish(direct, {name: contents[name] for name in names[start : start + 700]})
                wait_until_handled(intake, start + 700)
                proxy.deaf = start % 2_000 == 0
                publish(
                    direct, {name: contents[name] for name in names[start + 700 : start + 1000]}
                )
                if proxy.deaf:
                    wait_for(lambda: hands_out_no_more(direct), intake, "what is handed out")
                    wait_for(lambda: not direct.layout.sealed_dirs(), intake, "the uploads")
                    proxy.deaf = False
                    proxy.drop()
                else:
                    proxy.forsake()
                    wait_until_handled(intake, start + 500)
                    proxy.drop()
                wait_until_handled(intake, start + 1_000)
                os.kill(killed := min(pids(intake)), signal.SIGKILL)
            wait_for(lambda: not held(rabbitmq, source.queue), intake, "the end")
            # A quorum queue tells its length every five seconds only.
            wait_for(lambda: contents.keys() <= kept_names(direct, tmp_path), intake, "the rest")
    seal_on_request(direct)
    ship_all(direct)
    assert archived_files(tmp_path / "objects") == {n: [body] for n, body in contents.items()}
    assert snapshot(direct).duplicates > 200, "too few came again: this shows little"
    kept = sum(int(path.name.split(".")[1]) for path in direct.layout.shipped.iterdir())
    assert 2_500 <= kept < 2_500 + 160


def kept_names(settings: Pipeline, folder: Path) -> set[str]:
    """Names on the disk or in the store. In this order: what moves in between is in both."""
    return stored(settings.layout) | archived_files(folder / "objects").keys()


def hands_out_no_more(settings: Pipeline) -> bool:
    """Nothing left the queue for a while: the broker waits until it hears of us."""
    before = backlog(settings)
    time.sleep(0.5)
    return backlog(settings) == before


def both_drain(settings: Intake, killed: int) -> bool:
    """Whether two workers other than the killed one are connected."""
    statuses = read_statuses(settings.layout)
    return [one.doing for one in statuses if one.pid != killed] == ["draining"] * 2


def held(server: RabbitMQServer, queue: str) -> int:
    """Messages that the broker has not forgotten, also those in somebody's hands."""
    words = server.ctl("list_queues", "name", "messages").split()
    return int(words[words.index(queue) + 1])
