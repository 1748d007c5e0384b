"""Properties of messages, as the bytes of an AMQP 0-9-1 content header: also those that no Python
client would write, or could read.

Producers in other languages send them: a timestamp in milliseconds (the year 56,873), 64-bit
numbers, binary strings, message ids that are the sixteen bytes of a UUID.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random

import pika

_HEADERS, _DELIVERY_MODE, _MESSAGE_ID, _TIMESTAMP = 1 << 13, 1 << 12, 1 << 7, 1 << 6
_MILLISECONDS = 1_732_600_000_000


def _long_string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _table(fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    return _long_string(b"".join(bytes([len(name)]) + name + value for name, value in fields))


def _moment(number: int) -> bytes:
    return b"T" + struct.pack(">Q", number)


ODD: tuple[bytes, ...] = (
    _moment(_MILLISECONDS),
    _moment(2**63 + 5),
    b"l" + struct.pack(">q", 2**40),
    b"l" + struct.pack(">q", -(2**62)),
    b"d" + struct.pack(">d", 1.5),
    b"f" + struct.pack(">f", -0.25),
    b"D" + struct.pack(">Bi", 2, 314),
    b"S" + _long_string(bytes(range(256))),
    b"x" + _long_string(b"\xff\xfe\x00"),
    b"A" + _long_string(_moment(_MILLISECONDS) + b"V" + b"t\x01"),
    b"F" + _table([(b"in \xc3\xbc", _moment(_MILLISECONDS)), (b"n", b"V")]),
    b"b\x80",
    b"s" + struct.pack(">h", -2),
)
"""Values of headers, with their types."""


def properties(dice: Random, *, odd: bool) -> bytes:
    """Persistent, and with odd headers, a binary message id and a timestamp, or some of these."""
    flags, values = _DELIVERY_MODE, b"\x02"
    if not odd:
        return struct.pack(">H", flags) + values
    some = dice.sample(ODD, dice.randrange(4))
    headers = [(b"h%d" % number, value) for number, value in enumerate(some)]
    flags, values = flags | _HEADERS, _table(headers) + values
    if dice.randrange(2):
        flags, values = flags | _MESSAGE_ID, values + b"\x10" + dice.randbytes(16)
    if dice.randrange(2):
        flags, values = flags | _TIMESTAMP, values + struct.pack(">Q", _MILLISECONDS)
    return struct.pack(">H", flags) + values


class AsTheyStand(pika.BasicProperties):
    """Sends the bytes, whatever they are."""

    def __init__(self, encoded: bytes) -> None:
        super().__init__()
        self.encoded = encoded

    def encode(self) -> list[bytes]:
        return [self.encoded]
