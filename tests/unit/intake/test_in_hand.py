"""In hand: how much a worker takes from the queue, and that nothing of it gets lost."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fuploader_dagster.contracts.source import CommittedBatch, Message
from fuploader_dagster.intake.in_hand import DECODE_SECONDS, InHand, Pace
from fuploader_dagster.intake.lease import Lease
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.settings.pipeline import Intake
from tests.settings import intake

UNLIMITED = 1 << 40


@pytest.fixture
def lease() -> Iterator[Lease]:
    reader, writer = os.pipe()
    running = Lease(reader)
    running.renew(600)
    yield running
    os.close(reader)
    os.close(writer)


def queue_of(folder: Path, bodies: Sequence[bytes], **values: object) -> Intake:
    source = EmbeddedQueue(path=folder / "queue")
    publisher = source.publisher()
    publisher.publish((body, {}) for body in bodies)
    publisher.close()
    return intake(folder, source=source, **values)


def in_hand(settings: Intake, lease: Lease) -> InHand:
    return InHand(settings.source.source(prefetch=settings.prefetch_count), settings, lease)


def commit(hand: InHand, batch: Sequence[Message]) -> None:
    hand.settle(CommittedBatch(batch[-1], len(batch)))


def test_a_worker_has_at_most_one_more_in_hand_than_it_has_settled(tmp_path: Path) -> None:
    settings = intake(tmp_path)
    pace = Pace(settings)
    settled = asked = 0
    for size in [1, 1, 3, 1, 6, 20, 7, 500, 500, 500, 500, 500]:
        assert pace.batch <= 1 + settled
        asked = pace.wanted(asked, UNLIMITED)
        assert asked <= 1 + settled
        pace.settled(min(size, pace.batch))
        settled += min(size, pace.batch)
    assert pace.wanted(asked, UNLIMITED) > settings.prefetch_count // 4
    pace.begin()
    assert (pace.batch, pace.wanted(asked, UNLIMITED)) == (1, 1)


def test_no_message_meets_more_deaths_than_the_logarithm_of_the_prefetch(tmp_path: Path) -> None:
    """Deadly messages where they do the most harm to those that come after them."""
    prefetch = 2_000
    settings = intake(tmp_path, prefetch_count=prefetch)
    victim = 4 * prefetch
    deadly = {victim - (1 << n) for n in range(13)} | set(range(0, victim, 999))
    deliveries = [0] * (victim + 1)
    head = 0
    pace = Pace(settings)
    asked = 0
    while head < victim:
        asked = pace.wanted(asked, UNLIMITED)
        batch = range(head, min(head + pace.batch, victim))
        killed_by = next((n for n in batch if n in deadly), None)
        if killed_by is None:
            pace.settled(len(batch))
            head = batch.stop
            continue
        for number in range(head, min(head + asked, victim + 1)):
            deliveries[number] += 1
        deadly.discard(killed_by)  # the deaths after the first are those of one in hand
        pace.begin()
        asked = 0
    assert max(deliveries) <= math.log2(prefetch) + 2


def test_what_decodes_slowly_is_taken_in_small_helpings(tmp_path: Path) -> None:
    pace = Pace(intake(tmp_path))
    pace.settled(10_000)
    asked = pace.wanted(0, UNLIMITED)
    assert asked == 2_000
    pace.decoded(50, 50 * 0.2)
    assert pace.batch == DECODE_SECONDS / 0.2
    assert pace.wanted(asked, UNLIMITED) == pace.batch
    pace.decoded(1, 60)
    assert pace.batch == 1
    pace.decoded(1, 0.0)
    assert pace.batch == 500


def test_a_pace_that_varies_a_little_does_not_make_the_broker_begin_again(tmp_path: Path) -> None:
    pace = Pace(intake(tmp_path))
    pace.settled(10_000)
    pace.decoded(100, 100 * 0.004)
    asked = pace.wanted(1, UNLIMITED)
    assert asked == 500
    for seconds in (0.0041, 0.0035, 0.005, 0.0039, 0.006):
        pace.decoded(500, 500 * seconds)
        assert pace.wanted(asked, UNLIMITED) == asked
    pace.decoded(500, 500 * 0.01)
    assert pace.wanted(asked, UNLIMITED) == 200


def test_a_worker_near_its_quota_takes_no_more_than_it_may_handle(tmp_path: Path) -> None:
    pace = Pace(intake(tmp_path))
    quota, asked = 700, 0
    changes = 0
    while quota > 0:
        wanted = pace.wanted(asked, quota)
        changes += wanted != asked
        asked = wanted
        assert asked <= max(1, quota)
        handled = min(pace.batch, asked)
        pace.settled(handled)
        quota -= handled
    assert quota == 0
    assert changes < 30  # each makes the broker begin again


def test_batches_are_in_order_and_complete_however_much_of_each_is_committed(
    tmp_path: Path, lease: Lease
) -> None:
    dice = random.Random(5)
    bodies = [b"%d " % n + bytes(dice.randrange(400)) for n in range(300)]
    hand = in_hand(queue_of(tmp_path, bodies, commit_bytes=2_000, commit_messages=50), lease)
    hand.open()
    got: list[bytes] = []
    while batch := hand.next_batch(50, quota=UNLIMITED):
        assert sum(len(message.body) for message in batch[:-1]) < 2_000
        enough = dice.randrange(1, len(batch) + 1)
        got += [message.body for message in batch[:enough]]
        commit(hand, batch[:enough])
        hand.put_back(batch[enough:])
    assert got == bodies
    hand.close()


def test_one_that_leaves_takes_nothing_more_and_gives_out_what_it_has(
    tmp_path: Path, lease: Lease
) -> None:
    settings = queue_of(tmp_path, [b"%d" % n for n in range(100)])
    hand = in_hand(settings, lease)
    hand.open()
    for _ in range(4):
        batch = hand.next_batch(100, quota=UNLIMITED)
        commit(hand, batch)
    left_over = hand.next_batch(100, quota=UNLIMITED)
    hand.put_back(left_over)
    hand.stop_taking()
    assert hand.last_batch() == left_over
    commit(hand, left_over)
    assert hand.last_batch() == []
    hand.close()


def test_a_new_session_begins_with_one_message_again(tmp_path: Path, lease: Lease) -> None:
    hand = in_hand(queue_of(tmp_path, [b"%d" % n for n in range(100)]), lease)
    for _ in range(2):
        hand.open()
        assert len(hand.next_batch(100, quota=UNLIMITED)) == 1
        hand.put_back([Message(b"stale", 1, False, None)])
        hand.close()
