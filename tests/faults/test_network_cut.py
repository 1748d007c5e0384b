"""Between worker and broker: a cut network, a memory alarm, a deleted queue, a consumer timeout."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuploader_dagster.delivery.recovery import seal_on_request
from fuploader_dagster.errors import SourceUnavailable
from fuploader_dagster.intake.supervisor import Supervisor
from fuploader_dagster.processing.envelope import Envelope, decode_envelope
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from fuploader_dagster.settings.pipeline import MIB
from tests.drains import (
    assert_exactly_once,
    backlog,
    draining,
    embedded,
    files,
    one_worker,
    pids,
    publish,
    sealed_files,
    stored,
    wait_for,
    wait_until_stored,
)
from tests.servers.queue_fixtures import channel, new_queue
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.tcp_proxy import TcpProxy


def slow(body: bytes) -> Envelope:
    """A parser that takes 10 ms a message, so that messages are in hand whatever happens when."""
    time.sleep(0.01)
    return decode_envelope(body, max_bytes=MIB)


@pytest.fixture
def network(rabbitmq: RabbitMQServer) -> Iterator[TcpProxy]:
    """The way to RabbitMQ."""
    with TcpProxy(rabbitmq.port) as proxy:
        yield proxy


def test_a_cut_network_is_noticed_by_heartbeats_and_each_message_is_stored_once(
    tmp_path: Path, rabbitmq: RabbitMQServer, network: TcpProxy
) -> None:
    """Half-open, in the middle of batches, on both sides; the same worker goes on afterwards."""
    queue = new_queue(rabbitmq)
    through = f"amqp://{rabbitmq.user}:{rabbitmq.password}@127.0.0.1:{network.port}/%2F"
    settings = embedded(
        tmp_path,
        source=RabbitMQ(url=through, queue=queue, heartbeat_seconds=2, connect_timeout_seconds=2),
        prefetch_count=200,
        commit_messages=20,
        parser=slow,
    )
    behind = settings.model_copy(update={"source": RabbitMQ(url=rabbitmq.url, queue=queue)})
    contents = files(600)
    first, second = dict(list(contents.items())[:500]), dict(list(contents.items())[500:])
    publish(behind, first)
    with draining(settings) as supervisor:
        wait_for(lambda: len(stored(settings.layout)) >= 40, settings, "the drain")
        pid = one_worker(settings).pid
        network.cut()
        publish(behind, second)
        wait_for(lambda: bool(supervisor.problems()), settings, "the problem")
        (problem,) = supervisor.problems()
        assert f"127.0.0.1:{network.port}" in problem
        assert rabbitmq.password not in problem
        assert network.held > 0
        assert len(stored(settings.layout)) < len(first)
        wait_for(lambda: not _consumers(rabbitmq, queue), settings, "the broker to notice")
        network.mend()
        wait_until_stored(settings, contents)
        wait_for(lambda: supervisor.problems() == [], settings, "the all-clear")
        assert pids(settings) == {pid}
        wait_for(lambda: backlog(behind) == 0, settings, "the acknowledgements")
    assert_exactly_once(behind, contents)


def _consumers(server: RabbitMQServer, queue: str) -> int:
    words = server.ctl("list_queues", "name", "consumers").split()
    return int(words[words.index(queue) + 1])


def says(supervisor: Supervisor, words: str) -> bool:
    return any(words in problem for problem in supervisor.problems())


@contextmanager
def consumer_timeout(server: RabbitMQServer) -> Iterator[None]:
    """Inside the block a consumer may hold a message for half a second only."""

    def settings(timeout_milliseconds: int, tick_milliseconds: int) -> None:
        server.ctl(
            "eval",
            f"application:set_env(rabbit, consumer_timeout, {timeout_milliseconds}), "
            f"application:set_env(rabbit, channel_tick_interval, {tick_milliseconds}).",
        )

    settings(500, 300)
    try:
        yield
    finally:
        settings(1_800_000, 60_000)


def test_an_alarm_a_deleted_queue_and_a_consumer_timeout_are_pauses(
    tmp_path: Path, rabbitmq: RabbitMQServer
) -> None:
    """One worker lives through all three. The alarm stops producers only."""
    queue = new_queue(rabbitmq)
    source = RabbitMQ(url=rabbitmq.url, queue=queue, blocked_timeout_seconds=1)
    settings = embedded(
        tmp_path, source=source, prefetch_count=100, commit_messages=50, parser=slow
    )
    contents = files(700)
    names = list(contents)
    parts = [{name: contents[name] for name in names[at : at + 350]} for at in (0, 350)]
    publish(settings, parts[0])
    with draining(settings) as supervisor:
        wait_for(lambda: len(stored(settings.layout)) >= 50, settings, "the drain")
        pid = one_worker(settings).pid
        rabbitmq.ctl("set_vm_memory_high_watermark", "0.000001")
        try:
            with pytest.raises(SourceUnavailable, match="alarm"):
                publish(settings, files(500, prefix="never-arrives"))
            wait_until_stored(settings, parts[0])
            assert supervisor.problems() == []
        finally:
            rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
        with consumer_timeout(rabbitmq):  # a channel has the timeout of when it was opened
            with channel(rabbitmq) as open_channel:
                open_channel.queue_delete(queue)
            wait_for(lambda: says(supervisor, "was the queue deleted"), settings, "the problem")
            wait_for(lambda: supervisor.problems() == [], settings, "the queue to be there again")
            publish(settings, parts[1])
            wait_for(lambda: says(supervisor, "timed out"), settings, "the timeout")
        wait_until_stored(settings, contents)
        wait_for(lambda: supervisor.problems() == [], settings, "the all-clear")
        assert pids(settings) == {pid}
        wait_for(lambda: backlog(settings) == 0, settings, "the acknowledgements")
    seal_on_request(settings)
    found = sealed_files(settings.layout)  # a message before the alarm may have arrived after it
    assert {name: found[name] for name in contents} == {n: [body] for n, body in contents.items()}
