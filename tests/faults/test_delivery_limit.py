"""A quorum queue that drops a message after so many deliveries (20 by default in RabbitMQ 4)."""

from __future__ import annotations

from pathlib import Path

from fuploader_dagster.dead_letters.letters import read_dead_letters
from fuploader_dagster.delivery.recovery import seal_on_request
from fuploader_dagster.intake.supervisor import Supervisor
from tests import drains, strategies_for_tests
from tests.drains import (
    backlog,
    draining,
    embedded,
    files,
    on_servers,
    publish,
    publish_bodies,
    sealed_files,
    stored,
    wait_for,
    wait_until_stored,
)
from tests.servers.queue_fixtures import channel, new_queue
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer

LIMIT = 12
"""Less than the 20 of RabbitMQ 4, so that fewer deaths show whether they add up."""


def limited(rabbitmq: RabbitMQServer, redis: RedisServer, **values: object) -> dict[str, object]:
    """Settings for a quorum queue with a delivery limit."""
    queue = new_queue(rabbitmq, "quorum", x_delivery_limit=LIMIT)
    made = on_servers(rabbitmq, redis)
    return {**made, "source": made["source"].model_copy(update={"queue": queue}), **values}


def test_messages_that_crash_the_parser_cost_no_good_one_though_the_queue_counts_deliveries(
    tmp_path: Path, rabbitmq: RabbitMQServer, redis_server: RedisServer
) -> None:
    settings = embedded(
        tmp_path,
        **limited(rabbitmq, redis_server, parser=strategies_for_tests.deadly),
    )
    good = [b"good-%04d" % number for number in range(300)]
    deadly = [b"crash-%d" % number for number in range(4)]
    bodies = list(good)
    for number, body in enumerate(deadly):
        bodies.insert(30 * (number + 1), body)
    publish_bodies(settings, bodies)
    with draining(settings):

        def all_dead() -> bool:
            return len(list(read_dead_letters(settings.layout))) >= len(deadly)

        wait_for(all_dead, settings, "the dead letters", 200)
        wait_until_stored(settings, {body.decode(): body for body in good}, 100)
    assert sorted(letter.body for letter in read_dead_letters(settings.layout)) == deadly
    seal_on_request(settings)
    assert {name: len(found) for name, found in sealed_files(settings.layout).items()} == {
        body.decode(): 1 for body in good
    }
    assert backlog(settings) == 0


def test_a_worker_that_leaves_in_good_order_gives_nothing_back(
    tmp_path: Path, rabbitmq: RabbitMQServer, redis_server: RedisServer
) -> None:
    settings = embedded(tmp_path, **limited(rabbitmq, redis_server), parser=drains.slowly)
    contents = files(6_000)
    publish(settings, contents)
    with draining(settings):
        wait_for(lambda: len(stored(settings.layout)) > 500, settings, "the drain")
    left = backlog(settings)
    assert left == len(contents) - len(stored(settings.layout)) > 0
    with channel(rabbitmq) as open_channel:
        first, properties, _ = open_channel.basic_get(settings.source.queue)  # type: ignore[attr-defined]
        assert not first.redelivered
        assert (properties.headers or {}).get("x-delivery-count", 0) == 0


def test_workers_that_are_replaced_by_their_quota_give_nothing_back(
    tmp_path: Path, rabbitmq: RabbitMQServer, redis_server: RedisServer
) -> None:
    settings = embedded(
        tmp_path, **limited(rabbitmq, redis_server), max_tasks_per_child=60, lease_seconds=60
    )
    contents = files(600)
    publish(settings, contents)
    supervisor = Supervisor(settings)
    supervisor.renew()
    seen: set[int] = set()

    def three_were_replaced() -> bool:
        seen.update(drains.pids(settings))
        return len(seen) > 3

    try:
        wait_for(three_were_replaced, settings, "the replacements")
    finally:
        supervisor.stop()
    with channel(rabbitmq) as open_channel:
        first, _, _ = open_channel.basic_get(settings.source.queue)  # type: ignore[attr-defined]
        assert not first.redelivered
