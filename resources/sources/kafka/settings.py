"""Settings of Kafka topics as a queue.

What must always hold: a secret is in no repr, log or error. Every setting that the client library
gets is built in `connection.configuration`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.settings import Count
from fuploader_dagster.contracts.source import SourceSettings
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.resources.sources.kafka.examination import examine
from fuploader_dagster.resources.sources.kafka.publisher import KafkaPublisher
from fuploader_dagster.resources.sources.kafka.source import KafkaSource
from fuploader_dagster.settings.secret import Secret

_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")
_CLASS_OF_PYTHON = re.compile(r"\\[A-Za-z]")


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_text(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def _usable(topics: tuple[str, ...]) -> tuple[str, ...]:
    for topic in topics:
        if topic.startswith("^"):
            try:
                re.compile(topic)
            except re.error as error:
                raise ValueError(f"a pattern of topics is not valid: {error}") from error
            if _CLASS_OF_PYTHON.search(topic):
                raise ValueError(
                    "a pattern of topics is a POSIX extended one: write [0-9] for \\d and so on"
                )
        elif not _NAME.fullmatch(topic):
            raise ValueError(
                "a topic is named with 1 to 249 letters, digits, dots, underscores and dashes; a "
                "pattern of topics begins with ^"
            )
    if len(set(topics)) != len(topics):
        raise ValueError("a topic is named twice")
    return topics


class Kafka(SourceSettings):
    """Topics of Apache Kafka, read by a consumer group. Beta: not yet seen on Apache Kafka."""

    queue_field: ClassVar[str | None] = "publish_topic"

    bootstrap_servers: Annotated[str, BeforeValidator(_as_text), Field(min_length=1)]
    """Addresses of one or more brokers: `host:9092,other:9092`, or a list of them."""
    topic: Annotated[
        tuple[str, ...],
        BeforeValidator(_as_list),
        Field(min_length=1),
        AfterValidator(_usable),
    ]
    """Name of the topic, or a list of them. A name that begins with `^` is a pattern (a POSIX
    extended one, `^documents-[0-9]+$`) of topics that exist, or will."""
    group: Annotated[str, Field(min_length=1, max_length=200)]
    """Name of the consumer group. All workers of a pipeline share it, and nothing else may use
    it."""
    auto_offset_reset: Literal["earliest", "latest"] = "earliest"
    """Where to begin in a partition of which the group has committed nothing yet: with the oldest
    message, or with those that are published from now on. Counts for nothing else: where offsets
    are gone, the source goes on with the oldest message that is there, and says so."""
    tombstones: Literal["skip", "store", "dead_letter"] = "skip"
    """What becomes of messages without a value: passed over, handed on with an empty body, or kept
    as dead letters."""
    publish_topic: str | None = None
    """Topic for what we publish (replays, for example). By default the only one in `topic`. Dead
    letters return to the topic that they came from."""
    declare: bool = False
    """Create topics that are missing, with `partitions` and the broker's other defaults. By
    default, a missing topic is an error."""
    partitions: Count = 6
    """Partitions of a topic that we create: at most so many workers can read it at once."""
    static_members: bool = True
    """Keep the partitions of a worker for it while it restarts (`group.instance.id`, made of
    pipeline, node and worker), for at most `session_timeout_seconds`."""
    session_timeout_seconds: Annotated[float, Field(ge=1, le=1_800)] = 45.0
    """A worker without a sign of life for so long is gone, and others get its partitions. Brokers
    set limits to it, from 6 seconds to 30 minutes by default."""
    max_poll_interval_seconds: Annotated[float, Field(ge=10, le=86_400)] = 300.0
    """A worker whose process does not get to ask for messages for so long is gone as well. Only a
    parser that holds the interpreter's lock makes it wait."""
    timeout_seconds: Annotated[float, Field(ge=1, le=300)] = 10.0
    """Longest time to wait for a connection, for an answer, and for a published message to be
    confirmed."""
    tls: bool = False
    """Connect with TLS."""
    ca_file: Path | None = None
    """PEM file of the certificates to trust instead of the system's. With `tls` only."""
    cert_file: Path | None = None
    """PEM file of our certificate, for brokers that ask their clients for one. With `tls` only."""
    key_file: Path | None = None
    """PEM file of the key of `cert_file`, if the key is not in that file."""
    key_password: Secret | None = None
    """Password of the key."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    """How to log in. PLAIN sends the password as it is: use it with `tls`."""
    user: str | None = None
    """User name, with `sasl_mechanism`."""
    password: Secret | None = None
    """Password of the user, with `sasl_mechanism`."""

    @model_validator(mode="after")
    def _belong_together(self) -> Kafka:
        for name in ("ca_file", "cert_file", "key_file"):
            if getattr(self, name) is not None and not self.tls:
                raise ValueError(f"{name} is set, but not tls: true")
        for name in ("key_file", "key_password"):
            if getattr(self, name) is not None and self.cert_file is None:
                raise ValueError(f"{name} is set, but not the cert_file that it belongs to")
        logs_in = self.sasl_mechanism is not None
        for name in ("user", "password"):
            if (getattr(self, name) is not None) != logs_in:
                raise ValueError("sasl_mechanism, user and password belong together: set all three")
        if self.publish_topic is not None and not _NAME.fullmatch(self.publish_topic):
            raise ValueError("publish_topic must be the name of a topic, and not a pattern")
        return self

    def source(self, *, prefetch: int) -> KafkaSource:
        if prefetch < 1:
            raise ConfigError(f"prefetch is {prefetch}; it must be at least 1")
        return KafkaSource(self, prefetch)

    def publisher(self) -> KafkaPublisher:
        return KafkaPublisher(self)

    def describe(self) -> str:
        which = "topics" if len(self.topic) > 1 or self.topic[0].startswith("^") else "topic"
        named = f"{which} {', '.join(self.topic)}, group {self.group}"
        return f"{named}, on Kafka ({self.bootstrap_servers})"

    def examine(self) -> Iterator[Diagnosis]:
        return examine(self)

    @property
    def names(self) -> list[str]:
        """Topics that are named, without the patterns."""
        return [topic for topic in self.topic if not topic.startswith("^")]

    @property
    def has_pattern(self) -> bool:
        return len(self.names) < len(self.topic)

    def reads(self, topic: str) -> bool:
        """Whether a topic is one of ours."""
        return topic in self.topic or any(
            re.match(one, topic) for one in self.topic if one.startswith("^")
        )
