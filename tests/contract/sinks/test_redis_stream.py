"""What is particular to the sink of a Redis stream: values, length, ledger, redo, staged rows."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
import redis
from pydantic import ValidationError

from fuploader_dagster.contracts.sink import ItemRows, RejectedItem, Row
from fuploader_dagster.errors import SinkRefused, SinkUnavailable
from fuploader_dagster.resources.sinks import redis_stream_entries as entries
from fuploader_dagster.resources.sinks.redis_stream import RedisStreamSink, _Attempt, ledger_key
from fuploader_dagster.testing.sink_contract import no_reject, unreadable
from tests.contract.sinks.attempts import AGAIN, DELIVERY, failure, items
from tests.servers.redis import RedisServer


class Stream:
    """A new stream, read and written by a plain client."""

    def __init__(self, server: RedisServer) -> None:
        self.name = f"orders-{secrets.token_hex(4)}"
        self.server = server
        self.client = server.client()
        self.ledger = ledger_key("fuploader", self.name, DELIVERY)

    def settings(self, **more: Any) -> RedisStreamSink:
        values = {"url": self.server.url(), "stream": self.name}
        return RedisStreamSink.model_validate({**values, **more})

    def entries(self) -> list[dict[str, str]]:
        return [fields for _, fields in self.client.xrange(self.name)]

    def keys(self) -> set[str]:
        """Of the ledger, without what they all begin with."""
        return {key.removeprefix(self.ledger) for key in self.client.keys(f"*{self.name}}}:*")}


@pytest.fixture
def stream(redis_server: RedisServer) -> Iterator[Stream]:
    made = Stream(redis_server)
    yield made
    made.client.close()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "CHUNK_ENTRIES", 4)


class Colour(Enum):
    RED = "red"


class OwnText(str):
    def __str__(self) -> str:
        return "not the value"


VALUES: Sequence[tuple[Any, str]] = [
    ("täxt\n\x00", "täxt\n\x00"),
    ("", ""),
    (OwnText("own"), "own"),
    (1, "1"),
    (1.5, "1.5"),
    (True, "true"),
    (10**30, "1" + "0" * 30),
    ([1, "ä"], '[1,"ä"]'),
    ({"a": {"b": None}}, '{"a":{"b":null}}'),
    (b"bytes", "bytes"),
    (datetime(2026, 11, 20, 23, 45, tzinfo=timezone.utc), "2026-11-20T23:45:00+00:00"),
    (date(2026, 11, 20), "2026-11-20"),
    (Decimal("1.10"), "1.10"),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (Colour.RED, "red"),
]


@pytest.mark.parametrize(("value", "stored"), VALUES)
def test_a_value_is_a_field_and_null_is_none(stream: Stream, value: Any, stored: str) -> None:
    added(stream.settings(), {"id": 1, "nothing": None, "value": value})
    assert stream.entries() == [{"id": "1", "value": stored}]


def test_any_bytes_are_kept(stream: Stream) -> None:
    added(stream.settings(), {"value": bytes(range(256))})
    with redis.Redis.from_url(stream.server.url()) as plain:
        assert plain.xrange(stream.name)[0][1] == {b"value": bytes(range(256))}


def test_a_row_may_be_one_field_of_json(stream: Stream) -> None:
    row = {"id": 1, "nothing": None, "list": [1.5, "ä"], "day": date(2026, 11, 20)}
    added(stream.settings(json_field="body"), row)
    wanted = '{"id":1,"nothing":null,"list":[1.5,"ä"],"day":"2026-11-20"}'
    assert stream.entries() == [{"body": wanted}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "the row has no values"),
        ({"a": None}, "the row has no values"),
        ({"a": "\ud800"}, "field a: text with half of a surrogate pair"),
        ({"a\ud800": "x"}, "text with half of a surrogate pair"),
        ({"a": ["\ud800"]}, "field a: text with half of a surrogate pair"),
        ({"a": float("nan")}, "field a: a number that is not finite"),
        ({"a": [float("inf")]}, "field a: what cannot be written as JSON"),
        ({"a": object()}, "field a: what cannot be written as JSON"),
        ({1: "x"}, "the name of a field is a int, not a text"),
        ({f"field {number}": 1 for number in range(1_001)}, "more than 1,000 fields"),
        ({"a": "x" * (entries.MOST_BYTES + 1)}, "the row has more than 67,108,864 bytes"),
    ],
)
def test_what_no_entry_can_be_made_of_is_rejected(stream: Stream, row: Any, reason: str) -> None:
    rejected: list[RejectedItem] = []
    stored = stream.settings().sink().store(DELIVERY, [ItemRows(4, [row])], rejected.extend)
    assert stored.rows == 0
    assert [one.position for one in rejected] == [4]
    assert reason in rejected[0].reason


def test_an_entry_may_have_as_many_fields_as_are_allowed(stream: Stream) -> None:
    row = {f"field {number}": number for number in range(1_000)}
    added(stream.settings(), row)
    assert len(stream.entries()[0]) == 1_000


@pytest.mark.usefixtures("small_chunks")
def test_a_stream_that_is_full_is_not_read_for_and_never_trimmed(stream: Stream) -> None:
    for number in range(10):
        stream.client.xadd(stream.name, {"theirs": number})
    settings = stream.settings(max_length=10)
    with pytest.raises(SinkUnavailable, match="has 10 entries, max_length 10: nothing was added"):
        settings.sink().store(DELIVERY, unreadable(), no_reject)
    settings = stream.settings(max_length=19)
    with pytest.raises(SinkUnavailable, match="has 10 entries, max_length 19: nothing was added"):
        settings.sink().store(DELIVERY, items(10), no_reject)
    assert len(stream.entries()) == 10
    assert stream.keys() == set()
    stream.client.xtrim(stream.name, maxlen=9, approximate=False)
    assert settings.sink().store(DELIVERY, items(10), no_reject).rows == 10
    assert len(stream.entries()) == 19
    assert settings.sink().store(DELIVERY, unreadable(), no_reject).already_there


def test_a_slot_that_never_fits_needs_a_person(stream: Stream) -> None:
    error = failure(stream.settings(max_length=2))
    assert isinstance(error, SinkRefused)
    assert "more rows than the 2 that" in error.message
    assert (stream.entries(), stream.keys()) == ([], set())


@pytest.mark.usefixtures("small_chunks")
def test_a_stream_that_others_fill_meanwhile_gets_the_rest_later(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = stream.settings(max_length=12)

    def filled() -> None:
        """Between the commit and the first chunk."""
        for number in range(6):
            stream.client.xadd(stream.name, {"theirs": number})

    with after_commit(monkeypatch, filled), pytest.raises(SinkUnavailable) as caught:
        settings.sink().store(DELIVERY, items(10), no_reject)
    assert "has 10 entries, max_length 12: 4 of 10 rows of" in caught.value.message
    assert len(stream.entries()) == 10
    with pytest.raises(SinkUnavailable):
        settings.sink().store(DELIVERY, unreadable(), no_reject)
    stream.client.xtrim(stream.name, maxlen=4, approximate=False)
    found = settings.sink().store(DELIVERY, unreadable(), no_reject)
    assert (found.rows, found.already_there) == (10, True)
    assert [one["id"] for one in stream.entries() if "id" in one] == [str(n) for n in range(10)]


@pytest.mark.usefixtures("small_chunks")
def test_staged_rows_that_vanish_are_stored_again_and_that_is_said(
    stream: Stream, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = stream.settings()

    def evicted() -> None:
        (key,) = stream.client.keys(f"{stream.ledger}:staged:*")
        stream.client.delete(key)

    with after_commit(monkeypatch, evicted), pytest.raises(SinkUnavailable):
        settings.sink().store(DELIVERY, items(10), no_reject)
    assert "set maxmemory-policy noeviction" in caplog.text.lower()
    assert settings.sink().store(DELIVERY, items(10), no_reject).rows == 10
    assert [one["id"] for one in stream.entries()] == [str(number) for number in range(10)]


def test_staged_rows_lapse_and_a_ledger_does_when_its_delivery_is_done(stream: Stream) -> None:
    def look() -> Iterator[ItemRows]:
        yield from items(entries.CHUNK_ENTRIES)
        (key,) = stream.client.keys(f"{stream.ledger}:staged:*")
        assert 0 < stream.client.ttl(key) <= 86_400
        yield from items(3)

    stream.settings(ledger_days=2).sink().store(DELIVERY, look(), no_reject)
    assert stream.keys() == {"", ":ranges"}
    for key in ("", ":ranges"):
        assert 172_000 < stream.client.ttl(f"{stream.ledger}{key}") <= 172_800


def test_a_delivery_that_the_ledger_forgot_is_stored_again_but_not_replaced(
    stream: Stream,
) -> None:
    settings = stream.settings()
    settings.sink().store(DELIVERY, items(), no_reject)
    stream.client.delete(stream.ledger, f"{stream.ledger}:ranges")
    error = failure(settings, AGAIN)
    assert isinstance(error, SinkRefused)
    assert "does not know which entries" in error.message
    settings.sink().store(DELIVERY, items(), no_reject)
    assert len(stream.entries()) == 6


def test_a_redo_into_a_stream_that_is_empty_needs_no_ledger(stream: Stream) -> None:
    stream.settings().sink().store(AGAIN, items(), no_reject)
    assert len(stream.entries()) == 3


@pytest.mark.usefixtures("small_chunks")
def test_a_redo_deletes_what_is_left_of_the_delivery_and_nothing_else(stream: Stream) -> None:
    settings = stream.settings()
    stream.client.xadd(stream.name, {"theirs": 0})
    settings.sink().store(DELIVERY, items(10), no_reject)
    stream.client.xadd(stream.name, {"theirs": 1})
    stream.client.xtrim(stream.name, maxlen=9, approximate=False)  # theirs, and three of ours
    settings.sink().store(AGAIN, items(2), no_reject)
    assert stream.entries() == [{"theirs": "1"}, *({"id": f"{n}", "name": "n"} for n in range(2))]


@pytest.mark.parametrize("stream_name", ["a{b", "a}b", "{}", "a{b}{c}", "{a}}", ""])
def test_a_name_that_a_cluster_would_take_apart_is_refused(stream_name: str) -> None:
    with pytest.raises(ValidationError):
        RedisStreamSink(url="redis://localhost", stream=stream_name)  # type: ignore[arg-type]


def test_no_two_streams_share_a_ledger() -> None:
    names = ["x", "{x}", "a{x}", "{x}a", "a", "x:a", "%7Bx%7D"]
    assert len({ledger_key("fuploader", name, DELIVERY) for name in names}) == len(names)


@contextmanager
def after_commit(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> Iterator[None]:
    """Do something after the next commit, before anything is moved."""
    commit = _Attempt._commit

    def then(self: _Attempt, chunks: entries.Chunks) -> bool:
        committed = commit(self, chunks)
        action()
        return committed

    with monkeypatch.context() as patched:
        patched.setattr(_Attempt, "_commit", then)
        yield


def added(settings: RedisStreamSink, row: Row) -> None:
    assert settings.sink().store(DELIVERY, [ItemRows(0, [row])], no_reject).rows == 1
