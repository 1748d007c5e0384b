"""What a message source must do about limits: `prefetch`, and `limit_in_hand` if it has one.

Part of `MessageSourceContract`, which has the fixtures.
"""

from __future__ import annotations

import itertools
import random
import time

import pytest

from fuploader_dagster.contracts.source import (
    Message,
    MessagePublisher,
    MessageSource,
    SourceSettings,
)
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.testing.source_steps import (
    all_in_hand,
    bodies_of,
    close_with_backlog,
    collect,
    firsts_of,
    publish,
    settle,
)


def limited(source: MessageSource) -> MessageSource:
    """The source, if it knows `limit_in_hand`: the default does nothing."""
    if type(source).limit_in_hand is MessageSource.limit_in_hand:
        pytest.skip("this source has no limit of its own")
    return source


class LimitContract:
    """How many unsettled messages are out."""

    @pytest.fixture(autouse=True)
    def _give(self, settings: SourceSettings, publisher: MessagePublisher) -> None:
        self._settings, self._publisher = settings, publisher

    def test_no_more_than_prefetch_messages_are_out_unsettled(self) -> None:
        bodies = publish(self._publisher, 30)
        source = self._settings.source(prefetch=10)
        source.open()
        first = collect(source, 10)
        assert source.receive(10, 0.3) == []
        settle(source, first[:4])
        second = collect(source, 4)
        assert source.receive(10, 0.3) == []
        assert bodies_of(first + second) == bodies[:14]
        source.close()

    def test_a_limit_in_hand_bounds_what_is_out_and_receive_does_not_wait_for_more(self) -> None:
        source = limited(self._settings.source(prefetch=10))
        bodies = publish(self._publisher, 90)
        source.limit_in_hand(3)
        source.open()
        received = collect(source, 3)
        begun = time.monotonic()
        assert source.receive(10, 20) == []
        assert time.monotonic() - begun < 10
        settle(source, received)
        before = 3
        for limit in (3, 7, 100, 4, 1):
            source.limit_in_hand(limit)
            batches = [all_in_hand(source)]
            while len(batches[-1]) != min(limit, 10):
                assert len(batches) < 5, f"never {limit} in hand: {list(map(len, batches))}"
                settle(source, batches[-1])
                batches.append(all_in_hand(source))
            assert max(map(len, batches)) <= min(10, max(limit, before))
            settle(source, batches[-1])
            received += itertools.chain.from_iterable(batches)
            before = limit
        assert firsts_of(received) == [body for body in bodies if body in firsts_of(received)]
        close_with_backlog(source, self._publisher, 90 - len(received))

    def test_after_a_limit_of_zero_what_is_in_hand_can_be_received_and_settled_and_no_more_comes(
        self,
    ) -> None:
        source = limited(self._settings.source(prefetch=10))
        bodies = publish(self._publisher, 25)
        source.open()
        received = collect(source, 4)
        source.limit_in_hand(0)
        received += all_in_hand(source)
        assert bodies_of(received) == bodies[: len(received)]
        assert len(received) <= 10
        settle(source, received)
        assert source.receive(3, 0.3) == []
        source.limit_in_hand(5)
        rest = all_in_hand(source)
        assert len(rest) == 5
        assert set(bodies_of(rest)) <= set(bodies[len(received) :])
        close_with_backlog(source, self._publisher, 25 - len(received))

    def test_a_limit_that_grows_under_load_keeps_order_and_delivers_nothing_twice(self) -> None:
        source = limited(self._settings.source(prefetch=64))
        bodies = publish(self._publisher, 2_000)
        limit = 1
        source.limit_in_hand(limit)
        source.open()
        received: list[Message] = []
        while len(received) < 2_000:
            batch = source.receive(32, 15)
            assert batch, f"nothing came after {len(received)} messages"
            received += batch
            settle(source, batch)
            limit = min(64, 2 * limit)
            source.limit_in_hand(limit)
        assert bodies_of(received) == bodies
        assert not any(message.redelivered for message in received)
        close_with_backlog(source, self._publisher, 0)

    @pytest.mark.parametrize("seed", range(3))
    def test_nothing_is_lost_when_the_limit_in_hand_changes_at_any_moment(self, seed: int) -> None:
        random_ = random.Random(seed)
        source = limited(self._settings.source(prefetch=50))
        source.limit_in_hand(random_.randrange(4))
        source.open()
        bodies = publish(self._publisher, 300)
        received: list[Message] = []
        settled = 0
        deadline = time.monotonic() + 120
        while settled < 300:
            assert time.monotonic() < deadline, f"only {settled} of 300 messages were settled"
            if random_.random() < 0.4:
                source.limit_in_hand(random_.choice([0, 1, 2, 5, 20, 50, 1_000]))
            batch = source.receive(random_.randrange(1, 60), 0.05)
            received += batch
            assert len(received) - settled <= 50
            if len(received) > settled and (not batch or random_.random() < 0.5):
                settled += random_.randrange(1, len(received) - settled + 1)
                settle(source, received[:settled])
        assert sorted(bodies_of(received)) == sorted(bodies)
        assert firsts_of(received) == [body for body in bodies if body in firsts_of(received)]
        close_with_backlog(source, self._publisher, 0)

    @pytest.mark.parametrize("prefetch", [0, -1])
    def test_a_prefetch_without_a_limit_is_refused(self, prefetch: int) -> None:
        with pytest.raises(ConfigError, match="prefetch"):
            self._settings.source(prefetch=prefetch)
