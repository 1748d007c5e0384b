"""Partitions of Kafka that come and go, and where reading goes on in them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import pytest
from confluent_kafka import TopicPartition

from fuploader_dagster.contracts.source import Message, MessageSource, Position
from fuploader_dagster.errors import SourceRefused, SourceUnavailable
from fuploader_dagster.resources.sources.kafka.assignment import (
    Note,
    in_ranges,
    read_note,
    was_created_again,
)
from fuploader_dagster.testing.source_steps import bodies_of, collect, settle
from tests.contract.sources.kafka_topics import (
    Opened,
    Topic,
    ends,
    places_of,
)
from tests.servers.kafka import admin
from tests.servers.ports import wait_until


def test_partitions_are_named_in_ranges() -> None:
    places = [("b", 1), ("a", 5), ("a", 2), ("a", 0), ("a", 1), ("b", 0)]
    assert in_ranges(places) == "a[0-2], a[5], b[0-1]"
    assert in_ranges([]) == ""


def test_tombstones_that_are_passed_over_are_settled_too(
    topic: Topic, kafka_opened: Opened
) -> None:
    topic.produce((b"1", None, [], 0), (None, b"b", [], 0))
    source = kafka_opened(topic.settings())
    settle(source, collect(source, 1))
    source.receive(1, 0.2)
    topic.produce(*[(None, b"c", [], 0)] * 5)

    def settled() -> bool:
        source.receive(1, 0.2)
        return topic.committed() == [7]

    wait_until(settled, seconds=60, what="commit", diagnose=lambda: str(topic.committed()))


def test_a_first_offset_is_committed_so_that_latest_means_the_first_start(
    topic: Topic, kafka_opened: Opened
) -> None:
    settings = topic.settings(auto_offset_reset="latest")
    topic.fill(3)
    source = kafka_opened(settings)

    def begun() -> bool:
        source.receive(1, 0.2)
        return topic.committed() == [3]

    wait_until(begun, seconds=60, what="first offset", diagnose=lambda: str(topic.committed()))
    source.close()
    topic.fill(2)
    messages = collect(kafka_opened(settings), 2)
    assert bodies_of(messages) == [b"0-0", b"0-1"]


def test_partitions_that_go_to_another_worker_are_not_settled_and_come_again_marked(
    four: Topic, kafka_opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    """A rebalance in the middle of a batch."""
    caplog.set_level(logging.INFO)
    bodies = four.fill(20)
    one = kafka_opened(four.settings())
    in_hand = collect(one, 80)
    assert one.reads() == f"{four.name}[0-3]"
    settle(one, in_hand[:8])
    settled = sum(four.committed())
    assert settled == 8
    two = kafka_opened(four.settings(), let_in=True)
    others: list[Message] = []

    def rebalanced() -> bool:
        assert one.receive(100, 0.1) == []
        others.extend(two.receive(100, 0.1))
        return len(places_of(others)) == 2

    ends(rebalanced, lambda: caplog.text)
    assert "come again there, marked" in caplog.text
    assert two.reads() == in_ranges((four.name, place) for place in places_of(others))
    assert one.reads() == in_ranges({(four.name, place) for place in range(4)} - set(two._held))
    others += collect(
        two, sum(20 - four.committed()[place] for place in places_of(others)) - len(others)
    )
    assert all(message.redelivered for message in others)
    before = four.committed()
    settle(one, in_hand)  # it stored them all, and has lost half of the partitions
    after = four.committed()
    for place in range(4):
        gone = place in places_of(others)
        assert after[place] == (before[place] if gone else 20)
    settle(two, others)
    assert four.committed() == [20] * 4
    stored = {*bodies_of(in_hand), *bodies_of(others)}
    assert stored == set(bodies)


def test_a_partition_that_comes_back_is_not_set_back_by_what_was_received_before(
    four: Topic, kafka_opened: Opened
) -> None:
    four.fill(20)
    one = kafka_opened(four.settings())
    in_hand = collect(one, 80)
    two = kafka_opened(four.settings(), let_in=True)
    others: list[Message] = []

    def done(both: bool) -> bool:
        one.receive(0, 0.1)
        if both:
            others.extend(two.receive(100, 0.1))
        return len(others) == 40

    ends(lambda: done(True), lambda: str(len(others)))
    settle(two, others)
    two.close()
    four.fill(1)
    back: list[Message] = []

    def is_back() -> bool:
        back.extend(one.receive(20, 0.1))
        return places_of(others) <= places_of(back)

    settle(one, in_hand[:70])
    ends(is_back, lambda: str(four.committed()))
    assert min(four.committed()[place] for place in places_of(others)) == 20
    settle(one, in_hand)
    assert min(four.committed()[place] for place in places_of(others)) == 20
    settle(one, back)
    assert [four.committed()[place] for place in places_of(others)] == [21, 21]


def test_a_worker_that_is_started_again_gets_its_partitions_and_nobody_else_notices(
    four: Topic, kafka_opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = four.settings(session_timeout_seconds=60)
    sources = {"a": kafka_opened(settings, "a")}
    ends(
        lambda: not sources["a"].receive(0, 0.1) and len(four.members().get("a", ())) == 4,
        lambda: str(four.members()),
    )
    sources["b"] = kafka_opened(settings, "b", let_in=True)

    def shared() -> bool:
        for source in sources.values():
            source.receive(0, 0.1)
        return sorted(map(len, four.members().values())) == [2, 2]

    ends(shared, lambda: str(four.members()))
    before = four.members()
    # Not the one that came first: it leads the group, and noida-db 0.2.3 would let it hand out the
    # partitions again without telling the other.
    sources["b"].close()  # as one that was killed: it says no goodbye
    four.fill(5)
    caplog.clear()
    sources["b"] = kafka_opened(settings, "b")
    assert places_of(collect(sources["a"], 10)) == before["a"]
    assert places_of(collect(sources["b"], 10)) == before["b"]
    assert four.members() == before
    assert caplog.text.count("got ") == 1


def test_a_second_worker_of_the_same_name_is_said(
    topic: Topic, kafka_opened: Opened, capfd: pytest.CaptureFixture[str]
) -> None:
    topic.fill(5)
    first = kafka_opened(topic.settings(), "same")
    collect(first, 1)
    second = kafka_opened(topic.settings(), "same")
    with pytest.raises(SourceRefused, match="node_id"):
        for _ in range(100):
            second.receive(1, 0.1)
            first.receive(1, 0.1)
    assert capfd.readouterr() == ("", "")


def test_messages_that_were_removed_unread_are_said_and_the_rest_is_read(
    topic: Topic, kafka_opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    topic.fill(10)
    source = kafka_opened(topic.settings())
    settle(source, collect(source, 2))
    source.close()
    gone = TopicPartition(topic.name, 0, 7)
    client = admin(topic.server)
    client.delete_records([gone])[gone].result(30)
    found = {one.check: one for one in topic.settings().examine()}
    assert found["retention"].verdict == "wrong"
    assert bodies_of(collect(kafka_opened(topic.settings()), 3)) == [b"0-7", b"0-8", b"0-9"]
    assert "removed up to 5 messages before they were read" in caplog.text


def test_an_offset_beyond_the_end_is_said_and_the_topic_read_from_its_oldest_message(
    topic: Topic, kafka_opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    """So with a topic that was deleted and created again."""
    topic.fill(10)
    topic.commit(10_000)
    topic.fill(2)
    source = kafka_opened(topic.settings(auto_offset_reset="latest"))
    messages = collect(source, 12)
    assert "ends at offset 12, and 10000 was to be read next" in caplog.text
    settle(source, messages)
    assert topic.committed() == [12]


def test_a_topic_that_was_created_again_is_read_from_its_oldest_message(
    topic: Topic, kafka_opened: Opened
) -> None:
    topic.fill(10)
    source = kafka_opened(topic.settings())
    settle(source, collect(source, 10))
    source.close()
    topic.recreate()
    topic.fill(3)
    assert bodies_of(collect(kafka_opened(topic.settings()), 3)) == [b"0-0", b"0-1", b"0-2"]


def test_a_committed_offset_says_of_which_topic_and_reading_it_is() -> None:
    note = Note("AaIcxnlbcAGvqk9Ue+Q/2w", 200, "a1b2")
    assert read_note(str(note)) == note
    assert read_note(str(Note("", 200, "a1b2"))) == Note("", 200, "a1b2")
    assert read_note("fuploader/1 AaIc 200") == Note("AaIc", 200)
    for other in (None, "", "other", "fuploader/2 x 1", "fuploader/3 x 1 r", "fuploader/2 x y r"):
        assert read_note(other) == Note()
    assert was_created_again(note, "other")
    assert not was_created_again(note, note.topic_id)
    assert not was_created_again(note, "")
    assert not was_created_again(Note(), "other")


def test_a_message_that_comes_again_has_the_same_position(
    topic: Topic, kafka_opened: Opened
) -> None:
    topic.fill(20)
    source = kafka_opened(topic.settings())
    messages = collect(source, 20)
    positions = positions_of(source, messages)
    assert [one.number for one in positions] == list(range(20))
    assert source.positions_up_to(messages[11]) == [positions[11]]
    settle(source, messages[:10])
    assert source.position_of(messages[9]) is None
    source.close()
    again = kafka_opened(topic.settings())
    assert positions_of(again, collect(again, 10)) == positions[10:]
    again.close()
    topic.commit(0)  # as a person who wants them all again
    anew = kafka_opened(topic.settings())
    once_more = positions_of(anew, collect(anew, 20))
    assert {one.reading for one in once_more} != {one.reading for one in positions}


def test_of_each_partition_there_is_the_last_position(four: Topic, kafka_opened: Opened) -> None:
    four.fill(10)
    source = kafka_opened(four.settings())
    messages = collect(source, 40)
    ends = {one.part: one.number for one in source.positions_up_to(messages[-1])}
    assert ends == {f"{four.name}[{number}]": 9 for number in range(4)}


def positions_of(source: MessageSource, messages: Sequence[Message]) -> list[Position]:
    found = [source.position_of(one) for one in messages]
    return [one for one in found if one is not None]


def test_a_worker_that_takes_nothing_for_long_stays_in_the_group(
    topic: Topic, kafka_opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    bodies = topic.fill(200)
    source = kafka_opened(topic.settings(max_poll_interval_seconds=10))
    messages = collect(source, 50)
    until = time.monotonic() + 15
    while time.monotonic() < until:
        assert source.receive(0, 0.5) == []
    settle(source, messages)
    messages += collect(source, 100)
    assert source.receive(10, 0.2) == []
    settle(source, messages)
    messages += collect(source, 50)
    assert bodies_of(messages) == bodies
    assert not any(message.redelivered for message in messages)


def test_a_worker_that_does_not_ask_for_too_long_says_so_and_loses_nothing(
    topic: Topic, kafka_opened: Opened
) -> None:
    bodies = topic.fill(20)
    source = kafka_opened(topic.settings(max_poll_interval_seconds=10), "worker")
    messages = collect(source, 5)
    time.sleep(13)  # as a parser that holds the interpreter's lock
    with pytest.raises(SourceUnavailable, match="max_poll_interval_seconds"):
        for _ in range(50):
            source.receive(5, 0.1)
    with pytest.raises(SourceUnavailable):
        settle(source, messages)
    source.open()
    assert bodies_of(collect(source, 20)) == bodies
