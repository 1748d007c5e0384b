"""A message's properties as AMQP encodes them: read for the drain, described, and written again.

What must always hold: reading never raises, whatever the bytes are. A producer may send a header
that Python has no value for (a timestamp in milliseconds is the year 56873), text that is not
UTF-8, an unknown type, or tables thousands of levels deep; such a message is drained like any
other. What cannot be decoded is kept as it came.

Described for JSON, as docs/formats.md lists: text and numbers as they are; bytes that are not text
as `{"base64": ...}`; a timestamp as ISO 8601, or as its number if no calendar has it; a decimal,
NaN, an infinity and a number of more than 64 bits as text. Where decoding stops, in a table, a list
or among the properties, the remaining bytes are kept under `undecoded`. Written again, each becomes
the closest type: `{"base64": ...}` becomes bytes, what was described as text stays text.

AMQP 0-9-1, numbers big-endian. Properties: one word or more of flags (bit 0: another word
follows), then the fields whose flags are set, in the order of `_FIELDS`. Short string: u8 length,
bytes. Table: u32 length in bytes, then pairs of short string and value. Value: one byte of type.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from struct import Struct
from struct import error as StructError  # noqa: N812  struct names its exception in lower case
from typing import Any

UNDECODED = "undecoded"
DEEPEST = 32
"""Nesting of tables and lists; what is deeper is kept undecoded, because tools that read JSON have
limits of their own."""

LONGEST_SHORT = 255
"""Most bytes of a short string: all properties that are text, and the names of headers."""

_WORD, _LENGTH, _TIME = Struct(">H"), Struct(">I"), Struct(">Q")
_MORE_FLAGS = 1
MESSAGE_ID_FLAG = 1 << 7
_SHORT, _TABLE, _OCTET, _SECONDS = "short string", "table", "octet", "seconds"
_FIELDS = (
    (1 << 15, "content_type", _SHORT),
    (1 << 14, "content_encoding", _SHORT),
    (1 << 13, "headers", _TABLE),
    (1 << 12, "delivery_mode", _OCTET),
    (1 << 11, "priority", _OCTET),
    (1 << 10, "correlation_id", _SHORT),
    (1 << 9, "reply_to", _SHORT),
    (1 << 8, "expiration", _SHORT),
    (MESSAGE_ID_FLAG, "message_id", _SHORT),
    (1 << 6, "timestamp", _SECONDS),
    (1 << 5, "type", _SHORT),
    (1 << 4, "user_id", _SHORT),
    (1 << 3, "app_id", _SHORT),
    (1 << 2, "cluster_id", _SHORT),
)
_BEFORE_MESSAGE_ID = tuple((flag, kind) for flag, _, kind in _FIELDS if flag > MESSAGE_ID_FLAG)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class _Unreadable(Exception):
    """Decoding cannot go on after this point."""


def message_id(encoded: bytes) -> str | None:
    """The message's id, in hexadecimal if it is not text; None if none is found."""
    try:
        (flags,) = _WORD.unpack_from(encoded)
        if not flags & MESSAGE_ID_FLAG:
            return None
        position = 2
        word = flags
        while word & _MORE_FLAGS:
            (word,) = _WORD.unpack_from(encoded, position)
            position += 2
        for flag, kind in _BEFORE_MESSAGE_ID:
            if flags & flag:
                if kind is _SHORT:
                    position += 1 + encoded[position]
                elif kind is _OCTET:
                    position += 1
                else:
                    position += 4 + int(_LENGTH.unpack_from(encoded, position)[0])
        start, length = position + 1, encoded[position]
    except (StructError, IndexError):
        return None
    raw = encoded[start : start + length]
    if len(raw) < length:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.hex()


def described(encoded: bytes) -> dict[str, Any]:
    """All properties as JSON-ready values; those that are not set are left out."""
    found: dict[str, Any] = {}
    position = 0
    try:
        word = _MORE_FLAGS
        flags = 0
        while word & _MORE_FLAGS:
            (word,) = _WORD.unpack_from(encoded, position)
            flags = flags or word
            position += 2
        for flag, name, kind in _FIELDS:
            if flags & flag:
                found[name], position = _READERS[kind](encoded, position)
    except (StructError, IndexError, _Unreadable):
        _put(found, UNDECODED, _base64(encoded[position:]))
    return found


def _short(encoded: bytes, position: int) -> tuple[Any, int]:
    start = position + 1
    end = start + encoded[position]
    return _text(_bytes(encoded, start, end)), end


def _octet(encoded: bytes, position: int) -> tuple[Any, int]:
    return encoded[position], position + 1


def _seconds(encoded: bytes, position: int) -> tuple[Any, int]:
    return _number(_TIME.unpack_from(encoded, position)[0]), position + _TIME.size


def _headers(encoded: bytes, position: int) -> tuple[Any, int]:
    inside, end = _part(encoded, position)
    return _table(inside, DEEPEST), end


_READERS: dict[str, Callable[[bytes, int], tuple[Any, int]]] = {
    _SHORT: _short,
    _OCTET: _octet,
    _SECONDS: _seconds,
    _TABLE: _headers,
}


def _table(encoded: bytes, levels: int) -> dict[str, Any]:
    """The pairs of a table; `encoded` is what its length spans."""
    found: dict[str, Any] = {}
    position = 0
    while position < len(encoded):
        try:
            start = position + 1
            end = start + encoded[position]
            key = _bytes(encoded, start, end)
            value, after = _value(encoded, end, levels)
        except (StructError, IndexError, _Unreadable):
            _put(found, UNDECODED, _base64(encoded[position:]))
            break
        _put(found, key.decode(errors="backslashreplace"), value)
        position = after
    return found


def _list(encoded: bytes, levels: int) -> list[Any]:
    found: list[Any] = []
    position = 0
    while position < len(encoded):
        try:
            value, position = _value(encoded, position, levels)
        except (StructError, IndexError, _Unreadable):
            found.append({UNDECODED: _base64(encoded[position:])})
            break
        found.append(value)
    return found


def _value(  # noqa: PLR0911  one return for each kind of value
    encoded: bytes, position: int, levels: int
) -> tuple[Any, int]:
    """A value with its byte of type, and where it ends."""
    kind = encoded[position : position + 1]
    position += 1
    if kind in (b"F", b"A"):
        inside, end = _part(encoded, position)
        if levels == 1:
            return {UNDECODED: _base64(inside)}, end
        read = _table if kind == b"F" else _list
        return read(inside, levels - 1), end
    if kind in (b"S", b"x"):
        inside, end = _part(encoded, position)
        return _text(inside), end
    if kind == b"V":
        return None, position
    if kind == b"D":
        scale, unscaled = _DECIMAL.unpack_from(encoded, position)
        return str(Decimal(unscaled).scaleb(-scale)), position + _DECIMAL.size
    if kind == b"T":
        return _moment(_TIME.unpack_from(encoded, position)[0]), position + _TIME.size
    if kind not in _NUMBERS:
        raise _Unreadable
    form = _NUMBERS[kind]
    (number,) = form.unpack_from(encoded, position)
    end = position + form.size
    if kind == b"t":
        return bool(number), end
    if isinstance(number, float) and not math.isfinite(number):
        return repr(number), end
    return number, end


_DECIMAL = Struct(">Bi")
_NUMBERS = {
    b"t": Struct(">B"),
    b"b": Struct(">b"),
    b"B": Struct(">B"),
    b"s": Struct(">h"),
    b"U": Struct(">h"),  # signed in RabbitMQ's reading, whatever the specification says
    b"u": Struct(">H"),
    b"I": Struct(">i"),
    b"i": Struct(">I"),
    b"l": Struct(">q"),
    b"L": Struct(">q"),
    b"f": Struct(">f"),
    b"d": Struct(">d"),
}


def _part(encoded: bytes, position: int) -> tuple[bytes, int]:
    """The bytes after a length of four bytes, and where they end."""
    start = position + _LENGTH.size
    end = start + int(_LENGTH.unpack_from(encoded, position)[0])
    return _bytes(encoded, start, end), end


def _bytes(encoded: bytes, start: int, end: int) -> bytes:
    if end > len(encoded):
        raise _Unreadable
    return encoded[start:end]


def _text(raw: bytes) -> Any:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return _base64(raw)


def _moment(seconds: int) -> Any:
    try:
        return (_EPOCH + timedelta(seconds=seconds)).isoformat()
    except OverflowError:  # mostly because it is in milliseconds
        return _number(seconds)


def _number(number: int) -> Any:
    """Most readers of JSON have signed integers of 64 bits."""
    return number if number < 1 << 63 else str(number)


def _base64(raw: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(raw).decode()}


def _put(table: dict[str, Any], name: str, value: Any) -> None:
    """If two have the same name, both are kept: the second one's name gets a `_`."""
    while name in table:
        name += "_"
    table[name] = value


def encoded(properties: Mapping[str, Any]) -> bytes:
    """The properties encoded for sending; those that are None are left out.

    Short strings must fit (`as_short`). Raises `TypeError` for a header of a type that AMQP lacks.
    """
    flags, parts = 0, [b""]
    for flag, name, kind in _FIELDS:
        value = properties.get(name)
        if value is not None:
            flags |= flag
            parts.append(_WRITERS[kind](value))
    parts[0] = _WORD.pack(flags)
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
                return kind + _NUMBERS[kind].pack(value)
            except StructError:
                continue
        return b"S" + _long(str(value).encode())
    if isinstance(value, float) and math.isfinite(value):
        return b"d" + _NUMBERS[b"d"].pack(value)
    if isinstance(value, (float, Decimal)):
        return b"S" + _long(str(value).encode())
    if isinstance(value, datetime):
        return b"T" + _TIME.pack(max(0, int(value.timestamp())))
    if (raw := _raw(value)) is not None:
        return (b"S" if isinstance(value, str) else b"x") + _long(raw)
    if isinstance(value, Mapping):
        return b"F" + _written_table(value)
    if isinstance(value, (list, tuple)):
        return b"A" + _long(b"".join(map(_written, value)))
    raise TypeError(type(value).__name__)


def _long(raw: bytes) -> bytes:
    return _LENGTH.pack(len(raw)) + raw


_WRITERS: dict[str, Callable[[Any], bytes]] = {
    _SHORT: _written_short,
    _OCTET: lambda value: bytes([value]),
    _SECONDS: lambda value: _TIME.pack(int(value)),
    _TABLE: _written_table,
}
