"""In hand: the messages that the queue delivered to a worker and that the worker has not settled.

The trouble: whatever a worker has in hand when it ends, in whatever way, counts as delivered once
more, and some queues drop a message after a limit of deliveries (a quorum queue of RabbitMQ 4 after
20). A few messages that crash the parser, ahead of some thousand good ones, are enough to lose
those.

What must always hold:

- A worker has at most one message more in hand than it has settled since it began to consume. So
  at most about log2(prefetch) of a message's deliveries can end with the death of a worker that had
  not reached it yet: to have it in hand again, the worker must settle at least as many messages as
  there are between the two that killed it.
- It has no more in hand than it can decode in two seconds, and commits at least that often.
- A worker that leaves in good order has nothing in hand: it stops taking messages, and works off
  the rest.

`Pace` decides, from figures alone; `InHand` stands between the drain and its source.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence

from fuploader_dagster.contracts.source import CommittedBatch, Message, MessageSource
from fuploader_dagster.intake.lease import Lease
from fuploader_dagster.settings.pipeline import Intake

RECEIVE_SECONDS = 0.25
"""Longest wait for a message, and so for noticing the end of the lease."""
DECODE_SECONDS = 2.0
"""After decoding for this long, the worker commits, however few messages it has."""


class Pace:
    """How many messages to commit at once and to have in hand."""

    def __init__(self, pipeline: Intake) -> None:
        self._commit_messages = pipeline.commit_messages
        self._prefetch = pipeline.prefetch_count
        self._affordable = float(pipeline.prefetch_count)
        """Estimate of how many it can decode in `DECODE_SECONDS`."""
        self._settled = 0

    def begin(self) -> None:
        """A new session with the queue: nothing is in hand, and nothing was settled."""
        self._settled = 0

    def decoded(self, messages: int, seconds: float) -> None:
        self._affordable = max(1.0, messages * DECODE_SECONDS / max(seconds, 1e-6))

    def settled(self, messages: int) -> None:
        self._settled += messages

    @property
    def batch(self) -> int:
        """The most messages for the next commit."""
        return int(min(self._commit_messages, self._affordable, 1 + self._settled))

    def wanted(self, asked: int, quota: int) -> int:
        """How many to have in hand; `asked` is the number that the queue was last asked for.

        `quota`: how many the worker may still handle. Changes by at least a factor of two, because
        each change makes the broker start a new consumer, and ends at the prefetch.
        """
        most = int(min(self._prefetch, self._affordable))
        wanted = max(1, min(most, 1 + self._settled, quota // 2))
        reached = wanted == self._prefetch
        return wanted if wanted >= 2 * asked or 2 * wanted <= asked or reached else asked


class InHand:
    def __init__(self, source: MessageSource, pipeline: Intake, lease: Lease) -> None:
        self.source = source
        self.pace = Pace(pipeline)
        self.consuming = False
        self._pipeline = pipeline
        self._lease = lease
        self._asked = 0
        self._left_over: deque[Message] = deque()
        """Received and not committed yet: the last commit was full before it reached them."""

    def open(self) -> None:
        """Start consuming, with one message at first."""
        self.pace.begin()
        self._asked = 1
        self.source.limit_in_hand(self._asked)
        self.source.open()
        self.consuming = self._lease.in_hand = True

    def close(self) -> None:
        """Leave the queue, which takes back what is in hand. Never raises, may be repeated."""
        self.consuming = self._lease.in_hand = False
        self._left_over.clear()
        self.source.close()

    def next_batch(self, most: int, *, quota: int) -> list[Message]:
        """Messages for one commit: enough, or as old as the flush interval, or all there are.

        `most`: at most this many; `quota`: how many the worker may still handle at all.
        """
        wanted = self.pace.wanted(self._asked, quota)
        if wanted != self._asked:
            self._asked = wanted
            self.source.limit_in_hand(wanted)
        return self._batch(min(most, self.pace.batch), RECEIVE_SECONDS)

    def stop_taking(self) -> None:
        """Have the queue deliver nothing more. Returns when the queue has answered."""
        if self._asked:
            self._asked = 0
            self._lease.in_hand = False  # if the broker hangs, no need to wait
            self.source.limit_in_hand(0)
            self._lease.in_hand = True

    def last_batch(self) -> list[Message]:
        """Like `next_batch`, from what was delivered before `stop_taking`."""
        return self._batch(self.pace.batch, 0)

    def _batch(self, most: int, wait_seconds: float) -> list[Message]:
        batch: list[Message] = []
        size = 0
        due_at = math.inf
        while len(batch) < most and size < self._pipeline.commit_bytes:
            if not self._left_over:
                if time.monotonic() >= due_at or (batch and self._lease.over()):
                    break
                received = self.source.receive(most - len(batch), wait_seconds)
                if not received:
                    break
                self._left_over.extend(received)
                due_at = min(due_at, time.monotonic() + self._pipeline.flush_interval_seconds)
            batch.append(self._left_over.popleft())
            size += len(batch[-1].body)
        return batch

    def put_back(self, messages: Sequence[Message]) -> None:
        """Messages that were not committed: the next batch begins with them."""
        self._left_over.extendleft(reversed(messages))

    def settle(self, batch: CommittedBatch) -> None:
        self.source.settle(batch)
        self.pace.settled(batch.messages)

    def keep_alive(self) -> None:
        """Answer the queue's heartbeats, without taking messages."""
        if self.consuming:
            self.source.receive(0, 0)
