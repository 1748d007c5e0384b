"""A flood of messages that can never become files: kept, counted, and nothing is slowed down."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from fuploader_dagster.config import Intake
from fuploader_dagster.dead_letter_counts import read_counts
from fuploader_dagster.dead_letters import read_dead_letters
from fuploader_dagster.envelope import encode
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


def seconds_to_drain(settings: Intake, bodies: Sequence[bytes]) -> float:
    """From the first message handled to the last, so without the start of a process."""
    publish_bodies(settings, list(bodies))
    with draining(settings):
        wait_until_handled(settings, 1, 60)
        began = time.monotonic()
        wait_until_handled(settings, len(bodies), 200)
        taken = time.monotonic() - began
        wait_for(lambda: backlog(settings) == 0, settings, "the last acknowledgement")
    return max(taken, 0.5)


def test_poison_takes_about_as_long_as_good_messages_and_a_few_lines_of_log(
    tmp_path: Path,
    rabbitmq: RabbitMQServer,
    redis_server: RedisServer,
    capfd: pytest.CaptureFixture[str],
) -> None:
    good = embedded(tmp_path / "good", **on_servers(rabbitmq, redis_server))
    bodies = [encode(name, body, "bytes") for name, body in files(MANY).items()]
    usual = seconds_to_drain(good, bodies)

    flooded = embedded(tmp_path / "flooded", **on_servers(rabbitmq, redis_server))
    poison = [b"no envelope %d %s" % (n, body[:1_000]) for n, body in enumerate(bodies[:-10])]
    capfd.readouterr()
    taken = seconds_to_drain(flooded, [*poison, *bodies[-10:]])
    lines = capfd.readouterr().err.splitlines()

    assert len(stored(flooded.layout)) == 10
    assert taken < 4 * usual + 10
    assert len(lines) < 20 + taken
    assert {letter.body for letter in read_dead_letters(flooded.layout)} == set(poison)
    assert len(list(flooded.layout.dead_letters.iterdir())) <= 4  # a file a day, and the counts
    counts = read_counts(flooded.layout)
    assert counts.total == len(poison)
    assert len(counts.reasons) < 5
