"""Deliveries are read as pika would read them, however the bytes are cut or broken, and in order.

The other side of each comparison is pika's own code: its decoding of frames and its assembling of
messages. Only its decoding of properties is left out, because what Python cannot represent is to
be kept here, not to raise.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pika
import pika.frame
import pika.spec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika.channel import ContentFrameAssembler
from pika.exceptions import AMQPError, InvalidFrameError

from fuploader_dagster.contracts.source import Message
from fuploader_dagster.resources.sources.rabbitmq.deliveries import take_deliveries
from fuploader_dagster.resources.sources.rabbitmq.pika_internals import warn_if_untested
from fuploader_dagster.resources.sources.rabbitmq.properties import described

CHANNEL = 1
FRAME_MAX = 4096
FRAME_OVERHEAD = 8
PAYLOAD = FRAME_MAX - FRAME_OVERHEAD
MUTATED_STREAMS = 3_000


class RawProperties:
    """Properties that stay as they were encoded."""

    def decode(self, encoded: bytes) -> None:
        struct.unpack_from(">H", encoded)
        self.encoded = encoded


@contextmanager
def undecoded_properties() -> Iterator[None]:
    """pika without its decoding of properties."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pika.spec.props, pika.spec.BasicProperties.INDEX, RawProperties)
        yield


class Pika:
    """What pika does with a connection's bytes, for channel 1, by pika's own code."""

    def __init__(self) -> None:
        self._impl = self._transport = self.params = self
        self.frame_max = FRAME_MAX
        self._frame_buffer = b""
        self.bytes_received = 0
        self._assembler = ContentFrameAssembler()
        self.seen: list[Any] = []
        """Messages and the names of other methods, in the order of their end."""
        self.dispatched: list[int] = []

    def _on_data_available(self, data: bytes) -> None:
        self._frame_buffer += data
        while self._frame_buffer:
            used, frame = pika.frame.decode_frame(self._frame_buffer)
            if frame is None:
                return
            self._frame_buffer = self._frame_buffer[used:]
            self.bytes_received += used
            self._process(frame)

    def _process(self, frame: Any) -> None:
        method = getattr(frame, "method", None)
        if isinstance(frame, pika.frame.Heartbeat) or frame.frame_type < 0:
            self.seen.append("heartbeat")
        elif frame.channel_number != CHANNEL:
            self.seen.append(f"of channel {frame.channel_number}")
        elif method is not None and not pika.spec.has_content(method.INDEX):
            self.seen.append(method.NAME)
        elif whole := self._assembler.process(frame):
            delivery, header, body = whole
            tag = getattr(delivery.method, "delivery_tag", 0)
            redelivered = getattr(delivery.method, "redelivered", False)
            self.seen.append((tag, redelivered, header.properties.encoded, body))

    def _request_channel_dispatch(self, channel: int) -> None:
        self.dispatched.append(channel)


def plainly(pieces: Sequence[bytes]) -> tuple[Pika, Exception | None]:
    """Feed pika alone; what it did, and what it raised."""
    return _fed(Pika(), pieces)


def ours(pieces: Sequence[bytes]) -> tuple[Pika, Exception | None]:
    """Feed pika behind our reader."""
    reader = Pika()

    def append(message: Message) -> None:
        reader.seen.append(
            (message.delivery, message.redelivered, message.attributes, message.body)
        )

    take_deliveries(reader, CHANNEL, append, 0)  # type: ignore[arg-type]
    return _fed(reader, pieces)


def _fed(reader: Pika, pieces: Sequence[bytes]) -> tuple[Pika, Exception | None]:
    with undecoded_properties():
        try:
            for piece in pieces:
                reader._on_data_available(piece)
        except Exception as error:
            return reader, error
    return reader, None


def frames_of_body(body: bytes, channel: int = CHANNEL, payload: int = PAYLOAD) -> list[bytes]:
    return [
        pika.frame.Body(channel, body[start : start + payload]).marshal()
        for start in range(0, len(body), payload)
    ]


def delivery(
    tag: int, body: bytes, *, channel: int = CHANNEL, payload: int = PAYLOAD, **properties: Any
) -> list[bytes]:
    """The frames of a delivery as a broker sends them, marshalled by pika."""
    consumer = "consumer" * (1 + tag % 3)
    method = pika.spec.Basic.Deliver(consumer, tag, bool(tag % 2), "exchange", "key" * (tag % 4))
    header = pika.spec.BasicProperties(**properties)
    return [
        pika.frame.Method(channel, method).marshal(),
        pika.frame.Header(channel, len(body), header).marshal(),
        *frames_of_body(body, channel, payload),
    ]


OTHERS = [
    [pika.frame.Heartbeat().marshal()],
    [pika.frame.Method(0, pika.spec.Connection.Blocked("low on memory")).marshal()],
    [pika.frame.Method(CHANNEL, pika.spec.Basic.ConsumeOk("consumer")).marshal()],
    [pika.frame.Method(CHANNEL, pika.spec.Basic.Cancel("consumer")).marshal()],
    delivery(9, b"of another channel", channel=7),
]
BETWEEN_FRAMES = [OTHERS[0][0], OTHERS[1][0], *OTHERS[4]]
SIZES = [0, 1, 7, 300, PAYLOAD - 1, PAYLOAD, PAYLOAD + 1, 2 * PAYLOAD, 3 * PAYLOAD + 5]


def random_stream(random_: random.Random) -> bytes:
    """Some deliveries of all sizes, with other frames before, between and inside of them."""
    stream: list[bytes] = []
    for tag in range(1, random_.randrange(2, 7)):
        if random_.random() < 0.4:
            stream += random_.choice(OTHERS)
        properties = {
            "message_id": random_.choice([None, f"id-{tag}", "ü" * 100]),
            "headers": random_.choice([None, {"a": 1, "b": "x", "c": [1, {"d": None}]}]),
            "content_type": random_.choice([None, "text/plain"]),
        }
        body = random_.randbytes(random_.choice(SIZES))
        payload = random_.choice([PAYLOAD, PAYLOAD, 100 + len(body) // 3])
        for frame in delivery(tag, body, payload=min(payload, PAYLOAD), **properties):
            stream.append(frame)
            if random_.random() < 0.1:
                stream.append(random_.choice(BETWEEN_FRAMES[:2]))
    return b"".join(stream)


def cut(stream: bytes, random_: random.Random) -> list[bytes]:
    edges = sorted(random_.randrange(len(stream) + 1) for _ in range(random_.randrange(6)))
    return [stream[a:b] for a, b in itertools.pairwise([0, *edges, len(stream)])]


def mutated(stream: bytes, random_: random.Random) -> bytes:
    changed = bytearray(stream)
    for _ in range(random_.randrange(1, 4)):
        at = random_.randrange(len(changed))
        kind = random_.randrange(6)
        if kind == 0:
            changed[at] = random_.randrange(256)
        elif kind == 1:
            del changed[at : at + random_.randrange(1, 20)]
        elif kind == 2:
            changed[at:at] = random_.randbytes(random_.randrange(1, 20))
        elif kind == 3:
            changed[at] ^= 1 << random_.randrange(8)
        elif kind == 4:  # a frame less
            start = changed.find(b"\xce", at) + 1
            del changed[start : changed.find(b"\xce", start) + 1]
        else:
            changed[at : at + 1] = b"\xce"
    return bytes(changed)


# What comes out


@pytest.mark.parametrize("seed", range(10))
def test_a_stream_gives_what_pika_gives_in_the_same_order_wherever_it_is_cut(seed: int) -> None:
    random_ = random.Random(seed)
    for _ in range(30):
        stream = random_stream(random_)
        expected, error = plainly([stream])
        assert error is None
        for _ in range(3):
            got, error = ours(cut(stream, random_))
            assert error is None
            assert got.seen == expected.seen
            assert got._frame_buffer == b""
            assert got.bytes_received == len(stream)
        assert bool(got.dispatched) == any(isinstance(one, tuple) for one in got.seen)


def test_every_single_cut_and_every_byte_alone_give_the_same() -> None:
    stream = b"".join(
        delivery(1, b"x" * (PAYLOAD + 9), message_id="one")
        + OTHERS[0]
        + delivery(2, b"", headers={"a": [1]})
        + OTHERS[3]
        + delivery(3, b"third")
    )
    expected, _ = plainly([stream])
    for at in range(len(stream)):
        got, error = ours([stream[:at], stream[at:]])
        assert (got.seen, error) == (expected.seen, None), at
    got, error = ours([stream[at : at + 1] for at in range(len(stream))])
    assert (got.seen, error) == (expected.seen, None)


def test_broken_streams_give_no_other_messages_than_pika_and_end_in_an_error_if_pika_does() -> None:
    random_ = random.Random(7)
    outcomes: Counter[str] = Counter()
    for _ in range(MUTATED_STREAMS):
        pieces = cut(mutated(random_stream(random_), random_), random_)
        got, error = ours(pieces)
        expected, its_error = plainly(pieces)
        shorter = min(len(got.seen), len(expected.seen))
        assert got.seen[:shorter] == expected.seen[:shorter]
        if its_error is not None:
            assert error is not None
            outcomes["both raise"] += 1
        elif error is not None:
            assert isinstance(error, AMQPError)
            outcomes["ours raises"] += 1
        else:
            assert got.seen == expected.seen
            outcomes["same"] += 1
    assert outcomes["same"] > MUTATED_STREAMS / 10, outcomes
    assert outcomes["ours raises"] < MUTATED_STREAMS / 2, outcomes


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(
        st.fixed_dictionaries(
            {"body": st.binary(max_size=3 * PAYLOAD)},
            optional={
                "content_type": st.text(max_size=20),
                "message_id": st.text(min_size=1, max_size=20),
                "delivery_mode": st.sampled_from([1, 2]),
                "headers": st.dictionaries(
                    st.text(min_size=1, max_size=5), st.integers(0, 9), max_size=3
                ),
            },
        ),
        max_size=8,
    ),
    cuts=st.lists(st.integers(0, 10**6), max_size=30),
)
def test_bodies_ids_and_properties_come_as_they_were_sent(
    pieces: list[dict[str, Any]], cuts: list[int]
) -> None:
    stream = b"".join(b"".join(delivery(tag, **piece)) for tag, piece in enumerate(pieces, 1))
    messages: list[Message] = []
    reader = Pika()
    take_deliveries(reader, CHANNEL, messages.append, 100)  # type: ignore[arg-type]
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    for start, stop in itertools.pairwise(edges):
        reader._on_data_available(stream[start:stop])
    assert len(messages) == len(pieces)
    for tag, (message, piece) in enumerate(zip(messages, pieces, strict=True), 1):
        properties = {name: value for name, value in piece.items() if name != "body"}
        assert message[:4] == (piece["body"], 100 + tag, bool(tag % 2), piece.get("message_id"))
        assert described(message.attributes) == properties
        assert message == Message(*message[:5])


# Order


@pytest.mark.parametrize("large_at", range(4))
def test_nothing_overtakes_a_large_message(large_at: int) -> None:
    large = bytes(3 * 2**20)
    bodies = [b"small %d" % number for number in range(3)]
    bodies.insert(large_at, large)
    stream = b"".join(b"".join(delivery(tag, body)) for tag, body in enumerate(bodies, 1))
    got, error = ours([stream[at : at + 50_000] for at in range(0, len(stream), 50_000)])
    assert error is None
    assert [one[3] for one in got.seen] == bodies


def test_a_hole_between_deliveries_is_an_error_and_nothing_after_it_is_taken() -> None:
    for missing in (b"", b"x" * 2 * PAYLOAD):
        stream = [*delivery(1, b"one"), *delivery(3, missing), *delivery(4, b"four")]
        got, error = ours([b"".join(stream)])
        assert isinstance(error, AMQPError)
        assert "delivery 3 came after delivery 1" in str(error)
        assert [one[0] for one in got.seen] == [1]


def test_a_delivery_that_another_one_cuts_off_is_an_error() -> None:
    stream = [*delivery(1, bytes(2 * PAYLOAD))[:3], *delivery(2, b"next")]
    got, error = ours(stream)
    assert isinstance(error, AMQPError)
    assert "cut off" in str(error)
    assert got.seen == []


def test_a_delivery_that_is_not_whole_is_not_appended() -> None:
    stream = b"".join(delivery(1, b"content" * 300))
    for length in range(len(stream)):
        got, error = ours([stream[:length]])
        assert (got.seen, error) == ([], None)


# What a broker must not send


@pytest.mark.parametrize("kind", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [PAYLOAD + 1, 0xFFFFFFF0])
@pytest.mark.parametrize("channel", [0, CHANNEL])
def test_a_frame_larger_than_agreed_is_an_error_before_it_came(
    kind: int, size: int, channel: int
) -> None:
    _, error = ours([*delivery(1, b"one"), struct.pack(">BHI", kind, channel, size)])
    assert isinstance(error, InvalidFrameError)
    assert f"{size:,} bytes" in str(error)
    assert f"the agreed limit is {PAYLOAD:,}" in str(error)


def test_a_frame_larger_than_agreed_is_an_error_when_it_is_there_whole() -> None:
    stream = delivery(1, bytes(PAYLOAD + 1), payload=PAYLOAD + 1)
    _, error = ours([b"".join(stream)])
    assert isinstance(error, InvalidFrameError)


def test_without_an_agreed_size_large_frames_are_taken() -> None:
    reader = Pika()
    reader.frame_max = 0
    messages: list[Message] = []
    take_deliveries(reader, CHANNEL, messages.append, 0)  # type: ignore[arg-type]
    for frame in delivery(1, bytes(10 * PAYLOAD), payload=10 * PAYLOAD):
        reader._on_data_available(frame)
    assert [len(message.body) for message in messages] == [10 * PAYLOAD]


def test_bytes_that_pika_had_begun_to_read_are_not_lost() -> None:
    stream = b"".join(delivery(1, b"content"))
    reader = Pika()
    messages: list[Message] = []
    reader._on_data_available(stream[:5])
    take_deliveries(reader, CHANNEL, messages.append, 0)  # type: ignore[arg-type]
    reader._on_data_available(stream[5:])
    assert [message.body for message in messages] == [b"content"]


def test_a_pika_without_the_needed_names_reads_by_itself_and_a_warning_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    take_deliveries(object(), CHANNEL, print, 0)  # type: ignore[arg-type]
    assert "install pika 1.3.2 to 1.4.4" in caplog.text


@pytest.mark.parametrize(
    ("version", "tested"),
    [("1.3.1", False), ("1.3.2", True), ("1.4.4", True), ("1.4.5", False), ("2.0.0b1", False)],
)
def test_another_version_than_the_tested_is_named_in_a_warning(
    version: str, tested: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pika, "__version__", version)
    warn_if_untested.__wrapped__()
    assert (version in caplog.text) is not tested


def test_the_locked_version_of_pika_is_a_tested_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warn_if_untested.__wrapped__()
    assert not caplog.text
