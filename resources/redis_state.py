"""State in Redis: for several workers, machines and restarts at once.

What must always hold:

- Each method that changes something is one script, so one round trip and all or nothing.
- Claims lapse by the server's clock, so that machines with different clocks agree.
- All keys may vanish at any time (FLUSHALL, an empty server): every method works on nothing.

Format: five keys per pipeline and node, with a hash tag, so that a cluster keeps them together:

    {prefix}:{pipeline:node}:slots      hash   slot -> "number messages size_bytes"
    {prefix}:{pipeline:node}:highest    hash   slot -> highest directory number
    {prefix}:{pipeline:node}:claims     hash   slot -> "lapses_at_milliseconds root_id"
    {prefix}:{pipeline:node}:sealed     sorted set, all scores 0, so in lexical order
    {prefix}:{pipeline:node}:totals     hash   counter name -> total
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import redis
from pydantic import Field, SecretStr, field_validator
from redis.backoff import NoBackoff
from redis.retry import Retry

from fuploader_dagster.diagnosis import Diagnosis
from fuploader_dagster.errors import SlotInUse, StateUnavailable
from fuploader_dagster.resources.redis_examination import judge
from fuploader_dagster.secret import Secret
from fuploader_dagster.state import Commit, SlotCount, Snapshot, StateSettings, StateStore

HURRIED_SECONDS = 1.0
_KEYS = ("slots", "highest", "claims", "sealed", "totals")
_TOTALS = ("stored_messages", "stored_bytes", "duplicates", "dead_letters")

_NOW = """
local function now_ms()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""
# Defines claim(slots, root, ttl): nil when all were taken or renewed, or {slot, holder}.
_CLAIM = (
    _NOW
    + """
local function claim(slots, root, ttl_ms)
    local now = now_ms()
    for _, slot in ipairs(slots) do
        local held = redis.call('HGET', KEYS[3], slot)
        if held then
            local lapses_at, holder = held:match('^(%d+) (.*)$')
            if holder ~= root and tonumber(lapses_at) > now then return {slot, holder} end
        end
    end
    for _, slot in ipairs(slots) do
        redis.call('HSET', KEYS[3], slot, string.format('%.0f %s', now + ttl_ms, root))
    end
    return nil
end
"""
)
_CLAIM_SCRIPT = (
    _CLAIM
    + """
local slots = {}
for i = 3, #ARGV do slots[#slots + 1] = ARGV[i] end
return claim(slots, ARGV[1], tonumber(ARGV[2]))
"""
)
_RELEASE_SCRIPT = """
for i = 2, #ARGV do
    local held = redis.call('HGET', KEYS[3], ARGV[i])
    if held and held:match('^%d+ (.*)$') == ARGV[1] then redis.call('HDEL', KEYS[3], ARGV[i]) end
end
"""
# Arguments: root, ttl, the four totals, number of slots, (slot, number, messages, bytes)..., keys
_RECORD_SCRIPT = (
    _CLAIM
    + """
local first_key = 8 + 4 * tonumber(ARGV[7])
local slots = {}
for i = 8, first_key - 1, 4 do slots[#slots + 1] = ARGV[i] end
local refused = claim(slots, ARGV[1], tonumber(ARGV[2]))
if refused then return refused end
for i = 8, first_key - 1, 4 do
    local slot, number = ARGV[i], ARGV[i + 1]
    redis.call('HSET', KEYS[1], slot, number .. ' ' .. ARGV[i + 2] .. ' ' .. ARGV[i + 3])
    local highest = redis.call('HGET', KEYS[2], slot)
    if not highest or tonumber(highest) < tonumber(number) then
        redis.call('HSET', KEYS[2], slot, number)
    end
end
for i = first_key, #ARGV do redis.call('ZADD', KEYS[4], 0, ARGV[i]) end
for i, name in ipairs({'stored_messages', 'stored_bytes', 'duplicates', 'dead_letters'}) do
    if ARGV[2 + i] ~= '0' then redis.call('HINCRBY', KEYS[5], name, ARGV[2 + i]) end
end
return nil
"""
)
_SNAPSHOT_SCRIPT = (
    _NOW
    + """
return {
    redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[3]),
    redis.call('ZCARD', KEYS[4]), redis.call('HGETALL', KEYS[5]), now_ms()
}
"""
)


class RedisState(StateSettings):
    """A Redis server, which several nodes and pipelines may share."""

    url: Secret = SecretStr("redis://localhost:6379/0")
    """`redis://user:password@host:6379/0`, `rediss://…` for TLS, `unix:///path`."""
    key_prefix: str = Field(default="fuploader", min_length=1, pattern=r"^[^{}\s]+$")
    """All keys start with it."""
    timeout_seconds: float = Field(default=5, gt=0, le=60)
    """For connecting and for each answer. A worker that waits for Redis does not drain."""

    @field_validator("url")
    @classmethod
    def _usable_url(cls, url: SecretStr) -> SecretStr:
        try:
            redis.ConnectionPool.from_url(url.get_secret_value())
            usable = True
        except (ValueError, TypeError):  # not passed on: its text may quote the password
            usable = False
        if not usable:
            raise ValueError("url must look like redis://user:password@host:6379/0, or rediss://")
        return url

    def store(self, *, pipeline: str, node: str) -> RedisStateStore:
        return RedisStateStore(self, pipeline, node)

    def examine(self) -> Iterator[Diagnosis]:
        yield from super().examine()
        store = self.store(pipeline="doctor", node="doctor")
        try:
            yield from judge(*store.server())
        finally:
            store.close()

    def redis_url(self) -> SecretStr:
        return self.url

    def in_a_hurry(self) -> RedisState:
        seconds = min(self.timeout_seconds, HURRIED_SECONDS)
        return self.model_copy(update={"timeout_seconds": seconds})

    def describe(self) -> str:
        parts = urlsplit(self.url.get_secret_value())
        where = f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else ""
        return f"Redis at {parts.scheme}://{where}{parts.path}"


class RedisStateStore(StateStore):
    """State of one pipeline on one node. The client's pool makes it thread-safe."""

    def __init__(self, settings: RedisState, pipeline: str, node: str) -> None:
        self._settings = settings
        self._pipeline, self._node = pipeline, node
        # Retrying is the caller's: a `record` that is sent twice would count twice.
        self._client: redis.Redis = redis.Redis.from_url(
            settings.url.get_secret_value(),
            decode_responses=True,
            socket_timeout=settings.timeout_seconds,
            socket_connect_timeout=settings.timeout_seconds,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
            client_name="fuploader",
        )
        prefix = f"{settings.key_prefix}:{{{pipeline}:{node}}}"
        self._keys = [f"{prefix}:{name}" for name in _KEYS]
        self._slots, self._highest, self._claims, self._sealed, self._totals = self._keys
        register = self._client.register_script
        self._claim_script = register(_CLAIM_SCRIPT)
        self._release_script = register(_RELEASE_SCRIPT)
        self._record_script = register(_RECORD_SCRIPT)
        self._snapshot_script = register(_SNAPSHOT_SCRIPT)

    def open(self) -> None:
        with self._explaining():
            self._client.ping()

    def close(self) -> None:
        with suppress(redis.RedisError, OSError):
            self._client.close()

    def claim(self, slots: Sequence[int], root_id: str, ttl_seconds: float) -> None:
        refused = self._run(self._claim_script, root_id, _milliseconds(ttl_seconds), *slots)
        self._raise_if_held(refused)

    def release(self, slots: Sequence[int], root_id: str) -> None:
        self._run(self._release_script, root_id, *slots)

    def record(self, commit: Commit, *, root_id: str, ttl_seconds: float) -> None:
        counts = [(s.slot, s.number, s.messages, s.size_bytes) for s in commit.slots]
        refused = self._run(
            self._record_script,
            root_id,
            _milliseconds(ttl_seconds),
            *(getattr(commit, name) for name in _TOTALS),
            len(counts),
            *(value for count in counts for value in count),
            *commit.sealed,
        )
        self._raise_if_held(refused)

    def highest_number(self, slot: int) -> int:
        with self._explaining():
            number: Any = self._client.hget(self._highest, str(slot))
        return int(number or 0)

    def add_sealed(self, keys: Sequence[str]) -> None:
        if keys:
            with self._explaining():
                self._client.zadd(self._sealed, dict.fromkeys(keys, 0))

    def sealed(self, limit: int) -> list[str]:
        if limit <= 0:
            return []
        with self._explaining():
            keys: Any = self._client.zrange(self._sealed, 0, limit - 1)
        return list(keys)

    def forget_sealed(self, keys: Sequence[str]) -> None:
        if keys:
            with self._explaining():
                self._client.zrem(self._sealed, *keys)

    def snapshot(self) -> Snapshot:
        slots, claims, waiting, totals, now_ms = self._run(self._snapshot_script)
        counts = [
            SlotCount(int(slot), *(int(value) for value in text.split()))
            for slot, text in _pairs(slots)
        ]
        held = [(int(slot), text.partition(" ")) for slot, text in _pairs(claims)]
        return Snapshot(
            slots=tuple(sorted(counts, key=lambda count: count.slot)),
            owners={slot: root for slot, (lapses_at, _, root) in held if int(lapses_at) > now_ms},
            sealed_waiting=waiting,
            **{name: int(total) for name, total in _pairs(totals)},
        )

    def server(self) -> tuple[dict[str, Any], str | None]:
        """`INFO`, and `CONFIG GET save`, which many a service forbids (None then)."""
        with self._explaining():
            info: Any = self._client.info()
            try:
                settings: Any = self._client.config_get("save")
            except redis.ResponseError:
                return info, None
        return info, settings.get("save", "")

    def _run(self, script: Callable[..., Any], *arguments: object) -> Any:
        with self._explaining():
            return script(keys=self._keys, args=arguments)

    def _raise_if_held(self, refused: Sequence[str] | None) -> None:
        if refused:
            slot, holder = refused
            raise SlotInUse(
                f"slot {slot} of pipeline {self._pipeline} on node {self._node!r} is held by "
                f"storage root {holder}, says {self._settings.describe()}",
                hint="do two storage roots or machines use the same node name?",
            )

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise StateUnavailable(
                f"{self._settings.describe()} failed: {error or type(error).__name__}",
                hint=_hint(error),
            ) from error


def _hint(error: Exception) -> str:
    if isinstance(error, (redis.AuthenticationError, redis.exceptions.NoPermissionError)):
        return "check user and password in the url, and the user's rights"
    if isinstance(error, redis.ResponseError):
        text = str(error)
        if "WRONGTYPE" in text:
            return "something else uses these keys: set another key_prefix"
        return "see the server's log and its memory limit"
    return "is Redis running, and can this machine reach it?"


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _pairs(flat: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Redis gives a hash from a script as name, value, name, value."""
    return zip(flat[::2], flat[1::2], strict=True)
