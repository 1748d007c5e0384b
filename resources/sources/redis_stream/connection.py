"""What source, publisher and examination do with a server alike: errors, and who is alive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import redis

from fuploader_dagster.errors import SourceRefused, SourceUnavailable
from fuploader_dagster.resources.sources.redis_clients import connected_names, is_named, text
from fuploader_dagster.resources.states.redis_errors import Asker, explained

ASKER = Asker(
    SourceRefused,
    SourceUnavailable,
    "docs/redis-streams.md",
    "the key holds something else than a stream: name another stream; lists have kind: redis_list",
    waits=True,
)


class Consumer(NamedTuple):
    """A consumer of the group, as the server counts."""

    name: str
    pending: int
    alive: bool


@contextmanager
def explaining(trying: str) -> Iterator[None]:
    """Redis's errors become ours. A group that vanished can be made again."""
    try:
        yield
    except (redis.RedisError, OSError) as error:
        if "NOGROUP" in str(error) or "UNBLOCKED" in str(error):
            raise SourceUnavailable(
                f"{trying}: the stream or its consumer group is gone",
                hint="the group is made again (declare: true); who removed it?",
            ) from error
        raise explained(error, trying, asker=ASKER) from error


def consumers(
    client: redis.Redis, stream: str, group: str, idle_seconds: float
) -> Sequence[Consumer]:
    """All consumers of the group. They are listed before the connections: one that is missing
    among these was there before, and is gone."""
    found: Any = client.xinfo_consumers(stream, group)
    connected: set[str] | None = None
    if any(is_named(text(one["name"])) for one in found):
        connected = connected_names(client)
    return [
        Consumer(
            text(one["name"]),
            int(one["pending"]),
            text(one["name"]) in connected
            if connected is not None and is_named(text(one["name"]))
            else int(one["idle"]) < idle_seconds * 1000,
        )
        for one in found
    ]
