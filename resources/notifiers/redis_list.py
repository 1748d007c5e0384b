"""Notices in a list of Redis, one list for each task.

What must always hold:

- Notices are pushed to the left end, so whoever pops from the right end (BRPOP) gets them in their
  order. In the plain format they are `start`, the name of each result, and `end`.
- A notice that is repeated is not pushed again, as long as the list's time is not over: a set
  beside the list knows the ids. Both lapse together, `expires_seconds` after the last notice.

Keys: the list is the setting `key` with the task's values as they are; the set is `KEY:fuploader`
with KEY in braces, or as it is if it has a hash tag, so that a cluster keeps both together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Literal

import msgspec
import redis
from pydantic import Field, field_validator

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.notifier import (
    Notice,
    Notifier,
    NotifierSettings,
    fields_in,
    filled_in,
)
from fuploader_dagster.contracts.settings import Count
from fuploader_dagster.errors import NotifierRefused, NotifierUnavailable
from fuploader_dagster.resources.states.redis_connection import address, connect, run, usable
from fuploader_dagster.resources.states.redis_errors import Asker, explained
from fuploader_dagster.settings.secret import Secret

_ASKER = Asker(
    NotifierRefused,
    NotifierUnavailable,
    "docs/notices.md",
    "something else uses this key: name another one",
    waits=True,
)
# Keys: the list, the set of what it got. Arguments: seconds until both lapse, then an id and a
# notice in turn. The first write of a script may be refused, for lack of memory: then so is all.
_PUSH = """
for at = 2, #ARGV, 2 do
    if redis.call('SISMEMBER', KEYS[2], ARGV[at]) == 0 then
        redis.call('LPUSH', KEYS[1], ARGV[at + 1])
        redis.call('SADD', KEYS[2], ARGV[at])
    end
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
return 1
"""


class RedisListNotices(NotifierSettings):
    """A list of Redis for each task, from which its asker pops."""

    url: Secret
    """Address of the server: `redis://user:password@host:6379/0`, `rediss://…` for TLS,
    `unix:///path`, or of Sentinels, `redis+sentinel://user:password@host:26379,host:26379/NAME/0`."""
    key: Annotated[str, Field(min_length=1, max_length=500)]
    """Key of the list, with fields of the task: `batch_download_resp_{task_id}`. It must begin with
    a text of yours, so that no message names any key it likes."""
    format: Literal["plain", "json"] = "plain"
    """`plain`: `start`, the name of each result, `end`. `json`: all there is to tell."""
    expires_seconds: Count = 86_400
    """The list lapses this long after its last notice, if nobody has read it."""
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0
    """Longest time to wait for a connection, and for an answer."""

    @field_validator("url")
    @classmethod
    def _usable_url(cls, url: Secret) -> Secret:
        return usable(url)

    @field_validator("key")
    @classmethod
    def _usable_key(cls, key: str) -> str:
        fields_in(key)
        if key.startswith("{"):
            raise ValueError(
                "key must begin with a text, such as resp_{task_id}: otherwise whoever publishes a "
                "task could name any key of the server"
            )
        return key

    def notifier(self) -> RedisListNotifier:
        return RedisListNotifier(self)

    def describe(self) -> str:
        return f"lists {self.key} at {address(self.url)}"

    def fields_used(self) -> Sequence[str]:
        return tuple(dict.fromkeys([*fields_in(self.key), *self.fields]))

    def examine(self) -> Iterator[Diagnosis]:
        notifier = RedisListNotifier(self)
        try:
            notifier.examine()
        finally:
            notifier.close()
        yield Diagnosis("notifier", "good", self.describe())


class RedisListNotifier(Notifier):
    """Connects at the first use, and again if the connection was lost."""

    def __init__(self, settings: RedisListNotices) -> None:
        self._settings = settings
        self._client = connect(settings.url, settings.timeout_seconds)

    def send(self, notices: Sequence[Notice]) -> None:
        by_key: dict[str, list[str | bytes]] = {}
        for notice in notices:
            key = filled_in(self._settings.key, notice.task)
            by_key.setdefault(key, []).extend([_short(notice.id), self._text(notice)])
        for key, sent in by_key.items():
            try:
                keys = [key, f"{_tagged(key)}:fuploader"]
                run(self._client, _PUSH, keys, self._settings.expires_seconds, *sent)
            except (redis.RedisError, OSError) as error:
                doing = f"could not push a notice to {self._settings.describe()}"
                failure = explained(error, doing, asker=_ASKER)
            else:
                continue
            raise failure  # outside of `except`, so that it does not refer to redis-py's

    def examine(self) -> None:
        """Raise what sending would, as far as asking tells."""
        try:
            self._client.ping()
            return
        except (redis.RedisError, OSError) as error:
            failure = explained(error, f"{self._settings.describe()} failed", asker=_ASKER)
        raise failure

    def close(self) -> None:
        with suppress(redis.RedisError, OSError):
            self._client.close()

    def _text(self, notice: Notice) -> str | bytes:
        if self._settings.format == "plain":
            return notice.word
        return msgspec.json.encode(notice.content)


def _short(notice_id: str) -> str:
    return hashlib.sha256(notice_id.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _tagged(key: str) -> str:
    _, opened, rest = key.partition("{")
    tag, closed, _ = rest.partition("}")
    return key if opened and closed and tag else f"{{{key}}}"
