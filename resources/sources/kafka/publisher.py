"""Publishes to a topic of Kafka.

What must always hold: what was confirmed is on all in-sync replicas (`acks=all`), once even if it
had to be sent again (idempotence), and in order within its partition. After an error nothing more
is sent of what was to be published.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fuploader_dagster.contracts.source import Depth, MessagePublisher, PartDepth
from fuploader_dagster.errors import MessageRefused, SourceRefused, SourceUnavailable
from fuploader_dagster.resources.sources.kafka.cluster import Cluster, lag_of, text_of
from fuploader_dagster.resources.sources.kafka.connection import (
    Troubles,
    configuration,
    explained,
    library,
)
from fuploader_dagster.resources.sources.kafka.records import headers_to_send, key_to_send

if TYPE_CHECKING:
    from fuploader_dagster.resources.sources.kafka.settings import Kafka

_BATCH_MESSAGES = 1_000
_BATCH_BYTES = 4 << 20
_LARGEST_BYTES = 1_000_000_000
"""The library's own limit. The topic's is smaller, and the broker refuses what is larger."""
_ANSWER_SECONDS = 0.1
_TOO_LARGE = ("MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE", "_MSG_SIZE_TOO_LARGE")


class _Record(NamedTuple):
    topic: str
    value: bytes | None
    key: bytes | None
    headers: list[tuple[str, bytes]]


class _Confirmations:
    """What became of the records of one batch."""

    def __init__(self) -> None:
        self.outstanding = 0
        self.errors: dict[int, Any] = {}

    def expect(self, position: int) -> Any:
        self.outstanding += 1

        def delivered(error: Any, _: Any) -> None:
            self.outstanding -= 1
            if error is not None:
                self.errors[position] = error

        return delivered


class KafkaPublisher(MessagePublisher):
    """Connects at the first use, and again after an error."""

    def __init__(self, settings: Kafka) -> None:
        self._settings = settings
        self._cluster = Cluster(settings)
        self._producer: Any = None
        self._troubles = Troubles(settings)

    def publish(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        return self._publish(
            _Record(self._topic(), bytes(body), None, headers_to_send(headers))
            for body, headers in messages
        )

    def publish_again(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        """Keeps key and headers; to the topic that a message came from."""
        return self._publish(self._again(body, attributes) for body, attributes in messages)

    def backlog(self) -> int:
        """The lag of the group: what its workers have in hand counts too."""
        return self.depth().waiting

    def depth(self) -> Depth:
        cluster = self._cluster
        places = [place for topic in cluster.topics().values() for place in topic.places]
        # The offsets before the ends: the other way round, a busy topic could have less than none.
        committed = cluster.committed() if places else {}
        oldest, ends = (cluster.offsets(places, oldest=oldest) for oldest in (True, False))
        lag = lag_of(
            places,
            committed,
            oldest,
            ends,
            from_oldest=self._settings.auto_offset_reset == "earliest",
        )
        return Depth(
            sum(lag.values()),
            parts=[
                PartDepth(text_of(place), lag[place], committed.get(place), ends[place])
                for place in places
            ],
        )

    def close(self) -> None:
        producer, self._producer = self._producer, None
        self._cluster.close()
        if producer is not None:
            producer.purge()
            producer.poll(0)

    def _again(self, body: bytes, attributes: Mapping[str, Any]) -> _Record:
        headers = attributes.get("headers")
        sent = dict(headers) if isinstance(headers, dict) else {}
        sent.pop("message_id", None)
        if isinstance(attributes.get("message_id"), str):
            sent["message_id"] = attributes["message_id"]
        topic = attributes.get("topic")
        return _Record(
            topic if isinstance(topic, str) and self._settings.reads(topic) else self._topic(),
            None if attributes.get("tombstone") is True and not body else bytes(body),
            key_to_send(attributes),
            headers_to_send(sent),
        )

    def _topic(self) -> str:
        settings = self._settings
        if settings.publish_topic is not None:
            return settings.publish_topic
        if len(settings.topic) == 1 and settings.names:
            return settings.names[0]
        raise SourceRefused(
            f"could not publish to {settings.describe()}: there is more than one topic",
            hint="set publish_topic to the one that gets replays and what else we publish",
        )

    def _publish(self, records: Iterable[_Record]) -> int:
        published = 0
        for batch in _batches(records):
            try:
                self._send(batch, published)
            except BaseException:
                self.close()
                raise
            published += len(batch)
        return published

    def _send(self, batch: list[_Record], before: int) -> None:
        """Send the records and wait until all are confirmed."""
        kafka, producer = library(), self._connected()
        confirmations = _Confirmations()
        for position, record in enumerate(batch):
            try:
                producer.produce(
                    record.topic,
                    record.value,
                    key=record.key,
                    headers=record.headers,
                    on_delivery=confirmations.expect(position),
                )
            except kafka.KafkaException as error:
                confirmations.outstanding -= 1
                confirmations.errors[position] = error.args[0]
                break
        deadline = time.monotonic() + 2 * self._settings.timeout_seconds
        while confirmations.outstanding and not confirmations.errors:
            producer.poll(_ANSWER_SECONDS)
            self._troubles.raise_any("publish to")
            if time.monotonic() > deadline:
                raise SourceUnavailable(
                    f"{self._settings.describe()} did not confirm {confirmations.outstanding} "
                    f"messages within {2 * self._settings.timeout_seconds:g} s",
                    hint="some of them may be in the topic",
                )
        if not confirmations.errors:
            return
        producer.flush(self._settings.timeout_seconds)
        position = min(confirmations.errors)
        cause, record = confirmations.errors[position], batch[position]
        if cause.name() in _TOO_LARGE:
            raise MessageRefused(
                f"a message of {len(record.value or b''):,} bytes is too large for topic "
                f"{record.topic} of {self._settings.describe()}",
                position=before + position,
                confirmed=before + position,
                hint="raise max.message.bytes of the topic",
            )
        raise explained("publish to", self._settings, cause)

    def _connected(self) -> Any:
        if self._producer is not None:
            return self._producer
        settings = self._settings
        self._check_topic()
        self._troubles = Troubles(settings)
        chosen = configuration(
            settings,
            acks="all",
            enable_idempotence=True,
            message_timeout_ms=round(settings.timeout_seconds * 1000),
            message_max_bytes=_LARGEST_BYTES,
            partitioner="murmur2_random",  # as Java's producers choose the partition of a key
            linger_ms=5,
            queue_buffering_max_messages=0,
        )
        self._producer = library().Producer({**chosen, "error_cb": self._troubles})
        return self._producer

    def _check_topic(self) -> None:
        """A producer would have the broker create a topic that is missing."""
        settings = self._settings
        found = self._cluster.needed_topics()
        other = settings.publish_topic
        if other is not None and other not in found:
            model = settings.model_copy(update={"topic": (other,)})
            Cluster(model).needed_topics()


def _batches(records: Iterable[_Record]) -> Iterator[list[_Record]]:
    batch: list[_Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.value or b"")
        if len(batch) >= _BATCH_MESSAGES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
