"""What is particular to Kafka: keys, headers, tombstones, several topics, TLS, refusals."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer

from fuploader_dagster.errors import (
    ConfigError,
    MessageRefused,
    SourceRefused,
    SourceUnavailable,
)
from fuploader_dagster.testing.source_steps import bodies_of, collect, publish, settle
from tests.contract.sources.kafka_topics import (
    Opened,
    Topic,
    ends,
)
from tests.servers.kafka import (
    KafkaServer,
    kafka_settings,
    new_topic,
    running,
    tansu,
)
from tests.servers.odd_server import make_certificate
from tests.servers.ports import LOOPBACK, answers, free_port
from tests.servers.tls_proxy import TlsProxy


def test_key_place_time_and_headers_are_described(topic: Topic, kafka_opened: Opened) -> None:
    headers: list[tuple[str, bytes | None]] = [
        ("cmd", b"thumb/64"),
        ("raw", b"\xff"),
        ("twice", b"1"),
        ("twice", b"2"),
        ("null", None),
        ("fuploader-headers", b"[1]"),
        ("message_id", b"id-1"),
    ]
    before = int(time.time() * 1000)
    topic.produce((b"x", b"k", headers, 0), (b"y", b"\xfe", [], 0))
    source = kafka_opened(topic.settings())
    first, second = collect(source, 2)
    described = source.describe(first)
    assert before - 1_000 <= described.pop("timestamp") <= int(time.time() * 1000) + 1_000
    assert described == {
        "topic": topic.name,
        "partition": 0,
        "offset": 0,
        "key": "k",
        "message_id": "id-1",
        "headers": {
            "cmd": "thumb/64",
            "raw": {"base64": "/w=="},
            "twice": ["1", "2"],
            "null": None,
            "fuploader-headers": "[1]",
        },
    }
    assert source.describe(second)["key"] == {"base64": "/g=="}
    kept = source.headers_of(first, {"key": "key", "offset": "offset", "cmd": "cmd"})
    assert kept == {"key": "k", "offset": 0, "cmd": "thumb/64"}


def test_a_dead_letter_goes_back_to_its_topic_with_its_key_and_headers(
    topic: Topic, noida_server: KafkaServer, kafka_opened: Opened
) -> None:
    other = Topic(noida_server)
    settings = topic.settings(topic=[other.name, topic.name])
    topic.produce((b"x", b"\xfe", [("raw", b"\xff"), ("cmd", b"a")], 0), (None, b"k", [], 0))
    source = kafka_opened(settings.model_copy(update={"tombstones": "store"}))
    messages = collect(source, 2)
    described = [source.describe(one) for one in messages]
    settle(source, messages)
    publisher = settings.publisher()
    publisher.publish_again(zip(bodies_of(messages), described, strict=True))
    publisher.close()
    again = collect(source, 2)
    for one, before in zip(again, described, strict=True):
        now = source.describe(one)
        assert now.pop("offset") == before.pop("offset") + 2
        assert now.pop("timestamp")
        assert before.pop("timestamp")
        assert now == before
    assert again[0].attributes.headers() == messages[0].attributes.headers()
    assert again[1].attributes.value() is None


def test_what_we_publish_needs_one_topic_and_each_partition_has_a_depth(four: Topic) -> None:
    settings = four.settings(topic=[f"^{four.name}$"])
    publisher = settings.publisher()
    with pytest.raises(SourceRefused, match="publish_topic"):
        publisher.publish([(b"x", {})])
    publisher.close()
    publisher = settings.model_copy(update={"publish_topic": four.name}).publisher()
    assert publisher.publish([(b"%d" % number, {}) for number in range(100)]) == 100
    assert publisher.backlog() == 100
    settle_all = four.settings().source(prefetch=100)
    settle_all.open()
    settle(settle_all, collect(settle_all, 100))
    settle_all.close()
    publisher.publish([(b"x", {})])
    depth = publisher.depth()
    assert depth.waiting == 1
    assert [one.name for one in depth.parts] == [f"{four.name}[{place}]" for place in range(4)]
    assert [one.next for one in depth.parts] == four.committed()
    assert sum(one.end or 0 for one in depth.parts) == 101
    publisher.close()


def test_tombstones_are_passed_over_stored_or_dead_letters(
    topic: Topic, kafka_opened: Opened
) -> None:
    topic.produce(
        (None, b"a", [], 0), (b"1", None, [], 0), (None, b"b", [], 0), (b"2", None, [], 0)
    )
    topic.produce((None, b"c", [], 0))
    source = kafka_opened(topic.settings(group="skips"))
    skipped = collect(source, 2)
    assert bodies_of(skipped) == [b"1", b"2"]
    stored = collect(kafka_opened(topic.settings(group="stores", tombstones="store")), 5)
    assert [(one.body, one.damage) for one in stored] == [
        (b"", ""),
        (b"1", ""),
        (b"", ""),
        (b"2", ""),
        (b"", ""),
    ]
    dead = collect(kafka_opened(topic.settings(group="dead", tombstones="dead_letter")), 5)
    assert ["tombstone" in one.damage for one in dead] == [True, False, True, False, True]


def test_several_topics_and_a_pattern_are_read_together(
    topic: Topic, four: Topic, kafka_opened: Opened
) -> None:
    topic.fill(10)
    four.fill(10)
    both = topic.settings(topic=[topic.name, f"^{four.name[:-1]}.$"])
    source = kafka_opened(both)
    messages = collect(source, 50)
    assert {message.attributes.topic() for message in messages} == {topic.name, four.name}
    settle(source, messages)
    publisher = both.publisher()
    assert publisher.backlog() == 0
    publisher.close()


def test_a_missing_topic_is_refused_and_declare_creates_it(
    noida_server: KafkaServer, kafka_opened: Opened
) -> None:
    settings = kafka_settings(noida_server.bootstrap, "not-there", partitions=3)
    for tried in (
        lambda: kafka_opened(settings),
        lambda: settings.publisher().publish([(b"x", {})]),
    ):
        with pytest.raises(SourceRefused, match=r"no topic not-there.*declare: true"):
            tried()
    assert settings.publisher().backlog() == 0
    assert next(settings.examine()).verdict == "wrong"
    declaring = settings.model_copy(update={"declare": True})
    publisher = declaring.publisher()
    bodies = publish(publisher, 30)
    assert publisher.backlog() == 30
    publisher.close()
    assert sorted(bodies_of(collect(kafka_opened(declaring), 30))) == sorted(bodies)


def test_a_message_that_the_topic_does_not_take_is_named_and_the_others_are_there(
    noida_server: KafkaServer,
) -> None:
    name = new_topic(noida_server.bootstrap, max_message_bytes="100000")
    publisher = kafka_settings(noida_server.bootstrap, name).publisher()
    messages = [(b"small", {})] * 2 + [(b"x" * 3_000_000, {}), (b"small", {})]
    with pytest.raises(MessageRefused, match=r"3,000,000 bytes.*max\.message\.bytes") as refused:
        publisher.publish(messages)
    assert refused.value.position == 2
    assert refused.value.confirmed == 2
    assert publisher.publish(messages[3:]) == 1
    publisher.close()


def test_nobody_at_the_address_is_said_within_seconds_and_without_secrets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = kafka_settings(
        f"{LOOPBACK}:{free_port()}",
        "any",
        sasl_mechanism="SCRAM-SHA-512",
        user="drain",
        password="not-to-be-seen",
        timeout_seconds=3,
    )
    begun = time.monotonic()
    for tried in (
        settings.source(prefetch=1).open,
        settings.publisher().backlog,
        lambda: settings.publisher().publish([(b"x", {})]),
        lambda: list(settings.examine()),
    ):
        with pytest.raises(SourceUnavailable, match=r"bootstrap_servers|brokers answer") as error:
            tried()
        assert "not-to-be-seen" not in str(error.value)
    assert time.monotonic() - begun < 30
    assert "not-to-be-seen" not in caplog.text + repr(settings) + str(settings.model_dump())


def test_tls_where_there_is_none_is_refused(topic: Topic) -> None:
    with pytest.raises((SourceRefused, SourceUnavailable), match="tls"):
        topic.settings(tls=True, timeout_seconds=3).source(prefetch=1).open()


def test_tls_trusts_the_authority_that_is_named_and_no_other(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    server = tansu(tmp_path / "tansu")
    with TlsProxy(server.port, certificate) as proxy:
        server.advertised = proxy.port
        with running(server, ready=lambda: answers(server.port)):
            address = f"{LOOPBACK}:{proxy.port}"
            settings = kafka_settings(
                address, "any", tls=True, ca_file=certificate, declare=True, timeout_seconds=5
            )
            publisher = settings.publisher()
            publisher.publish([(b"secret", {})])
            publisher.close()
            source = settings.source(prefetch=10)
            source.open()
            assert bodies_of(collect(source, 1)) == [b"secret"]
            source.close()
            stranger = settings.model_copy(update={"ca_file": None})
            with pytest.raises(SourceRefused, match=r"certificate verify failed.*ca_file"):
                stranger.source(prefetch=10).open()
            plain = settings.model_copy(update={"tls": False, "ca_file": None})
            with pytest.raises(SourceUnavailable, match="tls"):
                plain.source(prefetch=10).open()
            missing = settings.model_copy(update={"ca_file": tmp_path / "missing.pem"})
            with pytest.raises(SourceRefused, match="ca_file"):
                missing.source(prefetch=10).open()


def test_doctor_says_what_waits_and_what_is_not_safe(four: Topic, kafka_opened: Opened) -> None:
    four.fill(5)
    found = {one.check: one for one in four.settings().examine()}
    assert found["queue"].verdict == "good"
    assert "20 messages wait in 4 partitions" in found["queue"].found
    assert found["replicas"].verdict == "warning"
    collect(kafka_opened(four.settings()), 1)
    assert "other members" not in {one.check for one in four.settings().examine()}
    foreign = Consumer(
        {
            "bootstrap.servers": four.server,
            "group.id": four.settings().group,
            "client.id": "of-somebody-else",
            "partition.assignment.strategy": "cooperative-sticky",
            "log_level": 0,
        }
    )
    foreign.subscribe([four.name])

    def is_seen() -> bool:
        foreign.poll(0.1)
        checks = {one.check: one for one in four.settings().examine()}
        return "other members" in checks and "of-somebody-else" in checks["other members"].found

    ends(is_seen, lambda: "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"topic": []}, "at least 1"),
        ({"topic": ["a", "a"]}, "twice"),
        ({"topic": "a b"}, "named with 1 to 249"),
        ({"topic": "^("}, "pattern of topics is not valid"),
        ({"topic": r"^a\d"}, r"\[0-9\]"),
        ({"ca_file": "x"}, "tls: true"),
        ({"tls": True, "key_file": "x"}, "cert_file"),
        ({"user": "x"}, "belong together"),
        ({"sasl_mechanism": "PLAIN", "user": "x"}, "belong together"),
        ({"publish_topic": "^x"}, "not a pattern"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kafka_settings("localhost", "any", **changes)


def test_without_the_package_the_extra_is_named() -> None:
    program = """
import sys
sys.modules["confluent_kafka"] = None
from fuploader_dagster import Kafka
kafka = Kafka(bootstrap_servers="localhost", topic="any", group="any")
for tried in (kafka.source(prefetch=1).open, kafka.publisher().backlog):
    try:
        tried()
    except Exception as error:
        print(type(error).__name__, error)
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, text=True
    )
    assert said.stderr == ""
    for line in said.stdout.splitlines():
        assert line.startswith(ConfigError.__name__)
        assert "pip install 'fuploader-dagster[kafka]'" in line
    assert len(said.stdout.splitlines()) == 2
