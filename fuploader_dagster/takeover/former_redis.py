"""What FUploader kept in Redis: its keys in both styles are read, watched and removed.

What must always hold: only keys of these exact forms are ever removed, and only under a prefix that
names at least one directory which is, or was, below the storage root that is taken over. Other
nodes and other tasks use the same server.

Style `legacy_meta`, prefix `{task}:meta:{node}:` (the node without the ending of its workers):

    slot:{n}:active_dir    slot:{n}:active_count    slot:{n}:dir_seq     strings
    sealed_ready                                                         list of ready entries
    init_lock   finalize_lock   pack_lock:{ready entry}                  strings

Style `default`, prefix `file_uploader:` or another:

    slot:{n}               hash of active_dir_id, active_count, dir_seq
    queue:ready            list of ready entries
    runtime:initialized   lock:init   lock:finalize   pack_lock:{ready entry}

A ready entry is `0:slot_0_1` or `slot-0:dir-000001`: a slot and the name of a sealed directory.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import redis
from pydantic import SecretStr

from fuploader_dagster.resources.states.redis_connection import connect
from fuploader_dagster.resources.states.redis_errors import explained

Value = str | Sequence[str] | Mapping[str, str]

_ACTIVE_DIR = re.compile(r"slot:([0-9]{1,9}):active_dir")
_SLOT = re.compile(r"slot:([0-9]{1,9})")
_KNOWN = re.compile(
    r"slot:[0-9]{1,9}(:(active_dir|active_count|dir_seq))?|sealed_ready|queue:ready|"
    r"init_lock|finalize_lock|lock:init|lock:finalize|runtime:initialized|pack_lock:.+"
)
_TIMEOUT_SECONDS = 5.0
_GLOB = re.compile(r"([*?\[\]\\^-])")
_READY_ENTRY = re.compile(r"(?:slot-)?([0-9]{1,9}):(.+)", re.DOTALL)


@dataclass(frozen=True)
class FormerKeys:
    """FUploader's keys under one prefix."""

    prefix: str
    keys: tuple[str, ...]
    """Full names of all keys of known forms."""
    active: Mapping[int, str]
    """Slot to the directory that it was filling."""
    ready: tuple[tuple[int, str], ...]
    """Slot and directory for each that waited to be packed."""

    def directories(self) -> Iterator[tuple[int, str]]:
        """All directories that the keys name, each with its slot."""
        yield from self.active.items()
        yield from self.ready


def read_keys(prefix: str, dump: Mapping[str, Value]) -> FormerKeys:
    """What the keys under a prefix say. Skips values of other forms than FUploader's."""
    active: dict[int, str] = {}
    ready: list[tuple[int, str]] = []
    known = []
    for key, value in sorted(dump.items()):
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or not _KNOWN.fullmatch(name):
            continue
        known.append(key)
        if (match := _ACTIVE_DIR.fullmatch(name)) and isinstance(value, str):
            active[int(match[1])] = value
        elif (match := _SLOT.fullmatch(name)) and isinstance(value, Mapping):
            active[int(match[1])] = value.get("active_dir_id", "")
        elif name in ("sealed_ready", "queue:ready") and not isinstance(value, (str, Mapping)):
            entries = map(_READY_ENTRY.fullmatch, value)
            ready += [(int(entry[1]), entry[2]) for entry in entries if entry]
    return FormerKeys(prefix, tuple(known), active, tuple(ready))


class FormerRedis:
    """The Redis server in which FUploader kept its state."""

    def __init__(self, url: SecretStr) -> None:
        self._client: Any = connect(url, _TIMEOUT_SECONDS)

    def dump(self, prefix: str) -> Mapping[str, Value]:
        """All strings, lists and hashes under a prefix."""
        with self._explaining():
            pattern = _GLOB.sub(r"\\\1", prefix) + "*"
            found = {key: self._value(key) for key in self._client.scan_iter(pattern, count=1000)}
        return {key: value for key, value in found.items() if value is not None}

    def _value(self, key: str) -> Value | None:
        read = {
            "string": lambda: self._client.get(key),
            "list": lambda: self._client.lrange(key, 0, -1),
            "hash": lambda: self._client.hgetall(key),
        }.get(self._client.type(key))
        return read() if read else None

    def user_of(self, prefixes: Sequence[str], seconds: float) -> str:
        """Who is using such keys now, in words; empty if nobody is.

        Watches for this long, unless nobody else is connected. Changes nothing.
        """
        with self._explaining():
            others = self._others()
            if not others:
                return ""
            try:
                return self._watch(prefixes, seconds)
            except redis.ResponseError:  # managed servers forbid it
                return self._polling(others)

    def _others(self) -> list[dict[str, str]]:
        """All clients of the server except this one."""
        try:
            ourselves = str(self._client.client_id())
            clients = self._client.client_list()
        except redis.ResponseError:
            return [{}]  # there may be others
        return [client for client in clients if client.get("id") != ourselves]

    def _watch(self, prefixes: Sequence[str], seconds: float) -> str:
        """The client that sends the first command with such a key within that time."""
        until = time.monotonic() + seconds
        with self._client.monitor() as monitor:
            while (left := until - time.monotonic()) > 0:
                if not monitor.connection.can_read(timeout=left):
                    continue
                command = monitor.next_command()
                if any(prefix in command["command"] for prefix in prefixes):
                    client = f"{command.get('client_address')}:{command.get('client_port')}"
                    return f"the client {client} of {self._address()} uses FUploader's keys"
        return ""

    def _polling(self, others: Sequence[Mapping[str, str]]) -> str:
        """A client that asks for the next ready directory every second or two, as FUploader."""
        for client in others:
            if client.get("cmd") == "lpop" and int(client.get("idle", "0")) < 10:
                return (
                    f"the client {client.get('addr')} of {self._address()} polls a list as "
                    f"FUploader does (which list is unknown, as the server forbids MONITOR)"
                )
        return ""

    def remove(self, keys: Sequence[str]) -> None:
        """Remove the keys, all at once. Missing ones are no error."""
        if keys:
            with self._explaining():
                self._client.delete(*keys)

    def close(self) -> None:
        """Disconnect. May be repeated."""
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
                more="`takeover.redis_url` names FUploader's Redis, if it was another one",
            ) from error
