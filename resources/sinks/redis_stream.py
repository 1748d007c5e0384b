"""A stream of a Redis server, which gets an entry for each row.

What must always hold:

- Redis cannot undo, so nothing is added before the delivery is complete: its chunks are staged in a
  list, and a commit, which is one step, notes in the ledger that this list is the delivery. A list
  that was not committed lapses, and nobody sees it.
- What is committed is moved to the stream chunk by chunk, each in one step, by whoever asks for the
  delivery next. Its items are not read again: their rows may differ by then.
- The stream is never trimmed. If it is full, nothing is committed.

How it works: `redis_stream_entries` makes entries of rows, `redis_stream_scripts` has the steps. A
redo deletes the entries of the earlier delivery that are still in the stream: the entries of a
chunk have consecutive ids, and the ledger's list has the first and the last of each chunk.

Format: beside the stream, three keys per partition of a sink. `{STREAM}` is a hash tag, so that a
cluster keeps all in one place; if the stream's name has a hash tag itself, that tag and the name
stand there. Names have `%` for what is not a letter, digit or `-._~`.

    PREFIX:{STREAM}:PIPELINE:SINK:PARTITION                 hash: the ledger
        state     moving, done, or lost: the staged chunks vanished, all must be stored again
        redo      which redo of the partition it is
        rows      of the delivery
        added     rows that are in the stream
        staged    token of the list that is moved, or nothing
        earlier   chunks of earlier deliveries that must be deleted before
    PREFIX:{STREAM}:PIPELINE:SINK:PARTITION:ranges          list: "first_id last_id" of a chunk
    PREFIX:{STREAM}:PIPELINE:SINK:PARTITION:staged:TOKEN    list: "", then chunks

A ledger lapses `ledger_days` after its delivery was done; one that is not done does not lapse.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Any, NamedTuple, NoReturn
from urllib.parse import quote

import redis
from pydantic import Field, field_validator

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.settings import Count
from fuploader_dagster.contracts.sink import (
    Delivery,
    ItemRows,
    Reject,
    Sink,
    SinkSettings,
    StoredRows,
)
from fuploader_dagster.errors import SinkRefused, SinkUnavailable
from fuploader_dagster.resources.sinks import redis_stream_scripts as scripts
from fuploader_dagster.resources.sinks.redis_stream_entries import Chunks, Encode, as_json, flat
from fuploader_dagster.resources.states.redis_connection import address, connect, run, usable
from fuploader_dagster.resources.states.redis_errors import Asker, explained
from fuploader_dagster.resources.states.redis_examination import judge_stream
from fuploader_dagster.settings.secret import Secret

log = logging.getLogger(__name__)

STAGED_SECONDS = 86_400
"""A list that was not committed lapses after so long without a new chunk: longer than rows take."""
_HEADER = b""
_TRIES = 5
_DAY_MS = 86_400_000
_STREAM_NAME = re.compile(r"[^{}]+|[^{}]*\{[^{}]+\}[^{}]*")
_ASKER = Asker(
    SinkRefused,
    SinkUnavailable,
    "the section on Redis streams of docs/sinks.md",
    "something else uses this key: name another stream, or another key_prefix",
    waits=True,
)


class RedisStreamSink(SinkSettings):
    """A stream of Redis. Each row becomes an entry; the first one makes the stream."""

    url: Secret
    """Address of the server: `redis://user:password@host:6379/0`, `rediss://…` for TLS,
    `unix:///path`, or of Sentinels, `redis+sentinel://user:password@host:26379,host:26379/NAME/0`."""
    stream: Annotated[str, Field(min_length=1, max_length=500)]
    """Key of the stream."""
    json_field: Annotated[str, Field(min_length=1)] | None = None
    """Name of the one field that gets the row as JSON. By default, each value of a row is a field:
    text as it is, anything else as JSON, and no field for a value that is null."""
    max_length: Count | None = None
    """Maximum number of entries in the stream. Rows that would exceed it wait, until others have
    deleted entries. Nothing is ever trimmed. By default, there is no maximum."""
    key_prefix: str = Field(default="fuploader", min_length=1, pattern=r"^[^{}\s]+$")
    """Prefix of the keys of the ledger, which says which partitions are stored."""
    ledger_days: Annotated[float, Field(gt=0, le=36_500)] = 30.0
    """How long the ledger knows a partition that is stored. One that is asked for again after that
    time, by a machine without its receipt, is stored again."""
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 10.0
    """Longest time to wait for a connection, and for an answer."""

    @field_validator("url")
    @classmethod
    def _usable_url(cls, url: Secret) -> Secret:
        return usable(url)

    @field_validator("stream")
    @classmethod
    def _one_hash_tag(cls, stream: str) -> str:
        if not _STREAM_NAME.fullmatch(stream):
            raise ValueError(
                "stream may have one hash tag, as in orders{shop}, and no other braces"
            )
        return stream

    def sink(self) -> RedisStreamTarget:
        return RedisStreamTarget(self)

    def describe(self) -> str:
        return f"stream {self.stream} at {address(self.url)}"

    def examine(self) -> Iterator[Diagnosis]:
        target = RedisStreamTarget(self)
        try:
            yield from target.examine()
        finally:
            target.close()


class _Noted(NamedTuple):
    """What the ledger says about a partition, and how many entries the stream has."""

    length: int
    state: str | None
    redo: int
    rows: int
    added: int
    staged: str


class RedisStreamTarget(Sink):
    """The sink itself. Keeps a connection between deliveries."""

    def __init__(self, settings: RedisStreamSink) -> None:
        self._settings = settings
        self._client = connect(settings.url, settings.timeout_seconds)
        self._encode: Encode = flat if settings.json_field is None else as_json(settings.json_field)

    def store(self, delivery: Delivery, items: Iterable[ItemRows], reject: Reject) -> StoredRows:
        attempt = _Attempt(self._settings, self._client, self._encode, delivery)
        return attempt.store(items, reject)

    def close(self) -> None:
        with suppress(redis.RedisError, OSError):
            self._client.close()

    def examine(self) -> Iterator[Diagnosis]:
        settings = self._settings
        probe = Delivery("doctor", "doctor", secrets.token_hex(8))
        attempt = _Attempt(settings, self._client, self._encode, probe)
        noted = attempt.look()
        attempt.run(scripts.PROVE)
        yield Diagnosis(
            "stream", "good", f"{settings.describe()}: {counted(noted.length, 'entry', 'entries')}"
        )
        if settings.max_length is not None and noted.length >= settings.max_length:
            yield Diagnosis(
                "length",
                "warning",
                f"the stream has {counted(noted.length, 'entry', 'entries')}, max_length "
                f"{settings.max_length:,}",
                "find out why nobody deletes entries that were read, or raise max_length",
            )
        info = self._asked(self._client.info)
        yield from judge_stream(info, "sink server", "nothing adds them again")

    def _asked(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except redis.ResponseError:
            return None
        except (redis.RedisError, OSError) as error:
            failure = explained(error, f"{self._settings.describe()} failed", asker=_ASKER)
        raise failure


def ledger_key(prefix: str, stream: str, delivery: Delivery) -> str:
    """In the hash slot of the stream, and no other stream's or delivery's."""
    names = [delivery.pipeline, delivery.sink, delivery.partition]
    tag = stream
    if tagged := re.search(r"\{(.+)\}", stream, re.DOTALL):
        tag = tagged[1]
        names.insert(0, stream)
    return ":".join([prefix, f"{{{tag}}}", *(quote(name, safe="") for name in names)])


class _Attempt:
    """One attempt to store one delivery."""

    def __init__(
        self, settings: RedisStreamSink, client: redis.Redis, encode: Encode, delivery: Delivery
    ) -> None:
        self._settings, self._client, self._encode = settings, client, encode
        self._delivery = delivery
        self._ledger = ledger_key(settings.key_prefix, settings.stream, delivery)
        self._token = secrets.token_hex(8)
        self._most = -1 if settings.max_length is None else settings.max_length

    def store(self, items: Iterable[ItemRows], reject: Reject) -> StoredRows:
        delivery = self._delivery
        noted = self._finished(self.look())
        if noted.state == "done" and noted.redo >= delivery.redo:
            return self._stored(noted.rows, already_there=True)
        if delivery.redo and noted.state is None and noted.length:
            raise SinkRefused(
                f"cannot store {delivery.partition} again in {self._settings.describe()}: the "
                "ledger does not know which entries came from that partition",
                hint="it forgets a partition after ledger_days; under another name, the sink "
                "stores it beside the earlier entries",
            )
        if 0 <= self._most <= noted.length:
            self._full(noted.length)
        return self._committed(items, reject)

    def look(self) -> _Noted:
        length, state, redo, rows, added, staged = self.run(scripts.LOOK)
        return _Noted(length, state, int(redo or 0), int(rows or 0), int(added or 0), staged or "")

    def run(self, script: str, *arguments: Any, token: str = "") -> Any:
        """What a script returns. Raises `SinkUnavailable` or `SinkRefused`."""
        keys = [
            self._settings.stream,
            self._ledger,
            f"{self._ledger}:ranges",
            f"{self._ledger}:staged:{token or self._token}",
        ]
        try:
            return run(self._client, script, keys, *arguments)
        except (redis.RedisError, OSError) as error:
            failure = explained(error, f"{self._settings.describe()} failed", asker=_ASKER)
        raise failure  # outside of `except`, so that it does not refer to redis-py's

    def _committed(self, items: Iterable[ItemRows], reject: Reject) -> StoredRows:
        """Stage, commit and move the rows. What is staged goes unless it is committed."""
        committed = False
        try:
            chunks = self._stage(items)
            if chunks.rejected:
                reject(chunks.rejected)
            committed = self._commit(chunks)
        finally:
            if not committed:
                self._drop()
        noted = self._finished(self.look())
        if noted.state != "done" or noted.redo < self._delivery.redo:
            raise SinkUnavailable(
                f"{self._delivery.partition} is not yet in {self._settings.describe()}: another "
                "process stores it at this moment, or its staged rows are gone",
                hint="it is tried again",
            )
        return self._stored(noted.rows, already_there=not committed)

    def _stage(self, items: Iterable[ItemRows]) -> Chunks:
        chunks = Chunks(self._encode)
        before: Sequence[bytes] = (_HEADER,)
        for chunk in chunks.of(items):
            if 0 <= self._most < chunks.rows:
                raise SinkRefused(
                    f"{self._delivery.partition} has more rows than the {self._most:,} that "
                    f"{self._settings.describe()} may have (max_length): nothing was added",
                    hint="raise max_length above the rows of the largest slot, or make slots "
                    "smaller (seal_messages)",
                )
            self.run(scripts.STAGE, STAGED_SECONDS * 1000, *before, chunk)
            before = ()
        return chunks

    def _commit(self, chunks: Chunks) -> bool:
        """False if another process was quicker."""
        staged = chunks.chunks + 1 if chunks.chunks else 0
        what, length = self.run(
            scripts.COMMIT, self._token, self._delivery.redo, chunks.rows, staged, self._most
        )
        if what == "full":
            self._full(length)
        if what == "lost":
            raise SinkUnavailable(
                f"the rows of {self._delivery.partition} that were staged at "
                f"{self._settings.describe()} are gone: nothing was added",
                hint="set maxmemory-policy noeviction, and find out who removes keys",
            )
        return bool(what == "committed")

    def _finished(self, noted: _Noted) -> _Noted:
        """What is committed is moved, whoever committed it. Returns what is noted then."""
        for _ in range(_TRIES):
            if noted.state != "moving":
                break
            while self.run(scripts.FORGET):
                pass
            self._move(noted)
            noted = self.look()
        return noted

    def _move(self, noted: _Noted) -> None:
        ttl_ms = round(self._settings.ledger_days * _DAY_MS)
        what = "moved"
        while what == "moved":
            what, number = self.run(
                scripts.MOVE, noted.staged, self._most, ttl_ms, token=noted.staged
            )
        partition = self._delivery.partition
        if what == "full":
            added = self.look().added
            self._full(
                number, f"{added:,} of {counted(noted.rows, 'row')} of {partition} were added"
            )
        if what == "lost":
            log.warning(
                "rows of %s that were staged at %s are gone: %d were added before. All of them are "
                "stored again; whoever has read those gets them twice. Set maxmemory-policy "
                "noeviction, and find out who removes keys.",
                partition,
                self._settings.describe(),
                number,
            )

    def _drop(self) -> None:
        with suppress(SinkUnavailable, SinkRefused):  # it lapses by itself
            self.run(scripts.DROP, self._token)

    def _full(self, length: int, added: str = "nothing was added") -> NoReturn:
        raise SinkUnavailable(
            f"{self._settings.describe()} has {counted(length, 'entry', 'entries')}, max_length "
            f"{self._most:,}: {added}",
            hint="rows wait until others have deleted entries that they have read",
        )

    def _stored(self, rows: int, *, already_there: bool = False) -> StoredRows:
        settings = self._settings
        where = f"{address(settings.url)}/{settings.stream}"
        return StoredRows(rows, where, already_there=already_there)
