"""State in Redis: for several workers, machines and restarts at once.

What must always hold:

- Each method that changes something is one script or one command, so one round trip, and all or
  nothing. The scripts are in `redis_scripts`.
- Claims lapse by the server's clock, so that machines with different clocks agree. A claim that
  lasts longer than `LONGEST_CLAIM_SECONDS` was made before that clock was set back: it is cut.
- What others put into our keys is ignored (`redis_values`), and replaced when we write.
- Nothing is sent that a pipeline does not need: docs/operations.md lists the rights.
- All keys may vanish at any time (FLUSHALL, an empty server): every method works without them.

Format: six keys per pipeline and node, with a hash tag so that a cluster keeps them together:

    {prefix}:{pipeline:node}:slots      hash   slot -> "number messages size_bytes"
    {prefix}:{pipeline:node}:highest    hash   slot -> highest directory number
    {prefix}:{pipeline:node}:claims     hash   slot -> "lapses_at_milliseconds root_id"
    {prefix}:{pipeline:node}:sealed     sorted set, all scores 0, so in lexical order
    {prefix}:{pipeline:node}:totals     hash   counter name -> total
    {prefix}:{pipeline:node}:epochs     hash   slot -> "epoch nonce place", a line break, "root_id":
                                               who took the slot last, also after the claim lapsed

and one for all nodes of a pipeline, with the hash tag of the node `local`, so that in a cluster a
pipeline without `node_id` has it beside the others:

    {prefix}:{pipeline:local}:notes     hash   name -> "microseconds text"
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from typing import Any

import redis
from pydantic import Field, SecretStr, field_validator

from fuploader_dagster.contracts import state
from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.disk.layout import NO_NODE
from fuploader_dagster.errors import StateRefused
from fuploader_dagster.resources.states import redis_scripts as scripts
from fuploader_dagster.resources.states import redis_values as values
from fuploader_dagster.resources.states.redis_connection import address, connect, run, usable
from fuploader_dagster.resources.states.redis_errors import explained, shown
from fuploader_dagster.resources.states.redis_examination import judge
from fuploader_dagster.settings.secret import Secret

_KEYS = ("slots", "highest", "claims", "sealed", "totals", "epochs")
_MOST_NONSENSE_SHOWN = 3
_MOST_OF_A_PLACE = 600
"""Characters that are shown."""


class RedisState(state.StateSettings):
    """A Redis server, which several nodes and pipelines may share."""

    url: Secret = SecretStr("redis://localhost:6379/0")
    """Address of the server: `redis://user:password@host:6379/0`, `rediss://…` for TLS,
    `unix:///path`, or of Sentinels, `redis+sentinel://user:password@host:26379,host:26379/NAME/0`."""
    key_prefix: str = Field(default="fuploader", min_length=1, pattern=r"^[^{}\s]+$")
    """Prefix of all keys."""
    timeout_seconds: float = Field(default=5, gt=0, le=60)
    """Longest time to wait for a connection, and for an answer. A worker does not drain while it
    waits for Redis."""

    @field_validator("url")
    @classmethod
    def _usable_url(cls, url: SecretStr) -> SecretStr:
        return usable(url)

    def store(self, *, pipeline: str, node: str) -> RedisStateStore:
        return RedisStateStore(self, pipeline, node)

    def examine(self) -> Iterator[Diagnosis]:
        return self.examine_for(pipeline=state.OF_NO_PIPELINE, node="doctor")

    def examine_for(self, *, pipeline: str, node: str) -> Iterator[Diagnosis]:
        """With the pipeline's own keys: rights, and the nodes of a cluster, differ by key."""
        store = self.store(pipeline=pipeline, node=node)
        try:
            store.open()
            store.prove()
            nonsense = store.look()[1]
            yield Diagnosis("state", "good", f"{self.describe()}: written and read")
            yield from _about_notes(store)
            if nonsense:
                yield _about(nonsense)
            yield from judge(*store.server())
        finally:
            store.close()

    def redis_url(self) -> SecretStr:
        return self.url

    def holds_any(self, keys: Sequence[str]) -> bool:
        client = connect(self.url, self.timeout_seconds)
        try:
            return bool(client.exists(*keys))
        except redis.ResponseError:  # no right to look there, or another node of a cluster has them
            return False
        except (redis.RedisError, OSError) as error:
            raise explained(error, f"{self.describe()} failed") from error
        finally:
            client.close()

    def in_a_hurry(self) -> RedisState:
        seconds = min(self.timeout_seconds, state.HURRIED_SECONDS)
        return self.model_copy(update={"timeout_seconds": seconds})

    def describe(self) -> str:
        return f"Redis at {address(self.url)}"


class RedisStateStore(state.StateStore):
    """State of one pipeline on one node. The client's pool makes it thread-safe."""

    def __init__(self, settings: RedisState, pipeline: str, node: str) -> None:
        self._settings = settings
        self._pipeline, self._node = pipeline, node
        # Nothing is retried: a `record` sent twice would count twice.
        self._client = connect(settings.url, settings.timeout_seconds)
        prefix = f"{settings.key_prefix}:{{{pipeline}:{node}}}"
        self._keys = [f"{prefix}:{name}" for name in _KEYS]
        self._slots, self._highest, self._claims, self._sealed, self._totals = self._keys[:5]
        self._notes = f"{settings.key_prefix}:{{{pipeline}:{NO_NODE}}}:notes"

    def open(self) -> None:
        with self._explaining():
            self._client.ping()

    def close(self) -> None:
        with suppress(redis.RedisError, OSError):
            self._client.close()

    def claim(self, slots: Sequence[int], root_id: str, ttl_seconds: float) -> None:
        refused = self._run(scripts.CLAIM, root_id, _milliseconds(ttl_seconds), *slots)
        self._raise_if_held(refused)

    def release(self, slots: Sequence[int], root_id: str) -> None:
        self._run(scripts.RELEASE, root_id, *slots)

    def take(self, claims: Sequence[state.Claim], ttl_seconds: float) -> list[state.Claim]:
        if not claims:
            return []
        each = [(one.slot, one.epoch, one.nonce, one.place) for one in claims]
        root_id, ttl = claims[0].root_id, _milliseconds(ttl_seconds)
        answer = self._run(scripts.TAKE, root_id, ttl, *chain.from_iterable(each))
        if answer[0] != "taken":
            self._raise_if_held(answer, claims)
        return [
            replace(one, epoch=int(epoch)) for one, epoch in zip(claims, answer[1:], strict=True)
        ]

    def give_back(self, claims: Sequence[state.Claim]) -> None:
        if claims:
            each = [(one.slot, one.epoch, one.nonce) for one in claims]
            self._run(scripts.GIVE_BACK, claims[0].root_id, *chain.from_iterable(each))

    def record(self, commit: state.Commit, *, root_id: str, ttl_seconds: float) -> None:
        counts = [(s.slot, s.number, s.messages, s.size_bytes) for s in commit.slots]
        claims = [(one.slot, one.epoch, one.nonce, one.place) for one in commit.claims]
        refused = self._run(
            scripts.RECORD,
            root_id,
            _milliseconds(ttl_seconds),
            *(getattr(commit, name) for name in state.TOTALS),
            len(counts),
            *chain.from_iterable(counts),
            len(claims),
            *chain.from_iterable(claims),
            *commit.sealed,
        )
        self._raise_if_held(refused, commit.claims)

    def highest_number(self, slot: int) -> int:
        with self._explaining():
            text: Any = self._client.hget(self._highest, str(slot))
        nonsense: list[str] = []
        number = values.read_highest(self._highest, str(slot), text, nonsense)
        _warn(nonsense)
        return number

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

    def snapshot(self) -> state.Snapshot:
        snapshot, nonsense = self.look()
        _warn(nonsense)
        return snapshot

    def notes(self) -> dict[str, state.Note]:
        with self._explaining():
            found: Any = self._client.hgetall(self._notes)
        nonsense: list[str] = []
        notes = values.read_notes(self._notes, found, nonsense)
        _warn(nonsense)
        return notes

    def put_note(self, name: str, note: state.Note) -> None:
        with self._explaining():
            run(self._client, scripts.PUT_NOTE, [self._notes], name, note.at, note.text)

    def look(self) -> tuple[state.Snapshot, list[str]]:
        """A snapshot, and sentences about the values that were ignored."""
        slots, claims, waiting, totals, now_ms = self._run(scripts.SNAPSHOT)
        nonsense: list[str] = []
        snapshot = state.Snapshot(
            slots=tuple(values.read_counts(self._slots, slots, nonsense)),
            owners=values.read_owners(self._claims, claims, now_ms, nonsense),
            sealed_waiting=waiting,
            **values.read_totals(self._totals, totals, nonsense),
        )
        return snapshot, nonsense

    def prove(self) -> None:
        """Do with the pipeline's own keys what its drain does, and leave nothing. For the doctor.

        Raises what the drain would meet: missing rights, a replica, full memory, the wrong node.
        """
        probe = f"probe-{secrets.token_hex(8)}"
        self._run(scripts.UNPROVE, probe)
        self._run(scripts.PROVE, probe)
        self._run(scripts.CLAIM, "doctor", 1)  # of no slots
        self._run(scripts.RELEASE, "doctor")
        self._run(scripts.TAKE, "doctor", 1)
        self._run(scripts.GIVE_BACK, "doctor")
        self.forget_sealed([probe])
        self.highest_number(0)
        self.sealed(1)

    def server(self) -> tuple[Mapping[str, Any] | None, str | None]:
        """`INFO` and `CONFIG GET save`; None for what we may not ask, which no pipeline needs."""
        with self._explaining():
            return self._asked(self._client.info), self._asked(
                lambda: self._client.config_get("save").get("save", "")
            )

    def _asked(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except redis.ResponseError:
            return None

    def _run(self, script: str, *arguments: Any) -> Any:
        with self._explaining():
            return run(self._client, script, self._keys, *arguments)

    def _raise_if_held(
        self, refused: Sequence[str] | None, claims: Sequence[state.Claim] = ()
    ) -> None:
        if refused:
            kind, slot, holder, place = refused
            raise state.refusal(
                int(slot),
                shown(holder),
                shown(place, _MOST_OF_A_PLACE) if place else "",
                next((one for one in claims if one.slot == int(slot)), None),
                outdated=kind == "outdated",
                about=f"pipeline {self._pipeline} on node {self._node!r} in "
                f"{self._settings.describe()}",
            )

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError) as error:
            key = self._key_of_another_type() if "WRONGTYPE" in str(error) else ""
            about = f", key {key}" if key else ""
            raise explained(error, f"{self._settings.describe()}{about} failed") from error

    def _key_of_another_type(self) -> str:
        """The first key of another type, found with commands that a pipeline may use anyway."""
        for key in (*self._keys, self._notes):
            try:
                if key == self._sealed:
                    self._client.zrange(key, 0, 0)
                else:
                    self._client.hget(key, "0")
            except redis.ResponseError:
                return key
            except (redis.RedisError, OSError):
                return ""  # the server is gone by now; the first error is the one to report
        return ""


def _about_notes(store: RedisStateStore) -> Iterator[Diagnosis]:
    """Without the key of the notes a drain works, but knows only pauses of its own node."""
    try:
        store.notes()
    except StateRefused as error:
        yield Diagnosis(
            "state notes",
            "warning",
            f"{error.message}: this node does not learn of a pause that is asked for on another",
            error.hint or "give the user the rights on the key that ends in :notes",
        )


def _about(nonsense: Sequence[str]) -> Diagnosis:
    left_out = len(nonsense) - _MOST_NONSENSE_SHOWN
    told = [*nonsense[:_MOST_NONSENSE_SHOWN], *([f"{left_out} more"] if left_out > 0 else [])]
    return Diagnosis(
        "state values",
        "warning",
        "; ".join(told),
        "find out who else writes to these keys; you may remove them: workers rely on the disk",
    )


def _warn(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        state.warn_once(sentence)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
