"""Examines a list for `fuploader doctor`: reachable, ours to change, and kept.

What must always hold: no message is taken, and nothing stays. What has to be changed to try a right
is a key of its own beside the list.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import redis

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.resources.sources.redis_clients import command, connected_names
from fuploader_dagster.resources.sources.redis_list.lists import explaining
from fuploader_dagster.resources.states.redis_connection import connect
from fuploader_dagster.resources.states.redis_examination import judge_stream

if TYPE_CHECKING:
    from fuploader_dagster.resources.sources.redis_list.source import RedisList


def examine(settings: RedisList) -> Iterator[Diagnosis]:
    """Raises an error of this package if the check cannot go on."""
    client = connect(settings.url, settings.timeout_seconds)
    publisher = settings.publisher()
    try:
        depth = publisher.depth()
        with explaining(f"could not examine {settings.describe()}"):
            length = int(command(client, "LLEN", settings.key))
            listed, info = connected_names(client) is not None, _info(client)
            if info is None or info.get("role") != "slave":
                _try_all(client, settings)
    finally:
        publisher.close()
        client.close()
    yield Diagnosis(
        "queue",
        "good",
        f"{settings.describe()}: "
        f"{counted(depth.waiting, 'message waits', 'messages wait')}, taken from the "
        f"{settings.end} end",
    )
    if settings.max_length is not None and length >= settings.max_length:
        yield Diagnosis(
            "length",
            "warning",
            f"the list has {counted(length, 'message')}, max_length "
            f"{settings.max_length:,}: nothing can be "
            "published",
            "find out why it is not drained, or raise max_length",
        )
    if not listed:
        yield Diagnosis(
            "connections",
            "warning",
            "the user may not list connections: messages of a worker that died come again after "
            f"{settings.idle_seconds:g} s, and not at once",
            "allow client|list and client|setname",
        )
    yield from judge_stream(info, "queue server", "messages with them")


def _try_all(client: redis.Redis, settings: RedisList) -> None:
    """The commands of a drain: on the list those that change nothing, the others beside it."""
    lists = settings.lists
    client.ping()
    command(client, "TIME")
    command(client, "EVAL", "return 0", 0)
    command(client, "LTRIM", settings.key, 0, -1)
    command(client, "LRANGE", settings.key, 1, 0)
    beside, name = lists.in_hand(f"doctor-{uuid.uuid4().hex}"), "doctor"
    for push in ("LPUSH", "RPUSH"):
        if push == "LPUSH" or settings.end == "left":
            command(client, push, beside, "x")
    try:
        command(client, "BLMOVE", beside, beside, "LEFT", "LEFT", 0.001)
    finally:
        command(client, "LTRIM", beside, 1, 0)
    try:
        command(client, "ZADD", lists.consumers_key, 0, name)
        command(client, "ZRANGE", lists.consumers_key, 0, 0)
    finally:
        command(client, "ZREM", lists.consumers_key, name)


def _info(client: redis.Redis) -> dict[str, object] | None:
    try:
        found: dict[str, object] = client.info()
    except redis.ResponseError:
        return None
    return found
