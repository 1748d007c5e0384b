"""Memory is bounded by what messages unpack to, not by their number or their packed size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.processing.envelope import encode
from tests.drains import (
    assert_exactly_once,
    draining,
    embedded,
    on_servers,
    publish,
    publish_bodies,
    snapshot,
    wait_until_handled,
)

MIB = 1 << 20
WORKER_BYTES = 256 * MIB


@pytest.mark.parametrize("parts", ["servers", "embedded"])
def test_small_messages_that_unpack_to_gigabytes_are_stored_by_a_worker_with_little_memory(
    tmp_path: Path, parts: str, request: pytest.FixtureRequest
) -> None:
    servers: dict[str, Any] = {}
    if parts == "servers":
        rabbitmq, redis = map(request.getfixturevalue, ("rabbitmq", "redis_server"))
        servers = on_servers(rabbitmq, redis)
    settings = embedded(tmp_path, **servers, worker_memory_bytes=WORKER_BYTES)
    small = {f"small-{number}": b"%d" % number for number in range(600)}
    large = {f"large-{number}": b"%d" % number + bytes(24 * MIB) for number in range(20)}
    publish(settings, dict(list(small.items())[:550]))  # the worker has a full batch by then
    for name, content in large.items():
        publish(settings, {name: content})
    publish(settings, dict(list(small.items())[550:]))
    with draining(settings) as supervisor:
        wait_until_handled(settings, len(small) + len(large))
        assert supervisor.problems() == []
    assert snapshot(settings).dead_letters == 0
    assert_exactly_once(settings, {**small, **large})


def test_a_message_that_is_too_large_for_the_worker_is_the_only_dead_letter(
    tmp_path: Path,
) -> None:
    settings = embedded(
        tmp_path, worker_memory_bytes=WORKER_BYTES, max_unpacked_bytes=4 * WORKER_BYTES
    )
    small = {f"small-{number}": b"%d" % number for number in range(40)}
    publish(settings, dict(list(small.items())[:20]))
    publish_bodies(settings, [encode("huge", bytes(2 * WORKER_BYTES), "bytes")])
    publish(settings, dict(list(small.items())[20:]))
    with draining(settings):
        wait_until_handled(settings, len(small) + 1)
    assert snapshot(settings).dead_letters == 1
    assert_exactly_once(settings, small)
