"""How we connect to a Redis server: with as few commands as possible.

What must always hold: a connection sends `AUTH` and `SELECT` if the url says so, and otherwise only
what its user asks for. Managed servers, and servers for users with few rights, forbid `CLIENT` and
`HELLO`, which redis-py sends for its own purposes, and some count each refusal as an attack.
"""

from __future__ import annotations

import inspect
from typing import Any

import redis
from pydantic import SecretStr
from redis.backoff import NoBackoff
from redis.retry import Retry


def connect(url: SecretStr, timeout_seconds: float) -> redis.Redis:
    """A client that has not connected yet. It retries nothing: that is up to the caller.

    Bytes that are not UTF-8 become lone surrogates, and are sent back as the same bytes.
    """
    return redis.Redis.from_url(
        url.get_secret_value(),
        decode_responses=True,
        encoding_errors="surrogateescape",
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
        protocol=2,  # 3 starts with HELLO, and with CLIENT MAINT_NOTIFICATIONS on some servers
        **_unintroduced(),
    )


def _unintroduced() -> dict[str, Any]:
    """The argument that keeps redis-py from sending CLIENT SETINFO; redis-py 7 renamed it."""
    if "driver_info" in inspect.signature(redis.Connection.__init__).parameters or hasattr(
        redis, "DriverInfo"
    ):
        return {"driver_info": None}
    return {"lib_name": None, "lib_version": None}
