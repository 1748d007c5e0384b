"""FUploader's keys in Redis, for taking over: looked at, watched, removed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import redis
from pydantic import SecretStr

from fuploader_dagster.resources.states.redis_connection import connect
from fuploader_dagster.resources.states.redis_errors import explained
from fuploader_dagster.takeover.former_redis import Value

_TIMEOUT_SECONDS = 5.0
_GLOB = re.compile(r"([*?\[\]\\^-])")


class FuploaderRedis:
    """`former_state.FormerState` on a Redis server."""

    def __init__(self, url: SecretStr) -> None:
        self._client = connect(url, _TIMEOUT_SECONDS)

    def dump(self, prefix: str) -> Mapping[str, Value]:
        with self._explaining():
            pattern = _GLOB.sub(r"\\\1", prefix) + "*"
            found = {key: self._value(key) for key in self._client.scan_iter(pattern, count=1000)}
        return {key: value for key, value in found.items() if value is not None}

    def _value(self, key: str) -> Value | None:
        client: Any = self._client
        read = {
            "string": lambda: client.get(key),
            "list": lambda: client.lrange(key, 0, -1),
            "hash": lambda: client.hgetall(key),
        }.get(client.type(key))
        return read() if read else None

    def user_of(self, prefixes: Sequence[str], seconds: float) -> str:
        with self._explaining():
            others = self._others()
            if not others:
                return ""
            try:
                command = self._watch(prefixes, seconds)
            except redis.ResponseError:  # managed servers forbid it
                return self._polling(others)
        if command is None:
            return ""
        host, port = command.get("client_address"), command.get("client_port")
        return f"the client {host}:{port} of {self._address()} uses FUploader's keys"

    def _others(self) -> list[dict[str, str]]:
        """All clients of the server but this one."""
        try:
            ourselves: Any = self._client.client_id()
            clients: Any = self._client.client_list()
        except redis.ResponseError:
            return [{}]  # nobody can be ruled out
        return [client for client in clients if client.get("id") != str(ourselves)]

    def _watch(self, prefixes: Sequence[str], seconds: float) -> Mapping[str, str] | None:
        """The first command that names such a key; None if there is none in that time."""
        until = time.monotonic() + seconds
        client: Any = self._client
        with client.monitor() as monitor:
            connection: Any = monitor.connection
            while (left := until - time.monotonic()) > 0:
                if not connection.can_read(timeout=left):
                    continue
                command: dict[str, str] = monitor.next_command()
                if any(prefix in command["command"] for prefix in prefixes):
                    return command
        return None

    def _polling(self, others: Sequence[Mapping[str, str]]) -> str:
        """FUploader asks for the next ready directory every second or two."""
        for client in others:
            if client.get("cmd") == "lpop" and int(client.get("idle", "0")) < 10:
                return (
                    f"the client {client.get('addr')} of {self._address()} polls a list as "
                    f"FUploader does (the server does not say which: MONITOR is forbidden)"
                )
        return ""

    def remove(self, keys: Sequence[str]) -> None:
        if keys:
            with self._explaining():
                self._client.delete(*keys)

    def close(self) -> None:
        with suppress(redis.RedisError, OSError):
            self._client.close()

    def _address(self) -> str:
        options = self._client.connection_pool.connection_kwargs
        return f"Redis at {options.get('host', options.get('path'))}:{options.get('port', '')}"

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise explained(
                error,
                f"FUploader's keys in {self._address()} cannot be read",
                more="with an empty `takeover.key_prefix` and another `takeover.task_name` no keys "
                "are looked for",
            ) from error
