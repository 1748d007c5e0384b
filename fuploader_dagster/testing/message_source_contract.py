"""What every message source and publisher must do, written once.

A backend's test module subclasses `MessageSourceContract` and gives it a fixture `settings`: the
backend's settings, for an empty queue.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from fuploader_dagster.contracts.functions import reference_to
from fuploader_dagster.contracts.refused_messages import publish_accepted
from fuploader_dagster.contracts.source import (
    CommittedBatch,
    Message,
    MessagePublisher,
    MessageSource,
    SourceSettings,
)
from fuploader_dagster.disk.header_text import folded
from fuploader_dagster.errors import SourceUnavailable
from fuploader_dagster.testing.limit_contract import LimitContract
from fuploader_dagster.testing.source_steps import (
    bodies_of,
    close_with_backlog,
    collect,
    eventually,
    publish,
    settle,
)

CONSUMER = """
import json, sys
from fuploader_dagster.contracts.source import CommittedBatch
from fuploader_dagster.contracts.functions import load_reference

job = json.loads(sys.stdin.readline())
sys.path[:] = job["sys_path"]
source = load_reference(job["kind"])(**job["settings"]).source(prefetch=50)
source.open()
messages = []
while len(messages) < 30:
    messages += source.receive(30 - len(messages), 5)
source.settle(CommittedBatch(last=messages[9], messages=10))
source.receive(0, 0.2)
print("holding 20", flush=True)
sys.stdin.read()
"""


LARGE_BYTES = 3 * 2**20
ODD_HEADERS: dict[str, dict[str, Any]] = {
    "large numbers": {"a": 2**40, "b": -(2**62), "c": [2**33]},
    "text": {"ü": "\0\x7f\u2028", "": "no name", "long": "x" * 70_000},
    "nothing": {"none": None, "list": [], "table": {}, "no": False},
    "names of ours": {"headers": 1, "message_id": "x", "undecoded": 2, "base64": "eA=="},
    "of brokers": {"x-match": "all", "x-delay": 5, "CC": ["was-nobody"], "BCC": "text"},
    "deep": {"a": {"b": [{"c": [[[{"d": 1}]]]}]}},
}


def taking_headers(publisher: MessagePublisher) -> MessagePublisher:
    """The publisher, if its queue has a place for headers."""
    if not publisher.keeps_headers:
        pytest.skip("this queue has no place for headers")
    return publisher


class MessageSourceContract(LimitContract):
    """Needs a fixture `settings`: a `SourceSettings` with an empty queue."""

    @pytest.fixture
    def publisher(self, settings: SourceSettings) -> Iterator[MessagePublisher]:
        made = settings.publisher()
        yield made
        made.close()

    @pytest.fixture
    def source(self, settings: SourceSettings) -> Iterator[MessageSource]:
        made = settings.source(prefetch=100)
        made.open()
        yield made
        made.close()

    def test_messages_come_in_order_with_growing_delivery_numbers(
        self, source: MessageSource
    ) -> None:
        bodies = publish(self._publisher, 90)
        messages = collect(source, 90)
        assert bodies_of(messages) == bodies
        deliveries = [message.delivery for message in messages]
        assert deliveries == sorted(set(deliveries))
        assert not any(message.redelivered for message in messages)

    @pytest.mark.parametrize("size", [0, 1, 1_700, 300_000])
    def test_bodies_come_as_they_were_published(self, source: MessageSource, size: int) -> None:
        body = os.urandom(size)
        self._publisher.publish([(body, {})])
        assert collect(source, 1)[0].body == body

    def test_headers_and_message_id_come_with_the_message_and_are_json_ready(
        self, source: MessageSource
    ) -> None:
        headers = {"origin": "crawler", "tries": 3, "nested": {"a": [1, None]}, "last": True}
        taking_headers(self._publisher).publish(
            [(b"x", {"message_id": "id-1", **headers}), (b"y", {})]
        )
        with_headers, without = collect(source, 2)
        assert with_headers.message_id == "id-1"
        assert without.message_id is None
        described = json.loads(json.dumps(source.describe(with_headers)))
        assert described["headers"] == headers
        assert described["message_id"] == "id-1"
        assert "headers" not in json.loads(json.dumps(source.describe(without)))

    def test_headers_to_keep_come_under_their_names_whatever_the_case(
        self, source: MessageSource
    ) -> None:
        headers = {"X_Cmd": "thumb/64", "tries": 3, "nested": {"a": [1, None]}, "other": "o" * 999}
        taking_headers(self._publisher).publish(
            [(b"x", {"message_id": "id-1", **headers}), (b"y", {})]
        )
        with_headers, without = collect(source, 2)
        names = ("x-cmd", "TRIES", "nested", "message-id", "missing")
        wanted = {folded(name): name for name in names}
        assert source.headers_of(with_headers, wanted) == {
            "x-cmd": "thumb/64",
            "TRIES": 3,
            "nested": {"a": [1, None]},
            "message-id": "id-1",
        }
        assert source.headers_of(without, wanted) == {}

    def test_a_queue_without_headers_refuses_them_and_takes_the_others(
        self, source: MessageSource
    ) -> None:
        if self._publisher.keeps_headers:
            pytest.skip("this queue keeps headers")
        messages = [(b"a", {}), (b"b", {"message_id": "id-1"}), (b"c", {"cmd": "x"}), (b"d", {})]
        refused = publish_accepted(self._publisher.publish, messages)
        assert sorted(refused) == [1, 2]
        received = collect(source, 2)
        assert bodies_of(received) == [b"a", b"d"]
        assert self._publisher.publish_again([(b"e", source.describe(received[0]))]) == 1

    def test_receive_returns_at_most_the_limit_and_keeps_the_rest(
        self, source: MessageSource
    ) -> None:
        bodies = publish(self._publisher, 20)
        received: list[Message] = []
        while len(received) < 20:
            some = source.receive(3, 5)
            assert 1 <= len(some) <= 3
            received += some
        assert bodies_of(received) == bodies

    def test_receive_does_not_wait_for_the_batch_to_fill(self, source: MessageSource) -> None:
        publish(self._publisher, 2)
        begun = time.monotonic()
        assert source.receive(50, 20)
        assert time.monotonic() - begun < 5

    def test_receive_from_an_empty_queue_returns_nothing_after_the_timeout(
        self,
        source: MessageSource,
    ) -> None:
        begun = time.monotonic()
        assert source.receive(10, 0.3) == []
        assert 0.25 <= time.monotonic() - begun < 3
        begun = time.monotonic()
        assert source.receive(10, 0) == []
        assert time.monotonic() - begun < 1

    def test_receive_with_limit_zero_only_waits(self, source: MessageSource) -> None:
        bodies = publish(self._publisher, 3)
        assert source.receive(0, 0.2) == []
        assert bodies_of(collect(source, 3)) == bodies

    def test_settled_messages_are_gone_and_the_others_come_again_in_order(
        self, source: MessageSource
    ) -> None:
        bodies = publish(self._publisher, 50)
        messages = collect(source, 50)
        settle(source, messages[:20])
        settle(source, messages[:35])
        close_with_backlog(source, self._publisher, 15)
        source.open()
        again = collect(source, 15)
        assert bodies_of(again) == bodies[35:]
        assert all(message.redelivered for message in again)
        settle(source, again)
        close_with_backlog(source, self._publisher, 0)

    def test_settling_between_receives_covers_only_what_was_received_before(
        self, source: MessageSource
    ) -> None:
        bodies = publish(self._publisher, 40)
        first = collect(source, 10)
        second = collect(source, 10)
        settle(source, first)
        settle(source, second)
        source.close()
        source.open()
        assert bodies_of(collect(source, 20)) == bodies[20:]

    def test_a_batch_from_before_a_reopening_is_refused_and_nothing_is_lost(
        self, source: MessageSource
    ) -> None:
        bodies = publish(self._publisher, 10)
        before = collect(source, 10)
        source.close()
        source.open()
        collect(source, 10)
        with pytest.raises(SourceUnavailable, match="nothing is lost"):
            settle(source, before)
        source.open()
        assert sorted(bodies_of(collect(source, 10))) == sorted(bodies)

    def test_delivery_numbers_grow_across_openings(self, source: MessageSource) -> None:
        publish(self._publisher, 20)
        before = collect(source, 5)
        source.close()
        source.open()
        after = collect(source, 20)
        assert after[0].delivery > before[-1].delivery

    def test_a_source_that_is_not_open_says_so(self) -> None:
        source = self._settings.source(prefetch=10)
        with pytest.raises(SourceUnavailable, match="not open"):
            source.receive(1, 0)
        last = Message(b"", 1, False, None)
        with pytest.raises(SourceUnavailable):
            source.settle(CommittedBatch(last=last, messages=1))

    def test_open_and_close_may_be_repeated(self) -> None:
        source = self._settings.source(prefetch=10)
        source.close()
        source.open()
        source.open()
        source.close()
        source.close()
        publisher = self._settings.publisher()
        publisher.close()
        assert publisher.backlog() == 0
        publisher.close()
        assert publisher.backlog() == 0
        publisher.close()

    def test_two_consumers_share_the_messages_without_overlap(self) -> None:
        bodies = publish(self._publisher, 60)
        one, two = (self._settings.source(prefetch=10) for _ in range(2))
        one.open()
        two.open()
        received: list[Message] = []
        deadline = time.monotonic() + 15
        while len(received) < 60 and time.monotonic() < deadline:
            for source in (one, two):
                some = source.receive(7, 0.1)
                received += some
                if some:
                    settle(source, some)
        assert sorted(bodies_of(received)) == sorted(bodies)
        one.close()
        two.close()
        eventually(self._publisher.backlog, 0)

    def test_dead_letters_are_covered_by_the_batch_as_well(self, source: MessageSource) -> None:
        publish(self._publisher, 10)
        messages = collect(source, 10)
        source.settle(
            CommittedBatch(last=messages[9], messages=10, dead_letters=[messages[3], messages[9]])
        )
        close_with_backlog(source, self._publisher, 0)

    def test_publishing_counts_and_an_empty_publish_is_no_error(self) -> None:
        assert self._publisher.publish([]) == 0
        assert self._publisher.backlog() == 0
        publish(self._publisher, 3_000)
        publish(self._publisher, 1)
        eventually(self._publisher.backlog, 3_001)

    def test_what_a_killed_consumer_had_not_settled_is_delivered_again_and_marked(
        self, source: MessageSource
    ) -> None:
        source.close()
        bodies = publish(self._publisher, 60)
        with subprocess.Popen(
            [sys.executable, "-c", CONSUMER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as consumer:
            assert consumer.stdin is not None
            assert consumer.stdout is not None
            job = {
                "kind": reference_to(type(self._settings)),
                "sys_path": sys.path,
                "settings": self._settings.model_dump(
                    mode="json", context={"reveal_secrets": True}, exclude_unset=True
                ),
            }
            consumer.stdin.write(json.dumps(job) + "\n")
            consumer.stdin.flush()
            assert consumer.stdout.readline() == "holding 20\n"
            consumer.send_signal(signal.SIGKILL)
        source.open()
        messages = collect(source, 50)
        assert bodies_of(messages) == bodies[10:]
        assert all(message.redelivered for message in messages[:20])
        settle(source, messages)

    def test_while_messages_are_decoded_another_thread_may_keep_the_source_alive(
        self, source: MessageSource
    ) -> None:
        """As the drain does while a user's parser takes long."""
        bodies = publish(self._publisher, 60)
        received = collect(source, 5)
        for _ in range(8):
            with ThreadPoolExecutor(1) as second:
                kept = [second.submit(source.receive, 0, 0.01) for _ in range(5)]
            assert [one.result() for one in kept] == [[]] * 5
            settle(source, received[-5:])
            received += collect(source, 5)
        settle(source, received)
        assert bodies_of(received) == bodies[: len(received)]
        assert not any(message.redelivered for message in received)

    @pytest.mark.parametrize("commit", [1, 3, 7, 100])
    @pytest.mark.parametrize("large_at", [(0,), (5,), (11,), (0, 1), (4, 5, 6), (0, 11)])
    def test_large_messages_among_small_ones_keep_their_place_and_none_is_lost(
        self, commit: int, large_at: tuple[int, ...]
    ) -> None:
        """Closed after each batch: a message acknowledged but not received would be missing."""
        bodies = [b"%d" % number for number in range(12)]
        for at in large_at:
            bodies[at] += bytes(LARGE_BYTES)
        self._publisher.publish((body, {}) for body in bodies)
        source = self._settings.source(prefetch=100)
        received: list[bytes] = []
        while len(received) < 12:
            source.open()
            batch = source.receive(commit, 15)
            assert batch, f"nothing came after {len(received)} messages"
            assert 1 <= len(batch) <= commit
            settle(source, batch)
            received += bodies_of(batch)
            source.close()
        assert received == bodies
        eventually(self._publisher.backlog, 0)

    def test_a_consumer_that_leaves_many_times_with_all_it_may_hold_loses_nothing(self) -> None:
        bodies = publish(self._publisher, 20)
        source = self._settings.source(prefetch=20)
        for _ in range(25):
            source.open()
            assert source.receive(20, 15)
            source.close()
        source.open()
        messages = collect(source, 20)
        assert sorted(bodies_of(messages)) == sorted(bodies)
        settle(source, messages)
        close_with_backlog(source, self._publisher, 0)

    @pytest.mark.parametrize("name", ODD_HEADERS)
    def test_odd_headers_are_described_and_can_be_published_again(
        self, source: MessageSource, name: str
    ) -> None:
        taking_headers(self._publisher).publish([(b"odd", ODD_HEADERS[name]), (b"next", {})])
        messages = collect(source, 2)
        described = [source.describe(message) for message in messages]
        assert json.loads(json.dumps(described, allow_nan=False)) == described
        assert msgspec.json.decode(msgspec.json.encode(described)) == described
        settle(source, messages)
        assert self._publisher.publish_again([(b"odd", described[0])]) == 1
        (again,) = collect(source, 1)
        assert again.message_id == messages[0].message_id
        assert source.describe(again).get("headers") == described[0].get("headers")
        settle(source, [again])
