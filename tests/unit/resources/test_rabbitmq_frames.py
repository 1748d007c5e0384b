"""Messages are framed as pika frames them, whatever their properties and size.

The other side of each comparison is pika's own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pika
import pika.spec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.connection import Connection

from fuploader_dagster.resources.sources.rabbitmq.frames import (
    HEADER_BYTES,
    OVERHEAD_BYTES,
    Framing,
)
from fuploader_dagster.resources.sources.rabbitmq.written_properties import encoded

SMALLEST_FRAME = 4096
PAYLOAD = SMALLEST_FRAME - OVERHEAD_BYTES


class Properties:
    """Properties that are encoded already."""

    INDEX = pika.spec.BasicProperties.INDEX

    def __init__(self, raw: bytes) -> None:
        self.encode = lambda: [raw]


class Pika:
    """What pika would send."""

    def __init__(self, frame_max: int) -> None:
        self._body_max_length = frame_max - OVERHEAD_BYTES
        self.sent = b""

    def _output_marshaled_frames(self, frames: Sequence[bytes]) -> None:
        self.sent += b"".join(frames)

    def publish(self, channel: int, queue: str, properties: bytes, body: bytes) -> bytes:
        method = pika.spec.Basic.Publish(exchange="", routing_key=queue, mandatory=True)
        self.sent = b""
        this: Any = self
        raw: Any = Properties(properties)
        Connection._send_message(this, channel, method, (raw, body))
        return self.sent


def same(channel: int, queue: str, frame_max: int, properties: bytes, body: bytes) -> list[bytes]:
    pieces = Framing(channel, queue, frame_max).framed(properties, body)
    assert b"".join(pieces) == Pika(frame_max).publish(channel, queue, properties, body)
    return pieces


@given(
    channel=st.integers(1, 65_535),
    queue=st.text(max_size=60),
    properties=st.binary(min_size=2, max_size=PAYLOAD - HEADER_BYTES),
    body=st.binary(max_size=3 * PAYLOAD),
)
def test_any_message_is_framed_as_by_pika(
    channel: int, queue: str, properties: bytes, body: bytes
) -> None:
    same(channel, queue, SMALLEST_FRAME, properties, body)


@pytest.mark.parametrize("frame_max", [SMALLEST_FRAME, 131_072])
@pytest.mark.parametrize("frames", [0, 1, 2, 5])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_bodies_around_the_size_of_a_frame(frame_max: int, frames: int, more: int) -> None:
    """Only a body of several frames is several pieces, each no larger than a frame."""
    size = max(0, frames * (frame_max - OVERHEAD_BYTES) + more)
    pieces = same(1, "queue", frame_max, encoded({"delivery_mode": 2}), b"\xce" * size)
    needed = -(-size // (frame_max - OVERHEAD_BYTES))
    assert len(pieces) == (1 if needed <= 1 else 1 + needed)
    assert needed <= 1 or max(map(len, pieces)) <= frame_max


def test_without_a_limit_a_body_is_one_frame() -> None:
    body = b"x" * 1_000_000
    (piece,) = Framing(1, "queue", 0).framed(b"\x00\x00", body)
    assert piece == Pika(2_000_000).publish(1, "queue", b"\x00\x00", body)
