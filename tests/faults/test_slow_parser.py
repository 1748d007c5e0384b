"""A parser that takes longer than the broker waits for heartbeats: still there is progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from tests import strategies_for_tests
from tests.drains import (
    assert_exactly_once,
    draining,
    embedded,
    on_servers,
    one_worker,
    publish_bodies,
    snapshot,
    stored,
    wait_for,
    wait_until_handled,
)
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer

HEARTBEAT_SECONDS = 2
"""The shortest: the broker leaves a consumer that was silent for two of them."""


def impatient(rabbitmq: RabbitMQServer, redis: RedisServer) -> dict[str, Any]:
    made = on_servers(rabbitmq, redis)
    source: RabbitMQ = made["source"]
    return {**made, "source": source.model_copy(update={"heartbeat_seconds": HEARTBEAT_SECONDS})}


def test_one_message_may_take_many_heartbeats_and_is_parsed_once(
    tmp_path: Path,
    rabbitmq: RabbitMQServer,
    redis_server: RedisServer,
) -> None:
    settings = embedded(
        tmp_path,
        **impatient(rabbitmq, redis_server),
        parser=strategies_for_tests.by_instruction,
        message_format="raw",
    )
    publish_bodies(settings, [b"quick", b"slow %d" % (6 * HEARTBEAT_SECONDS), b"last"])
    with draining(settings) as supervisor:
        wait_until_handled(settings, 3)
        assert supervisor.problems() == []
        wait_for(lambda: one_worker(settings).messages == 3, settings, "the status")
        assert one_worker(settings).duplicates == 0
    assert_exactly_once(settings, {name: name.encode() for name in ("quick", "slow", "last")})


@pytest.mark.parametrize(
    "parser", [strategies_for_tests.by_instruction, strategies_for_tests.by_instruction_later]
)
def test_what_was_decoded_is_committed_every_few_seconds_and_nothing_comes_again(
    tmp_path: Path, rabbitmq: RabbitMQServer, redis_server: RedisServer, parser: Any
) -> None:
    settings = embedded(
        tmp_path, **impatient(rabbitmq, redis_server), parser=parser, message_format="raw"
    )
    quick = [f"quick-{number}" for number in range(100)]
    slow = [f"slow-{number}" for number in range(60)]
    publish_bodies(settings, [name.encode() for name in quick])
    publish_bodies(settings, [f"{name} 0.2".encode() for name in slow])
    counts: list[int] = []

    def all_stored() -> bool:
        counts.append(len(stored(settings.layout)))
        return counts[-1] == len(quick) + len(slow)

    with draining(settings) as supervisor:
        wait_for(all_stored, settings, "the slow messages")
        assert supervisor.problems() == []
    now = snapshot(settings)
    assert (now.duplicates, now.dead_letters) == (0, 0)
    between = {count for count in counts if len(quick) < count < len(quick) + len(slow)}
    assert between  # 12 s of decoding went into more than one commit
    assert_exactly_once(settings, {name: name.encode() for name in quick + slow})


def test_a_parser_may_run_programs_that_read_their_standard_input(tmp_path: Path) -> None:
    settings = embedded(
        tmp_path,
        parser=strategies_for_tests.runs_a_program_that_reads_stdin,
        message_format="raw",
    )
    names = [f"n{number}" for number in range(30)]
    publish_bodies(settings, [name.encode() for name in names])
    with draining(settings) as supervisor:
        wait_until_handled(settings, len(names))
        assert supervisor.problems() == []
    assert_exactly_once(settings, dict.fromkeys(names, b""))
