"""Consumers of a Redis server: each is named after its connection, so that the server lists them.

What must always hold: a consumer whose connection exists is alive. If the server may not be asked,
or a consumer has no such name, only a long silence tells that it is gone.
"""

from __future__ import annotations

import re
import uuid
from typing import Any

import redis
from pydantic import SecretStr

from fuploader_dagster.resources.states.redis_connection import connect

NAMED = "fuploader-"
"""What the name of a consumer begins with whose connection has the same name."""
LOOK_EVERY_SECONDS = 1.0
"""Between two looks for consumers that are gone."""
_NAME = re.compile(re.escape(NAMED) + r"[0-9a-f]{32}")


def named_client(url: SecretStr, timeout_seconds: float) -> tuple[redis.Redis, str]:
    """A client that is connected, and its consumer's name: that of the connection, if the server
    lets us name it. Answers are bytes."""
    consumer = uuid.uuid4().hex
    for name in (f"{NAMED}{consumer}", None):
        client = connect(url, timeout_seconds, decode=False, client_name=name)
        try:
            client.ping()
        except redis.exceptions.ResponseError:  # NoPermissionError is one
            client.close()
            if name is None:
                raise
        else:
            return client, name or f"unnamed-{consumer}"
    raise AssertionError


def is_named(consumer: str) -> bool:
    return _NAME.fullmatch(consumer) is not None


def connected_names(client: redis.Redis) -> set[str] | None:
    """Names of all connections; None if the server does not tell."""
    try:
        listed = command(client, "CLIENT LIST")
    except redis.ResponseError:
        return None
    return {text(one.get("name", "")) for one in listed}


def command(client: redis.Redis, *arguments: Any) -> Any:
    """The answer to one command."""
    return client.execute_command(*arguments)  # type: ignore[no-untyped-call]


def text(value: Any) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
