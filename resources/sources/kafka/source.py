"""Topics of Kafka, read by one member of a consumer group.

What must always hold:

- Offsets are committed by `settle` alone, in one synchronous request, for partitions that are ours
  since before the messages were received (`assignment.Held`).
- The group asks for its members at least once in `max_poll_interval_seconds`: each call of
  `receive` polls. What a poll brings that nobody asked for waits here (`_surplus`), and when much
  waits, the partitions are paused.
- A partition is never read from somewhere else without a sentence in the log.

Messages of partitions that went to other workers may still be committed here, and be settled: the
others get them marked as redelivered, and look for them. The library fetches ahead, up to
`_FETCHED_AHEAD_KIB`; what it fetched is in nobody's hand until `receive` returns it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.source import (
    CommittedBatch,
    Message,
    MessageSource,
    Position,
)
from fuploader_dagster.errors import SourceRefused, SourceUnavailable
from fuploader_dagster.resources.sources.kafka.assignment import (
    Held,
    InHand,
    Note,
    doubtful_after,
    in_ranges,
    read_note,
    say_created_again,
    say_out_of_range,
    was_created_again,
)
from fuploader_dagster.resources.sources.kafka.cluster import Cluster, Place, Topic
from fuploader_dagster.resources.sources.kafka.connection import (
    REBALANCING,
    Troubles,
    configuration,
    explained,
    library,
)
from fuploader_dagster.resources.sources.kafka.goodbye import GOODBYE_SECONDS, leave
from fuploader_dagster.resources.sources.kafka.records import described, message_id_of

if TYPE_CHECKING:
    from fuploader_dagster.resources.sources.kafka.settings import Kafka

log = logging.getLogger(__name__)

_BATCH_BYTES = 4 << 20
_FIRST_COUNT = 32
_FETCHED_AHEAD_KIB = 8 << 10
_FETCH_BYTES = 4 << 20
_MOST_SURPLUS = 32
"""Before partitions are paused: what was fetched ahead is fetched again after a pause."""
_REBALANCE_POLL_SECONDS = 0.1
_SKIPPED_COMMITTED_AFTER_SECONDS = 1.0
_OFFSET_GONE = {"_AUTO_OFFSET_RESET", "OFFSET_OUT_OF_RANGE", "_LOG_TRUNCATION"}
_TOMBSTONE = "it is a tombstone: a message of Kafka without a value"


class KafkaSource(MessageSource):
    """One member of the group."""

    def __init__(self, settings: Kafka, prefetch: int) -> None:
        self._settings = settings
        self._prefetch = self._most_in_hand = prefetch
        self._member = ""
        self._consumer: Any = None
        self._let_in = threading.Event()
        """The group has given this member its partitions, or none, for the first time."""
        self._troubles = Troubles(settings)
        self._topics: dict[str, Topic] = {}
        self._held: dict[Place, Held] = {}
        self._in_hand: deque[InHand] = deque()
        self._surplus: deque[Any] = deque()
        self._paused = False
        self._to_commit: dict[Held, int] = {}
        """Offsets to commit that no message stands for: a first one, or behind tombstones."""
        self._to_commit_at = 0.0
        self._last_number = self._start = self._settled = 0
        self._count = _FIRST_COUNT
        """How many to take at once: so many that they are about `_BATCH_BYTES`."""

    def named(self, worker: str) -> None:
        self._member = worker

    def open(self) -> None:
        self.close()
        settings = self._settings
        with self._giving_up("open"):
            cluster = Cluster(settings)
            self._topics = cluster.needed_topics()
            cluster.close()
            self._troubles = Troubles(settings)
            consumer = library().Consumer(self._configuration())
            self._consumer, self._let_in = consumer, (let_in := threading.Event())

            def on_assign(consumer: Any, partitions: list[Any]) -> None:
                let_in.set()
                self._on_assign(consumer, partitions)

            consumer.subscribe(
                list(settings.topic),
                on_assign=on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_lost,
            )
            self._start = self._settled = self._last_number

    def receive(self, limit: int, timeout_seconds: float) -> list[Message]:
        """As the contract says; with limit 0 it only waits."""
        self._opened()
        room = min(limit, self._most_in_hand - len(self._in_hand))
        deadline = time.monotonic() + timeout_seconds
        with self._giving_up("receive from"):
            while True:
                if room > 0 and (messages := self._taken(room)):
                    return messages
                self._commit_due()
                remaining = deadline - time.monotonic()
                if room <= 0 and limit:
                    remaining = 0.0
                self._poll(max(0.0, remaining))
                if room > 0 and self._surplus:
                    continue
                if remaining <= 0:
                    return []

    def limit_in_hand(self, messages: int) -> None:
        self._most_in_hand = min(messages, self._prefetch)

    def settle(self, batch: CommittedBatch) -> None:
        last = batch.last.delivery
        if self._consumer is None or last <= self._start:
            self.close()
            raise SourceUnavailable(
                f"{self._settings.describe()} was closed after these messages were received",
                hint="nothing is lost: they will be delivered again",
            )
        done: dict[Held, int] = {}
        in_hand = self._in_hand
        while in_hand and in_hand[0].delivery <= last:
            one = in_hand.popleft()
            done[one.held] = one.next_offset
        self._settled = max(self._settled, last)
        if done:
            with self._giving_up("commit offsets of"):
                self._commit(done)

    def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        settled = [self._mark(*one) for one in self._to_commit.items() if one[0].last]
        self._in_hand.clear()
        self._surplus.clear()
        self._held.clear()
        self._to_commit.clear()
        self._paused = False
        if consumer is None:
            return
        leaving = threading.Thread(
            target=leave,
            args=(consumer, settled, self._let_in),
            kwargs={"stays": self._is_static},
            name="leaving Kafka",
            daemon=True,
        )
        del consumer  # the thread has the last reference
        leaving.start()
        leaving.join(GOODBYE_SECONDS)

    def reads(self) -> str:
        return in_ranges(self._held)

    def describe(self, message: Message) -> dict[str, Any]:
        return described(message)

    def position_of(self, message: Message) -> Position | None:
        in_hand = self._in_hand
        at = message.delivery - in_hand[0].delivery if in_hand else -1  # none is left out
        return in_hand[at].position if 0 <= at < len(in_hand) else None

    def positions_up_to(self, last: Message) -> Sequence[Position]:
        ends: dict[Held, InHand] = {}
        for one in self._in_hand:
            if one.delivery > last.delivery:
                break
            ends[one.held] = one
        return [one.position for one in ends.values()]

    def _configuration(self) -> Mapping[str, Any]:
        settings = self._settings
        chosen = configuration(
            settings,
            group_id=settings.group,
            enable_auto_commit=False,
            enable_auto_offset_store=False,
            auto_offset_reset="error",  # decided in `_on_assign` and `_offset_is_gone`
            partition_assignment_strategy="cooperative-sticky",
            session_timeout_ms=round(settings.session_timeout_seconds * 1000),
            heartbeat_interval_ms=round(min(3.0, settings.session_timeout_seconds / 5) * 1000),
            max_poll_interval_ms=round(
                max(settings.max_poll_interval_seconds, settings.session_timeout_seconds) * 1000
            ),
            queued_max_messages_kbytes=_FETCHED_AHEAD_KIB,
            fetch_max_bytes=_FETCH_BYTES,
            fetch_queue_backoff_ms=50,  # also how long a resumed partition may wait
        )
        chosen["error_cb"] = self._troubles
        if self._is_static:
            chosen["group.instance.id"] = self._member
        return chosen

    @property
    def _is_static(self) -> bool:
        return self._settings.static_members and bool(self._member)

    def _opened(self) -> Any:
        if self._consumer is None:
            raise SourceUnavailable(f"{self._settings.describe()} is not open")
        return self._consumer

    def _taken(self, room: int) -> list[Message]:
        """Messages that are here already, without waiting."""
        consumer = self._opened()
        self._pause(False)
        most = min(room, self._count)
        records = [self._surplus.popleft() for _ in range(min(most, len(self._surplus)))]
        if len(records) < most:
            records += consumer.consume(most - len(records), 0)
            self._troubles.raise_any("receive from")
        if not records:
            return []
        messages = self._received(records)
        if self._to_commit and self._to_commit_at == 0.0:  # a partition's first offset
            self._commit({})
        return messages

    def _received(self, records: list[Any]) -> list[Message]:
        messages: list[Message] = []
        size = 0
        held_now, in_hand, tombstones = self._held, self._in_hand, self._settings.tombstones
        for record in records:
            if record.error() is not None:
                self._failed(record)
                continue
            held = held_now.get((record.topic(), record.partition()))
            if held is None:
                continue  # it went to another worker just now, who gets its messages
            body, after, damage = record.value(), record.offset() + 1, ""
            held.next_offset = after
            if body is None:
                body = b""
                if tombstones == "skip":
                    self._skip(held, after)
                    continue
                if tombstones == "dead_letter":
                    damage = _TOMBSTONE
            self._last_number += 1
            redelivered = held.doubtful > 0
            if redelivered:
                held.doubtful -= 1
            message_id = message_id_of(record.headers())
            messages.append(
                Message(body, self._last_number, redelivered, message_id, record, damage)
            )
            held.last = InHand(self._last_number, held, after, record)
            in_hand.append(held.last)
            size += len(body)
        if messages:
            self._count = max(1, min(2 * self._count, _BATCH_BYTES * len(messages) // (size or 1)))
        return messages

    def _skip(self, held: Held, after: int) -> None:
        """Pass over a message: it is settled with the one before it."""
        if held.last is not None and held.last.delivery > self._settled:
            held.last.next_offset = after
            return
        if not self._to_commit:
            self._to_commit_at = time.monotonic() + _SKIPPED_COMMITTED_AFTER_SECONDS
        self._to_commit[held] = after

    def _poll(self, seconds: float) -> None:
        """Take part in the group; what comes with it is surplus."""
        consumer = self._opened()
        self._pause(len(self._surplus) >= _MOST_SURPLUS)
        record = consumer.poll(seconds)
        self._troubles.raise_any("receive from")
        if record is None:
            return
        if record.error() is not None:
            self._failed(record)
        else:
            self._surplus.append(record)

    def _pause(self, paused: bool) -> None:
        if paused == self._paused:
            return
        consumer, kafka = self._opened(), library()
        ours = [kafka.TopicPartition(*place) for place in self._held]
        if ours:
            (consumer.pause if paused else consumer.resume)(ours)
        self._paused = paused

    def _commit_due(self) -> None:
        if self._to_commit and time.monotonic() >= self._to_commit_at:
            self._commit({})

    def _commit(self, done: Mapping[Held, int]) -> None:
        """Commit offsets of partitions that are still ours, after a rebalance if there is one."""
        consumer, kafka = self._opened(), library()
        offsets = {**self._to_commit, **done}
        self._to_commit.clear()
        self._to_commit_at = 0.0
        deadline = time.monotonic() + self._settings.timeout_seconds
        while wanted := self._current(offsets):
            try:
                self._commit_now(consumer, wanted)
            except kafka.KafkaException as error:
                if error.args[0].name() not in REBALANCING or time.monotonic() > deadline:
                    raise
                self._poll(_REBALANCE_POLL_SECONDS)
            else:
                for held, offset in offsets.items():
                    held.committed = max(held.committed, offset)

    def _commit_now(self, consumer: Any, offsets: list[Any]) -> None:
        """In a thread of its own: the library waits for ever for a broker that hangs.

        Nothing may poll meanwhile: that would not return either.
        """
        kafka, seconds = library(), self._settings.timeout_seconds
        answers: list[Any] = []

        def commit() -> None:
            try:
                answers.extend(consumer.commit(offsets=offsets, asynchronous=False))
            except (kafka.KafkaException, RuntimeError) as error:  # closed meanwhile
                answers.append(error)

        thread = threading.Thread(target=commit, name="committing to Kafka", daemon=True)
        thread.start()
        thread.join(seconds)
        if not answers:
            raise SourceUnavailable(
                f"{self._settings.describe()} did not confirm offsets within {seconds:g} s",
                hint="nothing is lost: messages whose offsets are not committed come again",
            )
        for one in answers:
            if isinstance(one, kafka.KafkaException):
                raise one
            if isinstance(one, RuntimeError):
                raise SourceUnavailable(f"{self._settings.describe()} is closed") from one
            if one.error is not None:
                raise kafka.KafkaException(one.error)

    def _current(self, offsets: Mapping[Held, int]) -> list[Any]:
        return [
            self._mark(held, offset)
            for held, offset in offsets.items()
            if self._held.get(held.place) is held and offset > held.committed
        ]

    def _mark(self, held: Held, offset: int) -> Any:
        """An offset to commit, for the library."""
        return library().TopicPartition(held.topic, held.number, offset, self._note(held))

    def _note(self, held: Held) -> str:
        known = self._topics.get(held.topic)
        return str(Note(known.topic_id if known else "", self._prefetch, held.reading))

    def _on_assign(self, consumer: Any, partitions: list[Any]) -> None:
        if consumer is not self._consumer:
            return
        kafka, seconds = library(), self._settings.timeout_seconds
        found = consumer.committed(partitions, timeout=seconds) if partitions else []
        for one in found:
            if one.error is not None:
                raise kafka.KafkaException(one.error)
            self._hold(consumer, one)
        starts = [self._held[(one.topic, one.partition)] for one in found]
        consumer.incremental_assign(
            [kafka.TopicPartition(held.topic, held.number, held.next_offset) for held in starts]
        )
        if self._paused and found:
            consumer.pause([kafka.TopicPartition(one.topic, one.partition) for one in found])
        if found:
            log.info("got %s", ", ".join(map(str, starts)))

    def _hold(self, consumer: Any, found: Any) -> None:
        """Begin with a partition, of which we know what the group committed."""
        topic, number, start = found.topic, found.partition, found.offset
        known, note = self._topics.get(topic), read_note(found.metadata)
        first, doubtful = not note.reading, doubtful_after(note, self._prefetch)
        if start < 0:
            first, doubtful = True, 0
            oldest, end = self._range(consumer, topic, number)
            start = oldest if self._settings.auto_offset_reset == "earliest" else end
            log.info("%s[%d] is read from offset %d, for the first time", topic, number, start)
        elif known and was_created_again(note, known.topic_id):
            first = True
            oldest, _ = self._range(consumer, topic, number)
            say_created_again(topic, number, start, oldest)
            start = oldest
        reading = "" if first else note.reading
        held = self._held[(topic, number)] = Held(topic, number, start, doubtful, reading)
        if first:
            self._to_commit[held] = start
            self._to_commit_at = 0.0

    def _range(self, consumer: Any, topic: str, number: int) -> tuple[int, int]:
        """Offsets of the oldest message, and of the next one to come."""
        place = library().TopicPartition(topic, number)
        oldest, end = consumer.get_watermark_offsets(place, timeout=self._settings.timeout_seconds)
        return int(oldest), int(end)

    def _on_revoke(self, consumer: Any, partitions: list[Any]) -> None:
        if consumer is not self._consumer:
            return
        places = {(one.topic, one.partition) for one in partitions}
        settled = {
            held: offset
            for held, offset in self._to_commit.items()
            if held.place in places and held.last
        }
        with suppress(library().KafkaException, SourceUnavailable):  # else: passed over again
            if wanted := self._current(settled):
                self._commit_now(consumer, wanted)
        self._let_go(places, "went to other workers")

    def _on_lost(self, consumer: Any, partitions: list[Any]) -> None:
        if consumer is self._consumer:
            places = {(one.topic, one.partition) for one in partitions}
            self._let_go(places, "were taken away, because the group had not heard of this worker")

    def _let_go(self, places: set[Place], what_happened: str) -> None:
        """Messages in hand go on; of their partitions, nothing is committed any more."""
        gone = [held for place, held in self._held.items() if place in places]
        for held in gone:
            del self._held[held.place]
            self._to_commit.pop(held, None)
        self._surplus = deque(
            one for one in self._surplus if (one.topic(), one.partition()) not in places
        )
        if not gone:
            return
        unsettled = sum(one.held in gone for one in self._in_hand)
        log.info(
            "%s %s%s",
            ", ".join(map(str, gone)),
            what_happened,
            f"; {counted(unsettled, 'message of them is', 'messages of them are')} in hand here, "
            "and will come again there, marked"
            if unsettled
            else "",
        )

    def _failed(self, record: Any) -> None:
        """An error came in place of a message."""
        error = record.error()
        held = self._held.get((record.topic(), record.partition()))
        if error.name() in _OFFSET_GONE:
            if held is not None:
                self._offset_is_gone(held)
            return
        raise library().KafkaException(error)

    def _offset_is_gone(self, held: Held) -> None:
        """Go on with the oldest message that is there."""
        consumer, kafka = self._opened(), library()
        oldest, end = self._range(consumer, held.topic, held.number)
        say_out_of_range(held, oldest, end)
        again = Held(held.topic, held.number, oldest, doubtful_after(Note(), self._prefetch))
        self._held[held.place] = again
        self._to_commit.pop(held, None)
        self._to_commit[again] = oldest
        self._to_commit_at = 0.0
        again_there = [kafka.TopicPartition(held.topic, held.number, oldest)]
        consumer.incremental_unassign(again_there)  # a partition without an offset cannot seek
        consumer.incremental_assign(again_there)
        if self._paused:
            consumer.pause(again_there)

    @contextmanager
    def _giving_up(self, tried: str) -> Iterator[None]:
        """Any error closes the source."""
        try:
            yield
        except (SourceUnavailable, SourceRefused):
            self.close()
            raise
        except library().KafkaException as error:
            self.close()
            raise explained(tried, self._settings, error) from error
