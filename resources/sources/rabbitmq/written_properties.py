"""Writes a message's properties as AMQP encodes them. `properties` has the format, and reads them.

What must always hold: what `described` gives can be written again, each value as the closest type.
`{"base64": ...}` becomes bytes, what was described as text stays text.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from struct import error as StructError  # noqa: N812  struct names its exception in lower case
from typing import Any

from fuploader_dagster.resources.sources.rabbitmq.properties import (
    FIELDS,
    LENGTH,
    NUMBERS,
    OCTET,
    SECONDS,
    SHORT,
    TABLE,
    TIME,
    WORD,
)

LONGEST_SHORT = 255
"""Most bytes of a short string: all properties that are text, and the names of headers."""


def encoded(properties: Mapping[str, Any]) -> bytes:
    """The properties encoded for sending; those that are None are left out.

    Short strings must fit (`as_short`). Raises `TypeError` for a header of a type that AMQP lacks.
    """
    flags, parts = 0, [b""]
    for flag, name, kind in FIELDS:
        value = properties.get(name)
        if value is not None:
            flags |= flag
            parts.append(_WRITERS[kind](value))
    parts[0] = WORD.pack(flags)
    return b"".join(parts)


def as_short(value: Any) -> bytes | None:
    """The value as the bytes of a short string; None if it does not fit."""
    raw = _raw(value)
    return raw if raw is not None and len(raw) <= LONGEST_SHORT else None


def _raw(value: Any) -> bytes | None:
    """The bytes of a text, of bytes, or of bytes as `described` renders them."""
    if isinstance(value, str):
        return value.encode(errors="replace")
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and value.keys() == {"base64"} and isinstance(value["base64"], str):
        try:
            return base64.b64decode(value["base64"], validate=True)
        except (binascii.Error, ValueError):
            return None
    return None


def _written_short(value: Any) -> bytes:
    raw = as_short(value)
    if raw is None:
        raise TypeError(f"{type(value).__name__} is not a short string")
    return bytes([len(raw)]) + raw


def _written_table(table: Mapping[str, Any]) -> bytes:
    pairs = []
    for name, value in table.items():
        key = str(name).encode(errors="replace")
        while len(key) > LONGEST_SHORT:  # it became longer by escapes
            key = key[:LONGEST_SHORT].decode(errors="ignore").encode()
        pairs.append(bytes([len(key)]) + key + _written(value))
    return _long(b"".join(pairs))


def _written(value: Any) -> bytes:  # noqa: PLR0911  one return for each type
    """A value with its byte of type."""
    if value is None:
        return b"V"
    if isinstance(value, bool):
        return b"t" + bytes([value])
    if isinstance(value, int):
        for kind in (b"I", b"l"):
            try:
                return kind + NUMBERS[kind].pack(value)
            except StructError:
                continue
        return b"S" + _long(str(value).encode())
    if isinstance(value, float) and math.isfinite(value):
        return b"d" + NUMBERS[b"d"].pack(value)
    if isinstance(value, (float, Decimal)):
        return b"S" + _long(str(value).encode())
    if isinstance(value, datetime):
        return b"T" + TIME.pack(max(0, int(value.timestamp())))
    if (raw := _raw(value)) is not None:
        return (b"S" if isinstance(value, str) else b"x") + _long(raw)
    if isinstance(value, Mapping):
        return b"F" + _written_table(value)
    if isinstance(value, (list, tuple)):
        return b"A" + _long(b"".join(map(_written, value)))
    raise TypeError(type(value).__name__)


def _long(raw: bytes) -> bytes:
    return LENGTH.pack(len(raw)) + raw


_WRITERS: dict[str, Callable[[Any], bytes]] = {
    SHORT: _written_short,
    OCTET: lambda value: bytes([value]),
    SECONDS: lambda value: TIME.pack(int(value)),
    TABLE: _written_table,
}
