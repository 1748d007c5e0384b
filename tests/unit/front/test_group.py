"""Groups of requests: what is confirmed was sent, and what is not confirmed is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuploader_dagster.errors import BadMessage, FuploaderError, MessageRefused, SourceUnavailable
from fuploader_dagster.front.accepted import Accepted
from fuploader_dagster.front.answers import Refusal
from fuploader_dagster.front.group import Group, Request
from fuploader_dagster.front.items import Item


class Queue:
    """Remembers what was sent; refuses what is called bad, fails when it is told to."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.down = False

    def send(self, items: Sequence[Item]) -> Mapping[int, FuploaderError]:
        if self.down:
            raise SourceUnavailable("it is down")
        if any(item.body == b"unsendable" for item in items):
            raise BadMessage("a header cannot be sent")
        refused = {
            at: MessageRefused("too large", position=at, confirmed=at)
            for at, item in enumerate(items)
            if item.body == b"bad"
        }
        self.bodies += [item.body for at, item in enumerate(items) if at not in refused]
        return refused


def request(*bodies: bytes, key: bytes | None = None, ids: bool = False) -> Request:
    items = [Item(b.decode(), b, {}, b"id " + b if ids else None) for b in bodies]
    future: asyncio.Future[None] = asyncio.Future(loop=_LOOP)
    return Request(items, 1, future, key, b"|".join(bodies))


_LOOP = asyncio.new_event_loop()


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    _LOOP.close()


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Accepted]:
    opened = Accepted(tmp_path / "accepted.sqlite", 1000, given_up_seconds=60)
    yield opened
    opened.close()


def statuses(group: Group) -> list[int]:
    return [one.status if isinstance(one, Refusal) else 202 for one in group.outcomes()]


def test_a_repetition_is_answered_like_the_first_and_sent_once(memory: Accepted) -> None:
    queue = Queue()
    two = [request(b"a", key=b"k"), request(b"a", key=b"k"), request(b"b", key=b"k")]
    assert statuses(Group(two, queue.send, memory)) == [202, 202, 422]
    assert statuses(Group([request(b"a", key=b"k")], queue.send, memory)) == [202]
    assert statuses(Group([request(b"b", key=b"k")], queue.send, memory)) == [422]
    assert queue.bodies == [b"a"]


def test_what_was_not_confirmed_is_sent_again(memory: Accepted) -> None:
    queue = Queue()
    queue.down = True
    with pytest.raises(SourceUnavailable):
        Group([request(b"a", key=b"k"), request(b"b", ids=True)], queue.send, memory).outcomes()
    queue.down = False
    again = [request(b"a", key=b"k"), request(b"b", ids=True)]
    assert statuses(Group(again, queue.send, memory)) == [202, 202]
    assert queue.bodies == [b"a", b"b"]


def test_a_refused_message_takes_no_other_with_it_and_is_named(memory: Accepted) -> None:
    queue = Queue()
    requests = [request(b"a"), request(b"x", b"bad", b"y", ids=True), request(b"bad", key=b"k")]
    first, second, third = Group(requests, queue.send, memory).outcomes()
    assert first is None
    assert isinstance(second, Refusal)
    assert second.more == {"accepted": ["x", "y"], "refused": ["bad"]}
    assert isinstance(third, Refusal)
    assert queue.bodies == [b"a", b"x", b"y"]
    again = [request(b"x", b"y", ids=True), request(b"bad", ids=True), request(b"bad", key=b"k")]
    assert statuses(Group(again, queue.send, memory)) == [202, 422, 422]
    assert queue.bodies == [b"a", b"x", b"y"]


def test_a_message_that_cannot_be_sent_at_all_fails_alone(memory: Accepted) -> None:
    queue = Queue()
    requests = [request(b"a"), request(b"unsendable"), request(b"b")]
    assert statuses(Group(requests, queue.send, memory)) == [202, 422, 202]
    assert queue.bodies == [b"a", b"b"]


def test_what_another_process_is_at_is_busy_until_that_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "accepted.sqlite"
    dead = Accepted(path, 1000, given_up_seconds=60)
    assert dead.claim({b"k": b"a", b"id a": b""}) == {b"k": "new", b"id a": "new"}
    dead.close()
    queue = Queue()
    waiting = Accepted(path, 1000, given_up_seconds=60)
    requests = [request(b"a", key=b"k"), request(b"z", b"a", ids=True), request(b"b", ids=True)]
    assert statuses(Group(requests, queue.send, waiting)) == [409, 409, 202]
    assert queue.bodies == [b"b"]
    waiting.close()
    impatient = Accepted(path, 1000, given_up_seconds=-1)
    assert statuses(Group(requests, queue.send, impatient)) == [202, 202, 202]
    assert sorted(queue.bodies) == [b"a", b"a", b"b", b"z"]  # of the key, and of the id
    impatient.close()


def test_a_damaged_memory_is_begun_again(memory: Accepted, tmp_path: Path) -> None:
    queue = Queue()
    (tmp_path / "accepted.sqlite").write_bytes(b"no database, but long enough to look at" * 100)
    with pytest.raises(FuploaderError):
        Group([request(b"a", key=b"k")], queue.send, memory).outcomes()
    assert statuses(Group([request(b"a", key=b"k")], queue.send, memory)) == [202]


def test_only_the_newest_are_remembered(tmp_path: Path) -> None:
    few = Accepted(tmp_path / "accepted.sqlite", 10, given_up_seconds=60)
    for number in range(3000):
        key = b"%d" % number
        few.claim({key: b""})
        few.confirm([key])
    assert few.claim({b"0": b"", b"2999": b""}) == {b"0": "new", b"2999": "known"}
    few.close()


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([b"a", b"b", b"c", b"bad"]), min_size=1, max_size=3),
            st.sampled_from([None, b"k", b"l"]),
            st.booleans(),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_whoever_is_told_yes_has_all_messages_in_the_queue(
    tmp_path_factory: pytest.TempPathFactory,
    rounds: list[tuple[list[bytes], bytes | None, bool, bool]],
) -> None:
    """Whatever came before, in groups of three, with outages."""
    path = tmp_path_factory.mktemp("group") / "accepted.sqlite"
    memory, queue = Accepted(path, 1000, given_up_seconds=60), Queue()
    for begin in range(0, len(rounds), 3):
        part = rounds[begin : begin + 3]
        queue.down = any(down for *_, down in part)
        requests = [request(*bodies, key=key, ids=ids) for bodies, key, ids, _ in part]
        try:
            outcomes = Group(requests, queue.send, memory).outcomes()
        except SourceUnavailable:
            continue
        for one, outcome in zip(requests, outcomes, strict=True):
            if outcome is None:
                assert {item.body for item in one.items} <= set(queue.bodies)
    memory.close()
