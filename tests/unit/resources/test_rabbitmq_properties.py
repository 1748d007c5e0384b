"""Properties of any bytes are read without an error, and what can be decoded of them is."""

from __future__ import annotations

import json
import random
import struct
from datetime import datetime, timezone
from decimal import Decimal

import msgspec
import pika.spec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuploader_dagster.contracts.source import Message, MessageSource
from fuploader_dagster.disk.header_text import folded
from fuploader_dagster.resources.sources.rabbitmq.properties import described, message_id
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ, RabbitMQSource
from tests.properties_for_tests import (
    CORRELATION_ID,
    EVERY_TYPE,
    HEADERS,
    MESSAGE_ID,
    NESTED_LEVELS,
    REFUSED_BY_RABBITMQ,
    long,
    nested,
    short,
    table,
    with_headers,
    with_message_id,
)

ALL_TYPES = EVERY_TYPE | REFUSED_BY_RABBITMQ


def encoded(**properties: object) -> bytes:
    """As pika sends them."""
    return b"".join(pika.spec.BasicProperties(**properties).encode())


def as_json(properties: dict[str, object]) -> object:
    """What both readers of JSON make of it; they agree."""
    written = msgspec.json.encode(properties)
    assert json.loads(written) == msgspec.json.decode(written) == properties
    assert json.loads(json.dumps(properties, allow_nan=False)) == properties
    return properties


# Every type


@pytest.mark.parametrize("name", ALL_TYPES)
def test_a_header_of_every_type_is_described(name: str) -> None:
    value, expected = ALL_TYPES[name]
    headers = with_headers({b"before": b"t\x01", b"odd": value, b"after": b"V"})
    assert as_json(described(headers)) == {
        "headers": {"before": True, "odd": expected, "after": None}
    }


@pytest.mark.parametrize("name", ALL_TYPES)
def test_every_type_is_described_inside_of_lists_and_tables(name: str) -> None:
    value, expected = ALL_TYPES[name]
    headers = with_headers({b"t": b"F" + table({b"l": b"A" + long(value + value)})})
    assert as_json(described(headers)) == {"headers": {"t": {"l": [expected, expected]}}}


def test_all_properties_are_described_as_pika_sends_them() -> None:
    sent = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "headers": {"a": 1, "when": datetime(2024, 5, 6, tzinfo=timezone.utc), "d": Decimal("1.5")},
        "delivery_mode": 2,
        "priority": 9,
        "correlation_id": "c" * 255,
        "reply_to": "r",
        "expiration": "60000",
        "message_id": "id",
        "timestamp": 1_732_600_000,
        "type": "t",
        "user_id": "guest",
        "app_id": "a",
        "cluster_id": "c",
    }
    rendered = {"a": 1, "when": "2024-05-06T00:00:00+00:00", "d": "1.5"}
    assert as_json(described(encoded(**sent))) == {**sent, "headers": rendered}
    assert described(encoded()) == {}


# What cannot be decoded


@pytest.mark.parametrize("kind", [b"F", b"A"])
def test_what_is_nested_thousands_deep_is_kept_undecoded_where_it_gets_too_deep(
    kind: bytes,
) -> None:
    headers = with_headers({b"deep": nested(kind, NESTED_LEVELS), b"after": b"t\x01"})
    found = described(headers)
    assert found["headers"]["after"] is True
    written = json.dumps(as_json(found))
    assert '"undecoded": {"base64"' in written
    assert len(written) > NESTED_LEVELS


def test_an_unknown_type_keeps_what_came_before_and_the_rest_as_bytes() -> None:
    headers = struct.pack(">H", HEADERS | MESSAGE_ID) + table({b"a": b"t\x01", b"z": b"?odd"})
    found = as_json(described(headers + short(b"id")))
    assert found == {
        "headers": {"a": True, "undecoded": {"base64": "AXo/b2Rk"}},
        "message_id": "id",
    }
    listed = with_headers({b"l": b"A" + long(b"t\x01?x"), b"after": b"V"})
    assert as_json(described(listed)) == {
        "headers": {"l": [True, {"undecoded": {"base64": "P3g="}}], "after": None}
    }


def test_properties_that_end_too_early_keep_what_came_before() -> None:
    whole = encoded(content_type="text", headers={"a": 1}, message_id="id", timestamp=5, app_id="x")
    found = [as_json(described(whole[:length])) for length in range(len(whole))]
    assert all("undecoded" in one for one in found)
    assert all(one["content_type"] == "text" for one in found[8:])
    assert found[-1]["message_id"] == "id"


def test_headers_of_one_name_or_of_our_own_are_all_kept() -> None:
    raw = long(b"".join(short(b"a") + bytes([*b"B", n]) for n in range(3)))
    assert described(struct.pack(">H", HEADERS) + raw) == {"headers": {"a": 0, "a_": 1, "a__": 2}}
    ours = with_headers({b"undecoded": b"V", b"z": b"?"})
    assert described(ours) == {"headers": {"undecoded": None, "undecoded_": {"base64": "AXo/"}}}


def test_keys_that_are_no_text_are_shown_escaped() -> None:
    assert described(with_headers({b"\xff\x00": b"V"})) == {"headers": {"\\xff\0": None}}


def test_a_second_word_of_flags_is_passed_over() -> None:
    assert described(struct.pack(">HH", MESSAGE_ID | 1, 0) + short(b"x")) == {"message_id": "x"}
    assert message_id(struct.pack(">HH", MESSAGE_ID | 1, 0) + short(b"x")) == "x"


# Message ids


def test_the_message_id_is_found_after_all_other_properties() -> None:
    assert message_id(encoded(message_id="id")) == "id"
    assert message_id(encoded(message_id="")) == ""
    assert message_id(encoded(content_type="x")) is None
    assert message_id(encoded()) is None
    others = {
        "content_type": "a",
        "content_encoding": "b",
        "headers": {"c": {"d": [1]}},
        "delivery_mode": 2,
        "priority": 1,
        "correlation_id": "e",
        "reply_to": "f",
        "expiration": "1",
    }
    for left_out in [None, *others]:
        properties = {name: value for name, value in others.items() if name != left_out}
        assert message_id(encoded(**properties, message_id="üd", timestamp=1)) == "üd"


def test_an_id_of_raw_bytes_is_named_in_hexadecimal_and_kept_as_it_came() -> None:
    raw = bytes.fromhex("f47ac10b58cc4372a5670e02b2c3d479")
    assert message_id(with_message_id(raw)) == raw.hex()
    assert described(with_message_id(raw)) == {"message_id": {"base64": "9HrBC1jMQ3KlZw4CssPUeQ=="}}


def test_headers_that_cannot_be_decoded_do_not_hide_the_message_id() -> None:
    odd = struct.pack(">H", HEADERS | MESSAGE_ID) + table({b"z": b"?"}) + short(b"id")
    assert message_id(odd) == described(odd)["message_id"] == "id"


# Any bytes


@given(st.binary(max_size=300))
def test_no_bytes_raise(raw: bytes) -> None:
    as_json(described(raw))
    assert isinstance(message_id(raw), (str, type(None)))


def test_no_mutation_of_good_properties_raises() -> None:
    random_ = random.Random(5)
    headers = {key.encode(): value for key, (value, _) in ALL_TYPES.items()}
    flags = struct.pack(">H", HEADERS | MESSAGE_ID | CORRELATION_ID)
    whole = flags + table(headers) + short(b"correlation") + short(b"id")
    for _ in range(5_000):
        changed = bytearray(whole)
        for _ in range(random_.randrange(1, 4)):
            changed[random_.randrange(len(changed))] = random_.randrange(256)
        as_json(described(bytes(changed)))
        message_id(bytes(changed))


# Chosen ones


class AnySource(RabbitMQSource):
    """With what a source of the user's own does: it describes everything, and chooses from that."""

    headers_of = MessageSource.headers_of


NAMES = ["a", "odd", "content-type", "message_id", "priority", "headers", "timestamp", "x"]
WANTED = {folded(name): name for name in NAMES}


def both(properties: bytes, wanted: dict[str, str] = WANTED) -> dict[str, object]:
    """What both ways choose; they agree."""
    message = Message(b"", 1, False, None, properties)
    source = RabbitMQ(queue="never-opened").source(prefetch=2)
    found = source.headers_of(message, wanted)
    assert found == AnySource.headers_of(source, message, wanted)
    return found


@pytest.mark.parametrize("name", ALL_TYPES)
@pytest.mark.parametrize("wanted", [True, False])
def test_a_header_of_every_type_is_chosen_or_skipped(name: str, wanted: bool) -> None:
    value, expected = ALL_TYPES[name]
    properties = with_headers({b"before": b"t\x01", b"Odd": value, b"x": b"V"})
    assert both(properties) == {
        "odd": expected,
        "x": None,
        "headers": described(properties)["headers"],
    }
    without = {"x": "x"}
    assert both(properties, {"odd": "odd", "x": "x"} if wanted else without) == (
        {"odd": expected, "x": None} if wanted else {"x": None}
    )


def test_properties_are_chosen_by_their_names_and_after_headers() -> None:
    properties = encoded(
        content_type="image/png",
        headers={"Message-Id": "in the headers", "a": 1, "A": 2},
        priority=3,
        message_id="m",
        timestamp=7,
        app_id="not wanted",
    )
    assert both(properties, {name: kept for name, kept in WANTED.items() if name != "headers"}) == {
        "content-type": "image/png",
        "message_id": "in the headers",
        "a": 1,
        "priority": 3,
        "timestamp": 7,
    }


PAIRS = st.dictionaries(
    st.sampled_from(
        [b"a", b"A", b"odd", b"Content-Type", b"other", b"\xff", b"priority", b"h" * 255]
    ),
    st.sampled_from([value for value, _ in ALL_TYPES.values()]),
    max_size=5,
)


@given(PAIRS, st.data())
def test_both_ways_choose_the_same_from_properties_that_are_cut_or_changed(
    pairs: dict[bytes, bytes], data: st.DataObject
) -> None:
    flags = data.draw(st.integers(0, 2**15 - 1).map(lambda number: number << 1))
    rest = table(pairs) if data.draw(st.booleans()) else b""
    properties = struct.pack(">H", flags) + short(b"text/plain") * data.draw(st.integers(0, 2))
    properties += rest + data.draw(st.binary(max_size=40))
    changed = bytearray(properties[: data.draw(st.integers(0, len(properties)))])
    if changed:
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    both(properties)
    both(bytes(changed))
    both(with_headers(pairs))
