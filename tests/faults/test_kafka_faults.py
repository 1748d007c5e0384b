"""A drain of Kafka: workers, brokers and connections end, and each message is stored once.

noida-db loses what it confirmed in the last seconds when it is killed, so here it is stopped in
good order instead; Tansu loses everything. For workers there is no difference: their connections
end in the middle of what they do.

What rebalances of killed workers do is for Apache Kafka alone; two bare clients of the library show
the same of both brokers:

- noida-db 0.2.3: a static member that leads the group and is started again hands out the partitions
  anew, in the same generation, without telling the others. Two members then own one partition, and
  both may commit. So here a member leads that is never killed, and has a topic of its own
  (`leading`). It also never takes a partition from a member that was killed for good, and never
  ends a rebalance in which a member that gives up partitions joins again before a new one has its
  first answer.
- Tansu 0.6.0 goes on naming a killed member as leader: nobody hands out partitions any more. What
  `leading` needs takes it half a minute a kill.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer

from fuploader_dagster.dead_letters.letters import read_dead_letters
from fuploader_dagster.delivery.recovery import seal_on_request
from fuploader_dagster.disk.crash_points import CrashPoint
from fuploader_dagster.errors import SourceUnavailable
from fuploader_dagster.intake.worker_status import read_statuses
from fuploader_dagster.resources.sources.kafka.settings import Kafka
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.testing.source_steps import settle
from tests.crashes import EVERY_HIT, Lives
from tests.drains import (
    KILLS,
    MARK,
    assert_exactly_once,
    backlog,
    drain_while_workers_are_killed,
    draining,
    files,
    publish,
    publish_bodies,
    sealed_files,
    snapshot,
    wait_for,
    wait_until_stored,
)
from tests.lives import settings_in
from tests.servers.kafka import (
    APACHE,
    KafkaServer,
    kafka_settings,
    new_topic,
    noida,
    running,
    tansu,
)
from tests.servers.ports import wait_until
from tests.servers.tcp_proxy import TcpProxy
from tests.settings import archived_files, intake

MESSAGES = 1_000
ON_APACHE = pytest.mark.skipif(
    not APACHE, reason="KAFKA_BOOTSTRAP does not say where an Apache Kafka is"
)
STEPS = [
    *(CrashPoint.DATA_WRITTEN, CrashPoint.DATA_SYNCED, CrashPoint.INDEX_WRITTEN),
    *(CrashPoint.INDEX_SYNCED, CrashPoint.DEAD_LETTERS_KEPT, CrashPoint.SETTLED),
    *(CrashPoint.RECORDED, CrashPoint.SEAL_WRITTEN, CrashPoint.SEALED),
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KafkaServer]:
    with running(noida(tmp_path / "noida")) as started:
        yield started


def small(folder: Path, source: Kafka, **values: Any) -> Intake:
    return intake(
        folder,
        **{
            "source": source,
            "min_free_bytes": MARK,
            "process_count": 2,
            "slots_per_worker": 2,
            "commit_messages": 20,
            "prefetch_count": 200,
            "seal_messages": 1_000,
            **values,
        },
    )


def test_a_killed_worker_and_a_server_that_restarts_lose_nothing_and_store_nothing_twice(
    tmp_path: Path, server: KafkaServer
) -> None:
    source = kafka_settings(server.bootstrap, new_topic(server.bootstrap, partitions=5))

    def break_server() -> None:
        server.stop()
        server.start()

    drain_while_workers_are_killed(small(tmp_path, source, process_count=1), break_server)


def test_killed_workers_of_a_group_that_another_leads_lose_nothing_and_store_nothing_twice(
    tmp_path: Path, server: KafkaServer
) -> None:
    source = kafka_settings(server.bootstrap, new_topic(server.bootstrap, partitions=5))
    with leading(source):
        drain_while_workers_are_killed(small(tmp_path, source), None)


@contextmanager
def leading(settings: Kafka) -> Iterator[None]:
    """The first member of the group, which leads it, and reads an empty topic of its own."""
    over, joined = threading.Event(), threading.Event()
    member = Consumer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "group.id": settings.group,
            "group.instance.id": "leader",
            "partition.assignment.strategy": "cooperative-sticky",
            "heartbeat.interval.ms": 500,
            "log_level": 0,
        }
    )
    own_topic = new_topic(settings.bootstrap_servers)
    member.subscribe([own_topic], on_assign=lambda *_: joined.set())

    def take_part() -> None:
        while not over.is_set():
            member.poll(0.1)

    thread = threading.Thread(target=take_part)
    thread.start()
    try:
        wait_until(joined.is_set, seconds=60, what="the leader", diagnose=str)
        yield
    finally:
        over.set()
        thread.join()


@ON_APACHE
def test_killed_workers_lose_nothing_and_store_nothing_twice(tmp_path: Path) -> None:
    settings = small(tmp_path, kafka_settings(APACHE, new_topic(APACHE, partitions=5)))
    drain_while_workers_are_killed(settings, None)


@ON_APACHE
def test_workers_that_come_and_go_take_partitions_in_the_middle_of_batches(tmp_path: Path) -> None:
    """Another member takes a part of the partitions, has messages in hand, and gives them back."""
    source = kafka_settings(APACHE, new_topic(APACHE, partitions=6))
    settings = small(tmp_path, source)
    contents: dict[str, bytes] = {}
    with draining(settings):
        for number in range(KILLS):
            more = files(MESSAGES, seed=number, prefix=f"r{number:04d}-")
            contents |= more
            with taking_some(source) as taken:
                publish(settings, more)
                wait_for(taken.is_set, settings, "a rebalance")
        wait_until_stored(settings, contents)
        wait_for(lambda: backlog(settings) == 0, settings, "the last offsets")
    assert_exactly_once(settings, contents)
    duplicates = snapshot(settings).duplicates
    print(f"{2 * KILLS} rebalances, {len(contents)} messages, {duplicates} came again")


@contextmanager
def taking_some(settings: Kafka) -> Iterator[threading.Event]:
    """A member of the group that receives and never settles. The event: it has received some."""
    over, taken = threading.Event(), threading.Event()
    source = settings.source(prefetch=50)

    def take() -> None:
        source.open()
        while not over.is_set():
            if source.receive(50, 0.1):
                taken.set()
        source.close()

    thread = threading.Thread(target=take)
    thread.start()
    try:
        yield taken
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("fault", ["cut", "drop"])
def test_a_connection_that_breaks_in_the_middle_of_batches_costs_nothing(
    tmp_path: Path, fault: str
) -> None:
    """On Tansu, which sends clients to the proxy."""
    server = tansu(tmp_path / "tansu")
    with TcpProxy(server.port) as proxy:
        server.advertised = proxy.port
        with running(server):
            store_through(proxy, fault, tmp_path)


def store_through(proxy: TcpProxy, fault: str, folder: Path) -> None:
    through = f"127.0.0.1:{proxy.port}"
    source = kafka_settings(through, new_topic(through), timeout_seconds=3)
    settings = small(folder, source, process_count=1)
    contents: dict[str, bytes] = {}
    with draining(settings):
        for number in range(3):
            more = files(MESSAGES, seed=number, prefix=f"c{number:04d}-")
            contents |= more
            handled = snapshot(settings).stored_messages
            publish(settings, more)
            wait_for(lambda: snapshot(settings).stored_messages > handled, settings, "drain")  # noqa: B023
            if fault == "cut":
                proxy.cut()
                wait_for(lambda: has_trouble(settings), settings, "somebody who notices")
                proxy.mend()
            proxy.drop()
        wait_until_stored(settings, contents)
    assert sealed(settings) == contents


def has_trouble(settings: Intake) -> bool:
    return any(one.problem for one in read_statuses(settings.layout))


def sealed(settings: Intake) -> dict[str, bytes]:
    """What is in sealed slots, each name once."""
    seal_on_request(settings)
    found = sealed_files(settings.layout)
    assert [name for name, bodies in found.items() if len(bodies) > 1] == []
    return {name: body for name, (body,) in found.items()}


def test_brokers_that_hang_are_said_and_do_not_hold_up_a_worker(server: KafkaServer) -> None:
    settings = kafka_settings(
        server.bootstrap, new_topic(server.bootstrap), timeout_seconds=2, session_timeout_seconds=6
    )
    publisher = settings.publisher()
    publisher.publish([(b"x", {})] * 10)
    source = settings.source(prefetch=100)
    source.open()
    messages = []
    while len(messages) < 10:
        messages += source.receive(10, 0.5)
    server.pause()
    try:
        begun = time.monotonic()
        with pytest.raises(SourceUnavailable):
            settle(source, messages)
        with pytest.raises(SourceUnavailable):
            source.open()
        with pytest.raises(SourceUnavailable):
            publisher.publish([(b"y", {})])
        publisher.close()
        source.close()
        assert time.monotonic() - begun < 40
    finally:
        server.resume()


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_killed_behind_a_step_nothing_is_lost_or_stored_twice(
    step: CrashPoint, lives: Lives, noida_server: KafkaServer, tmp_path: Path
) -> None:
    bootstrap = APACHE or noida_server.bootstrap
    for hit in (1, 2, 3) if EVERY_HIT else (2,):
        kafka = kafka_settings(bootstrap, new_topic(bootstrap)).model_dump(
            mode="json", exclude_unset=True
        )
        folder = tmp_path / str(hit)
        folder.mkdir()
        settings = settings_in(folder, kafka=kafka)
        contents = files(64)
        publish(settings, dict(list(contents.items())[:30]))
        publish_bodies(settings, [b"poison 0", b"poison 1"])
        publish(settings, dict(list(contents.items())[30:]))
        publish_bodies(settings, [b"poison 2"])
        assert lives.live("whole", folder, {"step": step.name, "hit": hit}, kafka=kafka) is None
        assert lives.live("whole", folder, kafka=kafka) is not None
        assert archived_files(folder / "objects") == {
            name: [body] for name, body in contents.items()
        }
        letters = sorted(letter.body for letter in read_dead_letters(settings.layout))
        assert letters == [b"poison 0", b"poison 1", b"poison 2"]
        assert backlog(settings) == 0


@pytest.mark.parametrize("step", [*STEPS[:4], CrashPoint.SETTLED], ids=lambda step: step.name)
def test_a_message_that_is_named_differently_each_time_is_known_by_its_offset(
    step: CrashPoint, lives: Lives, noida_server: KafkaServer, tmp_path: Path
) -> None:
    bootstrap = APACHE or noida_server.bootstrap
    kafka = kafka_settings(bootstrap, new_topic(bootstrap)).model_dump(
        mode="json", exclude_unset=True
    )
    name = "tests.strategies_for_tests:another_name"
    values = {"kafka": kafka, "message_format": "raw", "file_name": name}
    settings = settings_in(tmp_path, kafka=kafka)
    bodies = [b"%d" % number for number in range(64)]
    publish_bodies(settings, bodies)
    assert lives.live("whole", tmp_path, {"step": step.name, "hit": 4}, **values) is None
    assert lives.live("whole", tmp_path, **values) is not None
    found = [body for some in archived_files(tmp_path / "objects").values() for body in some]
    assert sorted(found) == sorted(bodies)
    assert backlog(settings) == 0
