"""Properties of messages as bytes, for what pika cannot send: every type, and what is none."""

from __future__ import annotations

import struct
from collections.abc import Mapping

HEADERS, MESSAGE_ID, CORRELATION_ID = 1 << 13, 1 << 7, 1 << 10

NESTED_LEVELS = 3_000


def short(raw: bytes) -> bytes:
    return bytes([len(raw)]) + raw


def long(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw


def table(pairs: Mapping[bytes, bytes]) -> bytes:
    """Keys to values that are encoded with their type."""
    return long(b"".join(short(key) + value for key, value in pairs.items()))


def with_headers(pairs: Mapping[bytes, bytes]) -> bytes:
    return struct.pack(">H", HEADERS) + table(pairs)


def with_message_id(raw: bytes) -> bytes:
    return struct.pack(">H", MESSAGE_ID) + short(raw)


def nested(kind: bytes, levels: int) -> bytes:
    """A table in a table in a table (`F`), or lists (`A`)."""
    value = b"V"
    for _ in range(levels):
        value = kind + long(short(b"k") + value if kind == b"F" else value)
    return value


EVERY_TYPE: dict[str, tuple[bytes, object]] = {
    "true": (b"t\x01", True),
    "false": (b"t\x00", False),
    "signed byte": (b"b\xff", -1),
    "byte": (b"B\xff", 255),
    "short": (b"s\xff\xfe", -2),
    "unsigned short": (b"u\xff\xfe", 65_534),
    "int": (b"I" + struct.pack(">i", -(2**31)), -(2**31)),
    "unsigned int": (b"i" + struct.pack(">I", 2**32 - 1), 2**32 - 1),
    "long": (b"l" + struct.pack(">q", -(2**63)), -(2**63)),
    "long of the specification": (b"L" + struct.pack(">q", 2**40), 2**40),
    "float": (b"f" + struct.pack(">f", 0.5), 0.5),
    "double": (b"d" + struct.pack(">d", -1.25e100), -1.25e100),
    "decimal": (b"D\x02" + struct.pack(">i", -12_345), "-123.45"),
    "decimal with a large scale": (b"D\xff" + struct.pack(">i", 1), "1E-255"),
    "text": (b"S" + long("übel".encode()), "übel"),
    "text with a NUL": (b"S" + long(b"a\0b"), "a\0b"),
    "text that is none": (b"S" + long(b"\xff\xfe"), {"base64": "//4="}),
    "bytes": (b"x" + long(b"plain"), "plain"),
    "bytes that are no text": (b"x" + long(b"\x80"), {"base64": "gA=="}),
    "list": (b"A" + long(b"t\x01V" + b"S" + long(b"x")), [True, None, "x"]),
    "empty list": (b"A" + long(b""), []),
    "table": (b"F" + table({b"a": b"t\x01", b"b": b"F" + table({})}), {"a": True, "b": {}}),
    "timestamp": (b"T" + struct.pack(">Q", 1_732_600_000), "2024-11-26T05:46:40+00:00"),
    "timestamp in milliseconds": (b"T" + struct.pack(">Q", 1_732_600_000_000), 1_732_600_000_000),
    "largest timestamp": (b"T" + struct.pack(">Q", 2**64 - 1), str(2**64 - 1)),
    "void": (b"V", None),
}
"""Values as they are sent, and as they are described."""

REFUSED_BY_RABBITMQ: dict[str, tuple[bytes, object]] = {
    "short of the specification": (b"U\xff\xfe", -2),
    "NaN": (b"d" + struct.pack(">d", float("nan")), "nan"),
    "infinity": (b"f" + struct.pack(">f", float("inf")), "inf"),
    "negative infinity": (b"d" + struct.pack(">d", float("-inf")), "-inf"),
}
"""RabbitMQ closes the connection of who publishes these; other brokers may not."""
