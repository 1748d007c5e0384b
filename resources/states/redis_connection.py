"""How we connect to a Redis server: with as few commands as possible.

What must always hold: a connection sends `AUTH` and `SELECT` if the url says so, and otherwise only
what its user asks for. Managed servers, and servers for users with few rights, forbid `CLIENT` and
`HELLO`, which redis-py sends for its own purposes, and some count each refusal as an attack.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import redis
from pydantic import SecretStr
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
from redis.retry import Retry
from redis.utils import HIREDIS_AVAILABLE

from fuploader_dagster.resources.states.redis_sentinel import master, names_sentinels, watched
from fuploader_dagster.settings.secret import place_of_unset


def connect(
    url: SecretStr, timeout_seconds: float, *, decode: bool = True, client_name: str | None = None
) -> redis.Redis:
    """A client that has not connected yet. It retries nothing: that is up to the caller.

    Answers are text, where bytes that are not UTF-8 become lone surrogates, and are sent back as
    the same bytes; without `decode`, they are bytes. `client_name`: what the server calls each of
    its connections, with CLIENT SETNAME.
    """
    options: dict[str, Any] = {
        "decode_responses": decode,
        "client_name": client_name,
        "encoding_errors": "surrogateescape",
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # 3 starts with HELLO, and with CLIENT MAINT_NOTIFICATIONS on some servers
        **_unintroduced(),
    }
    if HIREDIS_AVAILABLE:
        options["command_packer"] = _Packer()
    text = url.get_secret_value()
    if names_sentinels(text):
        return master(text, **options)
    return redis.Redis.from_url(text, **options)


class _Packer(HiredisRespSerializer):
    """hiredis's own does not know of `encoding_errors`, and fails at a lone surrogate."""

    def pack(self, *args: Any) -> Any:
        try:
            return super().pack(*args)
        except UnicodeEncodeError:
            return super().pack(*map(_as_bytes, args))


def _as_bytes(argument: Any) -> Any:
    return argument.encode(errors="surrogateescape") if isinstance(argument, str) else argument


def usable(url: SecretStr) -> SecretStr:
    """The same url. Raises `ValueError`, which does not quote it, if nothing can be made of it."""
    if place_of_unset(url):
        return url
    text = url.get_secret_value()
    if names_sentinels(text):
        watched(text)
        return url
    try:
        redis.ConnectionPool.from_url(text)
        good = True
    except (ValueError, TypeError):  # not passed on, because it may quote the password
        good = False
    if not good:
        raise ValueError("url must look like redis://user:password@host:6379/0, or rediss://")
    return url


def address(url: SecretStr) -> str:
    """The url without login and options."""
    if unset := place_of_unset(url):
        return unset
    parts = urlsplit(url.get_secret_value())
    if names_sentinels(url.get_secret_value()):
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    where = f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else ""
    return f"{parts.scheme}://{where}{parts.path}"


def run(client: redis.Redis, script: str, keys: Sequence[str], *arguments: Any) -> Any:
    """What a script returns: one round trip, or two if the server does not have it yet."""
    sent = (len(keys), *keys, *arguments)
    try:
        return client.evalsha(_digest(script), *sent)
    except redis.exceptions.NoScriptError:
        return client.eval(script, *sent)


@lru_cache(maxsize=32)
def _digest(script: str) -> str:
    """The name that Redis has for a script."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def _unintroduced() -> dict[str, Any]:
    """The argument that keeps redis-py from sending CLIENT SETINFO; redis-py 7 renamed it."""
    if "driver_info" in inspect.signature(redis.Connection.__init__).parameters or hasattr(
        redis, "DriverInfo"
    ):
        return {"driver_info": None}
    return {"lib_name": None, "lib_version": None}
