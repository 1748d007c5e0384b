"""Deliveries are recognised however the bytes are cut, and nothing else is touched."""

from __future__ import annotations

import itertools
from typing import Any

import pika.frame
import pika.spec
from hypothesis import given, settings
from hypothesis import strategies as st

from fuploader_dagster.resources.rabbitmq_deliveries import (
    LARGE_BODY_BYTES,
    decode_properties,
    take_deliveries,
)
from fuploader_dagster.source import Message

CHANNEL = 1
MAX_FRAME_PAYLOAD = 1000


class Connection:
    """The few names of a pika connection that are used; what reaches pika is kept."""

    def __init__(self) -> None:
        self._impl = self
        self._transport = self
        self._frame_buffer = b""
        self.bytes_received = 0
        self.to_pika = b""
        self.dispatched: list[int] = []

    def _on_data_available(self, data: bytes) -> None:
        self.to_pika += data
        self.bytes_received += len(data)

    def _request_channel_dispatch(self, channel: int) -> None:
        self.dispatched.append(channel)


def delivery(tag: int, body: bytes, *, channel: int = CHANNEL, **properties: Any) -> bytes:
    """A delivery as a broker sends it, marshalled by pika."""
    method = pika.spec.Basic.Deliver("consumer", tag, bool(tag % 2), "exchange", "key")
    header = pika.spec.BasicProperties(**properties)
    frames = [
        pika.frame.Method(channel, method).marshal(),
        pika.frame.Header(channel, len(body), header).marshal(),
    ]
    for start in range(0, len(body), MAX_FRAME_PAYLOAD):
        piece = body[start : start + MAX_FRAME_PAYLOAD]
        frames.append(pika.frame.Body(channel, piece).marshal())
    return b"".join(frames)


FOREIGN = [
    pika.frame.Heartbeat().marshal(),
    pika.frame.Method(0, pika.spec.Connection.Blocked("low on memory")).marshal(),
    pika.frame.Method(CHANNEL, pika.spec.Basic.ConsumeOk("consumer")).marshal(),
    pika.frame.Method(CHANNEL, pika.spec.Channel.CloseOk()).marshal(),
    delivery(9, b"of another channel", channel=7),
    delivery(10, bytes(LARGE_BODY_BYTES + 1)),
]

PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        "content_type": st.text(max_size=20),
        "message_id": st.text(min_size=1, max_size=20),
        "delivery_mode": st.sampled_from([1, 2]),
        "headers": st.dictionaries(st.text(min_size=1, max_size=5), st.integers(0, 9), max_size=3),
    },
)
PIECES = st.lists(
    st.one_of(
        st.tuples(st.binary(max_size=3000), PROPERTIES),
        st.sampled_from(FOREIGN[:-1]),
    ),
    max_size=12,
)


def feed(stream: bytes, cuts: list[int]) -> tuple[Connection, list[Message]]:
    """Send a stream in pieces through `take_deliveries`."""
    connection, messages = Connection(), list[Message]()
    assert take_deliveries(connection, CHANNEL, messages.append, 100)  # type: ignore[arg-type]
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    for start, stop in itertools.pairwise(edges):
        connection._on_data_available(stream[start:stop])
    return connection, messages


@settings(max_examples=200, deadline=None)
@given(pieces=PIECES, cuts=st.lists(st.integers(0, 10**6), max_size=30))
def test_every_delivery_is_taken_whole_and_every_other_byte_goes_to_pika(
    pieces: list[Any], cuts: list[int]
) -> None:
    stream, foreign, expected = b"", b"", []
    for tag, piece in enumerate(pieces, start=1):
        if isinstance(piece, bytes):
            stream += piece
            foreign += piece
        else:
            body, properties = piece
            stream += delivery(tag, body, **properties)
            expected.append((body, 100 + tag, bool(tag % 2), properties))
    connection, messages = feed(stream, cuts)
    assert connection.to_pika == foreign
    assert connection._frame_buffer == b""
    assert connection.bytes_received == len(stream)
    assert bool(connection.dispatched) == bool(expected)
    assert len(messages) == len(expected)
    for message, (body, receipt, redelivered, properties) in zip(messages, expected, strict=True):
        assert message[:4] == (body, receipt, redelivered, properties.get("message_id"))
        decoded = decode_properties(message.attributes)
        assert {n: v for n, v in vars(decoded).items() if v is not None} == properties


def test_a_large_message_goes_to_pika_and_those_around_it_do_not() -> None:
    large = FOREIGN[-1]
    stream = delivery(1, b"before") + large + delivery(2, b"after")
    connection, messages = feed(stream, list(range(0, len(stream), 50_000)))
    assert connection.to_pika == large
    assert [message.body for message in messages] == [b"before", b"after"]


def test_a_delivery_that_is_not_whole_waits_without_reaching_anybody() -> None:
    stream = delivery(1, b"content" * 300)
    for length in range(len(stream)):
        connection, messages = feed(stream[:length], [])
        assert (messages, connection.to_pika) == ([], b"")
        assert connection._frame_buffer == stream[:length]


def test_a_broken_stream_is_left_to_pika() -> None:
    stream = bytearray(delivery(1, b"content"))
    stream[-1] = 0
    connection, messages = feed(bytes(stream), [])
    assert messages == []
    assert connection.to_pika.startswith(bytes(stream[:20]))


def test_a_pika_without_the_needed_names_is_not_touched() -> None:
    assert not take_deliveries(object(), CHANNEL, print, 0)  # type: ignore[arg-type]
