"""What is sent again goes to its queue alone, whole, and what a broker refuses stops no others."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pika
import pytest

from fuploader_dagster.cli.publish import publish_lines
from fuploader_dagster.dead_letters.letters import (
    DeadLetter,
    DeadLetterBox,
    numbered_dead_letters,
    requeue,
    requeued_ids,
)
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.errors import MessageRefused
from fuploader_dagster.resources.sources.rabbitmq import pika_internals
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQSource
from tests.contract.sources.rabbitmq_sources import collect, on, publish_raw
from tests.properties_for_tests import EVERY_TYPE, NESTED_LEVELS, nested, with_headers
from tests.servers.queue_fixtures import channel, new_queue, waiting
from tests.servers.rabbitmq import RabbitMQServer
from tests.settings import intake

LIMITS = [5_000_000, 50_000]
"""Largest messages: one that is sent alone, and one that is sent among others."""


@contextmanager
def largest_message(server: RabbitMQServer, size_bytes: int) -> Iterator[None]:
    server.ctl("eval", f"application:set_env(rabbit, max_message_size, {size_bytes}).")
    try:
        yield
    finally:
        server.ctl("eval", "application:set_env(rabbit, max_message_size, 134217728).")


def letter(body: bytes, **attributes: Any) -> DeadLetter:
    return DeadLetter(
        time="2026-11-26T12:00:00.000+00:00",
        reason="it is no envelope",
        redelivered=False,
        message_id=attributes.get("message_id"),
        attributes=attributes,
        body=body,
    )


def kept(folder: Path, letters: list[DeadLetter]) -> Layout:
    layout = Layout(folder)
    DeadLetterBox(layout, 0).keep(letters)
    return layout


# Too large


@pytest.mark.parametrize("limit", LIMITS)
def test_letters_around_one_that_is_too_large_are_sent_once_and_it_stays(
    rabbitmq: RabbitMQServer,
    queue: str,
    opened: Callable[..., RabbitMQSource],
    tmp_path: Path,
    limit: int,
) -> None:
    bodies = [b"%d" % number for number in range(10)]
    bodies[4] = b"x" * (limit + 1)
    layout = kept(tmp_path, [letter(body) for body in bodies])
    numbered = list(numbered_dead_letters(layout))
    publisher = on(rabbitmq, queue).publisher()
    with largest_message(rabbitmq, limit):
        for attempt in range(3):
            left = [pair for pair in numbered if pair[0] not in requeued_ids(layout)]
            done = requeue(layout, left, publisher)
            assert done.sent == (0 if attempt else 9)
            ((refused, error),) = done.refused
            assert refused == numbered[4][0]
            assert f"{limit + 1:,} bytes" in str(error)
            assert f"accepts at most {limit:,}" in str(error)
            assert "max_message_size" in str(error)
    publisher.close()
    source = opened(queue)
    # one that is large is sent alone; else the broker does not say which of those before it it has
    in_doubt = 0 if limit > 2**20 else 4
    received = [message.body for message in collect(source, 9)]
    while batch := source.receive(100, 0.5):
        received += [message.body for message in batch]
    assert set(received) == set(bodies) - {bodies[4]}
    assert len(received) <= 9 + in_doubt


@pytest.mark.parametrize("limit", LIMITS)
def test_the_error_says_which_message_it_was_and_which_are_confirmed_for_sure(
    rabbitmq: RabbitMQServer, queue: str, limit: int
) -> None:
    publisher = on(rabbitmq, queue).publisher()
    with largest_message(rabbitmq, limit):
        sizes = [*[10] * 300, limit + 1, *[10] * 300]
        with pytest.raises(MessageRefused) as caught:
            publisher.publish((b"x" * size, {}) for size in sizes)
    assert caught.value.position == 300
    assert caught.value.confirmed <= 300
    assert limit < 2**20 or caught.value.confirmed == 300
    assert publisher.backlog() >= caught.value.confirmed
    assert publisher.publish([(b"usable", {})]) == 1
    publisher.close()


def test_headers_that_fit_into_no_frame_are_refused_and_the_others_are_sent(
    rabbitmq: RabbitMQServer, queue: str, tmp_path: Path
) -> None:
    large = {f"header-{number}": "x" * 1_000 for number in range(200)}
    layout = kept(tmp_path, [letter(b"a"), letter(b"b", headers=large), letter(b"c")])
    publisher = on(rabbitmq, queue).publisher()
    done = requeue(layout, list(numbered_dead_letters(layout)), publisher)
    assert done.sent == publisher.backlog() == 2
    assert "headers and properties" in str(done.refused[0][1])
    publisher.close()


def test_a_batch_goes_out_in_one_piece_and_is_whole_and_in_order(
    rabbitmq: RabbitMQServer,
    queue: str,
    opened: Callable[..., RabbitMQSource],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In many, the broker syncs the first messages of a batch before it has seen the others."""
    pieces: list[bytes] = []
    send = pika_internals.send

    def counted(connection: pika.BlockingConnection, sent: Sequence[bytes]) -> None:
        pieces.extend(sent)
        send(connection, sent)

    monkeypatch.setattr(pika_internals, "send", counted)
    batch = [b"%d" % number * (number * 10) for number in range(64)]
    publisher = on(rabbitmq, queue).publisher()
    assert publisher.publish((body, {"n": len(body)}) for body in batch) == len(batch)
    assert len(pieces) == 1
    large = b"x" * 5_000_000  # alone, in frames
    assert publisher.publish([(b"before", {}), (large, {}), (b"after", {})]) == 3
    publisher.close()
    received = [one.body for one in collect(opened(queue), 67)]
    assert received == [*batch, b"before", large, b"after"]


def test_a_line_that_is_too_large_is_named_and_the_others_are_published(
    rabbitmq: RabbitMQServer, queue: str, tmp_path: Path
) -> None:
    settings = intake(tmp_path, message_format="raw")
    publisher = on(rabbitmq, queue).publisher()
    with largest_message(rabbitmq, LIMITS[0]):
        lines = [b"a\n", b"x" * (LIMITS[0] + 1) + b"\n", b"\n", b"b\n"]
        report = publish_lines(lines, settings, publisher)
    assert (report.confirmed, [number for number, _ in report.refused]) == (2, [2])
    assert publisher.backlog() == 2
    publisher.close()


# To this queue alone, and whole


def test_nothing_that_is_sent_back_is_copied_vanishes_or_is_refused(
    rabbitmq: RabbitMQServer, queue: str, opened: Callable[..., RabbitMQSource], tmp_path: Path
) -> None:
    others = [new_queue(rabbitmq) for _ in range(2)]
    sent = pika.BasicProperties(
        content_type="application/json",
        content_encoding="utf-8",
        headers={"CC": [others[0]], "BCC": [others[1]], "x-tag": "v", "deep": {"CC": ["kept"]}},
        delivery_mode=2,
        priority=5,
        correlation_id="c-1",
        reply_to="answers",
        expiration="60000",
        message_id="id-1",
        timestamp=1_732_600_000,
        type="t",
        user_id=rabbitmq.user,
        app_id="a",
    )
    with channel(rabbitmq) as open_channel:
        open_channel.basic_publish("", queue, b"no envelope", sent)
    source = opened(queue)
    (message,) = collect(source, 1)
    attributes = source.describe(message)
    before = [waiting(rabbitmq, other) for other in others]
    assert before == [1, 1]
    attributes["user_id"] = "somebody-else"
    attributes["expiration"] = "1"
    requeued = [letter(b"again", **attributes), letter(b"direct", reply_to="amq.rabbitmq.reply-to")]
    publisher = on(rabbitmq, queue).publisher()
    layout = kept(tmp_path, requeued)
    assert requeue(layout, list(numbered_dead_letters(layout)), publisher).refused == []
    publisher.close()
    again, direct = collect(source, 2)
    assert [waiting(rabbitmq, other) for other in others] == before
    described = source.describe(again)
    assert described.pop("headers") == {
        "x-tag": "v",
        "deep": {"CC": ["kept"]},
        "was-CC": [others[0]],
        "was-expiration": "1",
        "was-user_id": "somebody-else",
    }  # the broker itself takes BCC off
    kept_properties = {
        name: value
        for name, value in attributes.items()
        if name not in ("headers", "expiration", "user_id")
    }
    assert described == kept_properties
    assert source.describe(direct)["headers"] == {"was-reply_to": "amq.rabbitmq.reply-to"}


def test_what_the_broker_counted_is_not_counted_on(
    rabbitmq: RabbitMQServer, queue: str, opened: Callable[..., RabbitMQSource]
) -> None:
    counted = {"x-death": [{"count": 1, "queue": queue}], "x-delivery-count": 7, "BCC": ["q"]}
    publisher = on(rabbitmq, queue).publisher()
    publisher.publish_again([(b"x", {"headers": {**counted, "x-first-death-queue": queue}})])
    publisher.close()
    source = opened(queue)
    (message,) = collect(source, 1)
    described = source.describe(message)["headers"]
    assert set(described) == {f"was-{name}" for name in [*counted, "x-first-death-queue"]}


@pytest.mark.parametrize("name", EVERY_TYPE)
def test_a_header_of_every_type_is_sent_back_in_the_closest_form(
    rabbitmq: RabbitMQServer, opened: Callable[..., RabbitMQSource], queue: str, name: str
) -> None:
    value, expected = EVERY_TYPE[name]
    publish_raw(rabbitmq, queue, [(b"x", with_headers({b"odd": value}))])
    source = opened(queue)
    (message,) = collect(source, 1)
    attributes = json.loads(json.dumps(source.describe(message)))
    publisher = on(rabbitmq, queue).publisher()
    assert publisher.publish_again([(b"y", attributes)]) == 1
    publisher.close()
    (again,) = collect(source, 1)
    assert source.describe(again)["headers"] == {"odd": expected}


@pytest.mark.parametrize(
    "attributes",
    [
        {"headers": {"k" * 300: 1, "ü" * 200: 2}},
        {"headers": {"surrogate \ud800": "\udfff"}},
        {"headers": {"large": 2**70, "small": -(2**70), "float": 1e300}},
        {"headers": {"": None, "base64": {"base64": "no base64!"}}},
        {"headers": "none"},
        {"message_id": "m" * 300, "priority": 700, "timestamp": -5, "type": 3, "new": {"a": [1]}},
        {"message_id": {"base64": "9HrBC1jMQ3KlZw4CssPUeQ=="}, "timestamp": str(2**64 - 1)},
        {"undecoded": {"base64": "gIA="}, "correlation_id": {"base64": "//8="}},
    ],
)
def test_letters_with_odd_attributes_are_sent_back(
    rabbitmq: RabbitMQServer,
    opened: Callable[..., RabbitMQSource],
    queue: str,
    attributes: dict[str, Any],
) -> None:
    publisher = on(rabbitmq, queue).publisher()
    assert publisher.publish_again([(b"x", attributes), (b"y", {})]) == 2
    publisher.close()
    source = opened(queue)
    odd, plain = collect(source, 2)
    assert source.describe(plain) == {"delivery_mode": 2}
    described = source.describe(odd)
    json.dumps(described)
    for name, value in attributes.items():
        if name != "headers":
            found = described[name] if name in described else described["headers"][f"was-{name}"]
            assert found == value


def test_what_is_nested_too_deep_to_be_described_is_sent_back_as_bytes(
    rabbitmq: RabbitMQServer, opened: Callable[..., RabbitMQSource], queue: str
) -> None:
    publish_raw(rabbitmq, queue, [(b"x", with_headers({b"d": nested(b"F", NESTED_LEVELS)}))])
    source = opened(queue)
    (message,) = collect(source, 1)
    attributes = source.describe(message)
    publisher = on(rabbitmq, queue).publisher()
    assert publisher.publish_again([(b"y", attributes)]) == 1
    publisher.close()
    (again,) = collect(source, 1)
    sent, found = attributes["headers"]["d"], source.describe(again)["headers"]["d"]
    while "k" in sent:
        sent, found = sent["k"], found["k"]
    raw = base64.b64decode(sent["undecoded"]["base64"])
    assert len(raw) > NESTED_LEVELS
    again_raw = found["undecoded"]
    if isinstance(again_raw, dict):
        again_raw = base64.b64decode(again_raw["base64"]).decode(errors="replace")
    assert raw.decode(errors="replace") in again_raw
