"""Messages that end every worker that decodes them: they become dead letters, the others flow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fuploader_dagster.dead_letters.letters import read_dead_letters
from fuploader_dagster.delivery.recovery import seal_on_request
from tests import strategies_for_tests
from tests.drains import (
    backlog,
    draining,
    embedded,
    on_servers,
    publish_bodies,
    sealed_files,
    wait_for,
    wait_until_stored,
)
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer


@pytest.mark.timeout(600)
def test_what_crashes_hangs_or_eats_memory_ends_as_a_dead_letter_and_all_else_is_stored_once(
    tmp_path: Path, rabbitmq: RabbitMQServer, redis_server: RedisServer
) -> None:
    settings = embedded(
        tmp_path,
        **on_servers(rabbitmq, redis_server),
        process_count=2,
        parser=strategies_for_tests.deadly,
        parser_timeout_seconds=3,
        worker_memory_bytes=1 << 28,
        prefetch_count=400,
        commit_messages=100,
    )
    good = [b"good-%04d" % number for number in range(900)]
    deadly = [b"crash-1", b"hang-1", b"eat-1", b"eat-2"]
    bodies = list(good)
    for number, body in enumerate(deadly):
        bodies.insert(150 + 170 * number, body)
    publish_bodies(settings, bodies)
    with draining(settings):

        def all_dead() -> bool:
            return len(list(read_dead_letters(settings.layout))) >= len(deadly)

        wait_for(all_dead, settings, "the dead letters", 300)
        wait_until_stored(settings, {body.decode(): body for body in good})
    seal_on_request(settings)
    assert sorted(sealed_files(settings.layout)) == [body.decode() for body in good]
    assert all(len(bodies) == 1 for bodies in sealed_files(settings.layout).values())
    assert backlog(settings) == 0
    reasons = {letter.body: letter.reason for letter in read_dead_letters(settings.layout)}
    assert sorted(reasons) == sorted(deadly)
    for body, reason in reasons.items():
        if body.startswith(b"eat"):
            assert "tests.strategies_for_tests:deadly raised MemoryError" in reason
        else:
            assert "handling it ended the worker process: it was delivered " in reason
            # One more for each other worker that was handed it before the dead one was replaced.
            assert re.search("the last [23] of them alone", reason)
