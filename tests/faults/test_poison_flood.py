"""A flood of messages that can never become files: kept, counted, and nothing is slowed down."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fuploader_dagster.dead_letters.counts import read_counts
from fuploader_dagster.dead_letters.letters import read_dead_letters
from fuploader_dagster.processing.envelope import encode
from tests.drains import (
    backlog,
    draining,
    embedded,
    files,
    on_servers,
    publish_bodies,
    stored,
    wait_for,
    wait_until_handled,
)
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer

MANY = 20_000


def test_a_flood_of_poison_is_kept_and_counted_and_takes_a_few_lines_of_log(
    tmp_path: Path,
    rabbitmq: RabbitMQServer,
    redis_server: RedisServer,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bodies = [encode(name, body, "bytes") for name, body in files(MANY).items()]
    flooded = embedded(tmp_path / "flooded", **on_servers(rabbitmq, redis_server))
    poison = [b"no envelope %d %s" % (n, body[:1_000]) for n, body in enumerate(bodies[:-10])]
    publish_bodies(flooded, [*poison, *bodies[-10:]])
    capfd.readouterr()
    began = time.monotonic()
    with draining(flooded):
        wait_until_handled(flooded, MANY, 200)
        wait_for(lambda: backlog(flooded) == 0, flooded, "the last acknowledgement")
    taken = time.monotonic() - began
    lines = capfd.readouterr().err.splitlines()

    assert len(stored(flooded.layout)) == 10
    assert len(lines) < 20 + taken  # about one a second
    assert {letter.body for letter in read_dead_letters(flooded.layout)} == set(poison)
    assert len(list(flooded.layout.dead_letters.iterdir())) <= 4  # a file a day, and the counts
    counts = read_counts(flooded.layout)
    assert counts.total == len(poison)
    assert len(counts.reasons) < 5
