"""What source, publisher and examination do with a server alike: errors, and who is alive.

What must always hold: a consumer whose connection exists is alive. A consumer is named after its
connection, which the server lists; if it may not be asked, or a consumer has no such name, only a
long silence tells that it is gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import redis

from fuploader_dagster.errors import SourceRefused, SourceUnavailable
from fuploader_dagster.resources.states.redis_errors import Asker, explained

NAMED = "fuploader-"
"""What the name of a consumer begins with whose connection has the same name."""
_NAME = re.compile(re.escape(NAMED) + r"[0-9a-f]{32}")
ASKER = Asker(
    SourceRefused,
    SourceUnavailable,
    "docs/redis-streams.md",
    "the key holds something else than a stream: name another stream",
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


def command(client: redis.Redis, *arguments: Any) -> Any:
    """The answer to one command."""
    return client.execute_command(*arguments)  # type: ignore[no-untyped-call]


def consumers(
    client: redis.Redis, stream: str, group: str, idle_seconds: float
) -> Sequence[Consumer]:
    """All consumers of the group. They are listed before the connections: one that is missing
    among these was there before, and is gone."""
    found: Any = client.xinfo_consumers(stream, group)
    connected: set[str] | None = None
    if any(_NAME.fullmatch(_str(one["name"])) for one in found):
        connected = _connected(client)
    return [
        Consumer(
            _str(one["name"]),
            int(one["pending"]),
            _str(one["name"]) in connected
            if connected is not None and _NAME.fullmatch(_str(one["name"]))
            else int(one["idle"]) < idle_seconds * 1000,
        )
        for one in found
    ]


def may_list_connections(client: redis.Redis) -> bool:
    return _connected(client) is not None


def _connected(client: redis.Redis) -> set[str] | None:
    """Names of all connections; None if the server does not tell."""
    try:
        listed = command(client, "CLIENT LIST")
    except redis.ResponseError:
        return None
    return {_str(one.get("name", "")) for one in listed}


def _str(value: Any) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
