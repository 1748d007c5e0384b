"""The producer: publishes one message after the other and remembers what the server confirmed."""

from __future__ import annotations

import threading
import time

from tests.soak.plan import LIMITED, PLAIN, outgoing
from tests.soak.queues import PublishesToQueues, Queues

BATCH_SECONDS = 0.1
MOST_WAITING = 5_000
"""In a queue: on a busy machine, what dies of messages is slower than any rate, and a backlog would
grow as long as a soak lasts."""
PAUSE_SECONDS = 0.5
LOOK_SECONDS = 2.0
"""Between two looks at how long the queues are."""


class Producer:
    """`confirmed` are the messages that must come out. What was not confirmed is never sent again,
    and may come out or not."""

    def __init__(self, queues: Queues, seed: int, rate: int) -> None:
        self.next = 0
        """The number of the next message."""
        self.confirmed: list[range] = []
        self.problem: BaseException | None = None
        self._queues = queues
        self._seed = seed
        self._rate = rate
        self._look_at = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._publish, name="producer")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Publish no more. `problem` is what it ended of, if it was not meant to end."""
        self._over.set()
        self._thread.join()

    def _publish(self) -> None:
        publisher = self._queues.publisher()
        count = max(1, round(self._rate * BATCH_SECONDS))
        try:
            due = time.monotonic()
            while not self._over.wait(due - time.monotonic()):
                due = max(due + BATCH_SECONDS, time.monotonic() - 1)
                if self._is_ahead(publisher):
                    self._over.wait(PAUSE_SECONDS)
                    continue
                batch = range(self.next, self.next + count)
                self.next = batch.stop
                try:
                    publisher.publish([outgoing(self._seed, number) for number in batch])
                except self._queues.lost:
                    self._over.wait(PAUSE_SECONDS)
                else:
                    self._note(batch)
        except BaseException as error:
            self.problem = error
        finally:
            publisher.close()

    def _is_ahead(self, publisher: PublishesToQueues) -> bool:
        if time.monotonic() < self._look_at:
            return False
        try:
            if publisher.longest((PLAIN, LIMITED)) > MOST_WAITING:
                return True
        except self._queues.lost:
            return True
        self._look_at = time.monotonic() + LOOK_SECONDS
        return False

    def _note(self, batch: range) -> None:
        if self.confirmed and self.confirmed[-1].stop == batch.start:
            self.confirmed[-1] = range(self.confirmed[-1].start, batch.stop)
        else:
            self.confirmed.append(batch)
