"""Examines a stream for `fuploader doctor`: reachable, readable by us alone, and kept.

What must always hold: no entry is taken, and nothing stays. A consumer that is made to try the
right to read is removed again.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import redis

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.resources.sources.redis_clients import command, connected_names
from fuploader_dagster.resources.sources.redis_stream.connection import explaining
from fuploader_dagster.resources.sources.redis_stream.publisher import groups
from fuploader_dagster.resources.states.redis_connection import connect, run
from fuploader_dagster.resources.states.redis_examination import judge_stream

if TYPE_CHECKING:
    from fuploader_dagster.resources.sources.redis_stream.source import RedisStream

_NO_ENTRY = "0-0"


def examine(settings: RedisStream) -> Iterator[Diagnosis]:
    """Raises an error of this package if the check cannot go on."""
    client = connect(settings.url, settings.timeout_seconds)
    publisher = settings.publisher()
    try:
        waiting = publisher.backlog()
        with explaining(f"could not examine {settings.describe()}"):
            length = int(client.xlen(settings.stream))
            names = [str(one["name"]) for one in groups(client, settings)]
            if settings.group in names:
                _try_all(client, settings)
            listed, info = connected_names(client) is not None, _info(client)
    finally:
        publisher.close()
        client.close()
    yield _group(settings, names, waiting)
    others = sorted(set(names) - {settings.group})
    if others and settings.delete:
        yield Diagnosis(
            "other groups",
            "wrong",
            f"the stream is also read by {', '.join(others)}, who would miss entries that we "
            "delete",
            "set delete: false, or remove those groups with XGROUP DESTROY",
        )
    if settings.max_length is not None and length >= settings.max_length:
        yield Diagnosis(
            "length",
            "warning",
            f"the stream has {counted(length, 'entry', 'entries')}, max_length "
            f"{settings.max_length:,}: nothing can "
            "be published",
            "find out why it is not drained, or raise max_length",
        )
    if not listed:
        yield Diagnosis(
            "connections",
            "warning",
            "the user may not list connections: entries of a worker that died come again after "
            f"{settings.idle_seconds:g} s, and not at once",
            "allow client|list and client|setname",
        )
    yield from judge_stream(info, "queue server", "their messages with them")


def _group(settings: RedisStream, names: list[str], waiting: int) -> Diagnosis:
    found = f"{settings.describe()}: {counted(waiting, 'message waits', 'messages wait')}"
    if settings.group in names:
        return Diagnosis("queue", "good", found)
    if settings.declare:
        return Diagnosis("queue", "good", f"{found}; the group will be created")
    return Diagnosis(
        "queue",
        "wrong",
        f"{found}, and there is no such group",
        "create it with XGROUP CREATE, or set declare: true",
    )


def _try_all(client: redis.Redis, settings: RedisStream) -> None:
    """The commands of a drain, of an entry that cannot exist."""
    key, group, consumer = settings.stream, settings.group, f"doctor-{uuid.uuid4().hex}"
    client.ping()
    command(client, "XREADGROUP", "GROUP", group, consumer, "COUNT", 1, "STREAMS", key, "0")
    try:
        command(client, "EVAL", "return 0", 0)
        run(client, "return 0", [])
        client.xpending_range(key, group, "-", "+", 1, consumer)
        client.xclaim(key, group, consumer, 0, [_NO_ENTRY])
        client.xack(key, group, _NO_ENTRY)
        if settings.delete:
            client.xdel(key, _NO_ENTRY)
        _try_to_add(client, key)
    finally:
        command(client, "XGROUP DELCONSUMER", key, group, consumer)


def _try_to_add(client: redis.Redis, key: str) -> None:
    """The server looks at our rights before it refuses the id."""
    try:
        command(client, "XADD", key, _NO_ENTRY, "field", "value")
    except redis.ResponseError as error:
        if "must be greater than 0" not in str(error):
            raise


def _info(client: redis.Redis) -> dict[str, object] | None:
    try:
        found: dict[str, object] = client.info()
    except redis.ResponseError:
        return None
    return found
