"""What a cluster says about our topics and our group: looked up, never changed (but `declare`).

What must always hold: looking makes no topic, and takes no part in the group.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import TimeoutError as NoAnswer
from typing import TYPE_CHECKING, Any, NamedTuple

from fuploader_dagster.errors import SourceRefused, SourceUnavailable
from fuploader_dagster.resources.sources.kafka.connection import (
    Troubles,
    configuration,
    explained,
    library,
)

if TYPE_CHECKING:
    from fuploader_dagster.resources.sources.kafka.settings import Kafka

_LOOK_EVERY_SECONDS = 0.05
_NO_ID = "AAAAAAAAAAAAAAAAAAAAAA"
_MISSING = ("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC")

Place = tuple[str, int]
"""A topic and one of its partitions."""


def text_of(place: Place) -> str:
    return f"{place[0]}[{place[1]}]"


class Topic(NamedTuple):
    name: str
    topic_id: str
    """Another one when the topic was deleted and created again; empty if the broker has none."""
    replicas: Sequence[int]
    """How many replicas each partition has."""
    operations: frozenset[str] | None
    """What we may do with it; None if the broker does not say."""

    @property
    def places(self) -> list[Place]:
        return [(self.name, number) for number in range(len(self.replicas))]


class Cluster:
    """Connects at the first use."""

    def __init__(self, settings: Kafka) -> None:
        self._settings = settings
        self._client: Any = None
        self._troubles = Troubles(settings)

    def topics(self, *, rights: bool = False) -> dict[str, Topic]:
        """Those of our topics that exist."""
        tried = "look up"
        kafka, client = library(), self._admin()
        names = set(self._settings.names)
        if self._settings.has_pattern:
            names |= self._names_like_ours(client)
        if not names:
            return {}
        asked = client.describe_topics(
            kafka.TopicCollection(sorted(names)),
            include_authorized_operations=rights,
            request_timeout=self._settings.timeout_seconds,
        )
        found: dict[str, Topic] = {}
        for name, future in asked.items():
            one = self._answer(tried, future, missing_is_none=True)
            if one is not None:
                topic_id = str(one.topic_id)
                allowed = one.authorized_operations
                found[name] = Topic(
                    name,
                    "" if topic_id == _NO_ID else topic_id,
                    [len(partition.replicas) for partition in one.partitions],
                    frozenset(operation.name for operation in allowed) if allowed else None,
                )
        return found

    def needed_topics(self) -> dict[str, Topic]:
        """Our topics; those that are named and missing are created, or refused."""
        found = self.topics()
        missing = [name for name in self._settings.names if name not in found]
        if not missing:
            return found
        if not self._settings.declare:
            raise SourceRefused(
                f"there is no topic {', '.join(missing)} on Kafka "
                f"({self._settings.bootstrap_servers})",
                hint="create it, or set declare: true; is its name right?",
            )
        self.create(missing)
        return self.topics()

    def create(self, names: Iterable[str]) -> None:
        kafka, client, settings = library(), self._admin(), self._settings
        new = [kafka.admin.NewTopic(name, num_partitions=settings.partitions) for name in names]
        made = client.create_topics(new, request_timeout=settings.timeout_seconds)
        for name, future in made.items():
            self._answer(f"create topic {name} for", future, there_already_is_fine=True)

    def committed(self) -> dict[Place, int]:
        """The offsets that our group committed: where it goes on reading."""
        kafka, client, settings = library(), self._admin(), self._settings
        asked = client.list_consumer_group_offsets(
            [kafka.ConsumerGroupTopicPartitions(settings.group)],
            request_timeout=settings.timeout_seconds,
        )
        found = self._answer("look up the offsets of", asked[settings.group])
        return {
            (one.topic, one.partition): one.offset
            for one in found.topic_partitions
            if one.offset >= 0
        }

    def offsets(self, places: Iterable[Place], *, oldest: bool) -> dict[Place, int]:
        """Offset of the oldest message of each partition, or of the next one to come."""
        kafka, client = library(), self._admin()
        spec = kafka.admin.OffsetSpec.earliest() if oldest else kafka.admin.OffsetSpec.latest()
        wanted = {kafka.TopicPartition(*place): spec for place in places}
        if not wanted:
            return {}
        asked = client.list_offsets(wanted, request_timeout=self._settings.timeout_seconds)
        return {
            (one.topic, one.partition): self._answer("look up the offsets of", future).offset
            for one, future in asked.items()
        }

    def group(self) -> Any:
        """What the cluster says about our group."""
        client, settings = self._admin(), self._settings
        asked = client.describe_consumer_groups(
            [settings.group], request_timeout=settings.timeout_seconds
        )
        return self._answer("look up the group of", asked[settings.group])

    def close(self) -> None:
        self._client = None

    def _admin(self) -> Any:
        if self._client is None:
            kafka = library()
            try:
                self._client = kafka.admin.AdminClient(
                    {**configuration(self._settings), "error_cb": self._troubles}
                )
            except kafka.KafkaException as error:
                raise explained("connect to", self._settings, error) from error
        return self._client

    def _names_like_ours(self, client: Any) -> set[str]:
        kafka, settings = library(), self._settings
        deadline = time.monotonic() + settings.timeout_seconds
        while True:
            try:
                listed = client.list_topics(timeout=min(1.0, settings.timeout_seconds))
            except kafka.KafkaException as error:
                client.poll(0)
                self._troubles.raise_any("look up")
                if time.monotonic() > deadline:
                    raise explained("look up", settings, error) from error
            else:
                return {name for name in listed.topics if settings.reads(name)}

    def _answer(
        self,
        tried: str,
        future: Any,
        *,
        missing_is_none: bool = False,
        there_already_is_fine: bool = False,
    ) -> Any:
        kafka = library()
        deadline = time.monotonic() + self._settings.timeout_seconds + 1
        while True:
            try:
                return future.result(_LOOK_EVERY_SECONDS)
            except NoAnswer:
                self._client.poll(0)
                self._troubles.raise_any(tried)
                if time.monotonic() > deadline:
                    raise SourceUnavailable(
                        f"could not {tried} {self._settings.describe()}: there was no answer "
                        f"within {self._settings.timeout_seconds:g} s",
                        hint="check that the brokers answer",
                    ) from None
            except kafka.KafkaException as error:
                name = error.args[0].name()
                if missing_is_none and name in _MISSING:
                    return None
                if there_already_is_fine and name == "TOPIC_ALREADY_EXISTS":
                    return None
                raise explained(tried, self._settings, error) from error


def lag_of(
    places: Iterable[Place],
    committed: Mapping[Place, int],
    oldest: Mapping[Place, int],
    ends: Mapping[Place, int],
    *,
    from_oldest: bool,
) -> dict[Place, int]:
    """Messages of each partition that the group has not done yet."""
    lag: dict[Place, int] = {}
    for place in places:
        start = oldest[place] if from_oldest else ends[place]
        lag[place] = max(0, ends[place] - max(committed.get(place, start), oldest[place]))
    return lag
