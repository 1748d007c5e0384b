"""A message's properties as AMQP encodes them: read for the drain, chosen from, and described.

`written_properties` writes them again.

What must always hold: reading never raises, whatever the bytes are. A producer may send a header
that Python has no value for (a timestamp in milliseconds is the year 56873), text that is not
UTF-8, an unknown type, or tables thousands of levels deep; such a message is drained like any
other. What cannot be decoded is kept as it came.

Described for JSON, as docs/formats.md lists: text and numbers as they are; bytes that are not text
as `{"base64": ...}`; a timestamp as ISO 8601, or as its number if no calendar has it; a decimal,
NaN, an infinity and a number of more than 64 bits as text. Where decoding stops, in a table, a list
or among the properties, the remaining bytes are kept under `undecoded`.

AMQP 0-9-1, numbers big-endian. Properties: one word or more of flags (bit 0: another word
follows), then the fields whose flags are set, in the order of `FIELDS`. Short string: u8 length,
bytes. Table: u32 length in bytes, then pairs of short string and value. Value: one byte of type.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from functools import lru_cache
from struct import Struct
from struct import error as StructError  # noqa: N812  struct names its exception in lower case
from typing import Any

from fuploader_dagster.disk.header_text import folded

UNDECODED = "undecoded"
DEEPEST = 32
"""Nesting of tables and lists; what is deeper is kept undecoded, because tools that read JSON have
limits of their own."""

WORD, LENGTH, TIME = Struct(">H"), Struct(">I"), Struct(">Q")
_MORE_FLAGS = 1
MESSAGE_ID_FLAG = 1 << 7
SHORT, TABLE, OCTET, SECONDS = "short string", "table", "octet", "seconds"
FIELDS = (
    (1 << 15, "content_type", SHORT),
    (1 << 14, "content_encoding", SHORT),
    (1 << 13, "headers", TABLE),
    (1 << 12, "delivery_mode", OCTET),
    (1 << 11, "priority", OCTET),
    (1 << 10, "correlation_id", SHORT),
    (1 << 9, "reply_to", SHORT),
    (1 << 8, "expiration", SHORT),
    (MESSAGE_ID_FLAG, "message_id", SHORT),
    (1 << 6, "timestamp", SECONDS),
    (1 << 5, "type", SHORT),
    (1 << 4, "user_id", SHORT),
    (1 << 3, "app_id", SHORT),
    (1 << 2, "cluster_id", SHORT),
)
_BEFORE_MESSAGE_ID = tuple((flag, kind) for flag, _, kind in FIELDS if flag > MESSAGE_ID_FLAG)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class _Unreadable(Exception):
    """Decoding cannot go on after this point."""


def message_id(encoded: bytes) -> str | None:
    """The message's id, in hexadecimal if it is not text; None if none is found."""
    try:
        (flags,) = WORD.unpack_from(encoded)
        if not flags & MESSAGE_ID_FLAG:
            return None
        position = 2
        word = flags
        while word & _MORE_FLAGS:
            (word,) = WORD.unpack_from(encoded, position)
            position += 2
        for flag, kind in _BEFORE_MESSAGE_ID:
            if flags & flag:
                if kind is SHORT:
                    position += 1 + encoded[position]
                elif kind is OCTET:
                    position += 1
                else:
                    position += 4 + int(LENGTH.unpack_from(encoded, position)[0])
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
            (word,) = WORD.unpack_from(encoded, position)
            flags = flags or word
            position += 2
        for flag, name, kind in FIELDS:
            if flags & flag:
                found[name], position = _READERS[kind](encoded, position)
    except (StructError, IndexError, _Unreadable):
        _put(found, UNDECODED, _base64(encoded[position:]))
    return found


def chosen(encoded: bytes, wanted: Mapping[str, str]) -> dict[str, Any]:
    """Those of the headers and properties whose folded name is wanted, as `described` has them.

    Each is under the name that `wanted` gives. Decodes only these. A header comes before a property
    of the same name, and the first of two headers counts.
    """
    found: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    position = 0
    try:
        word = _MORE_FLAGS
        flags = 0
        while word & _MORE_FLAGS:
            (word,) = WORD.unpack_from(encoded, position)
            flags = flags or word
            position += 2
        for flag, name, kind in FIELDS:
            if not flags & flag:
                continue
            kept_as = wanted.get(_FOLDED_FIELDS[name])
            if kind is TABLE:
                inside, end = _part(encoded, position)
                _choose(inside, wanted, found)
                if kept_as is not None:
                    properties[kept_as] = _table(inside, DEEPEST)
                position = end
            elif kept_as is not None:
                properties[kept_as], position = _READERS[kind](encoded, position)
            elif kind is SHORT:
                position += 1 + encoded[position]
            else:
                position += 1 if kind is OCTET else TIME.size
    except (StructError, IndexError, _Unreadable):
        pass  # what comes before is kept: the rest has no value that anybody could keep
    return {**properties, **found}


def _choose(encoded: bytes, wanted: Mapping[str, str], found: dict[str, Any]) -> None:
    """Add the wanted pairs of a table to those found."""
    position = 0
    while position < len(encoded):
        try:
            start = position + 1
            end = start + encoded[position]
            kept_as = wanted.get(_folded(encoded[start:end]))
            if kept_as is None or kept_as in found:
                position = _value_end(encoded, end)
            else:
                found[kept_as], position = _value(encoded, end, DEEPEST)
        except (StructError, IndexError, _Unreadable):
            break


def _value_end(encoded: bytes, position: int) -> int:
    """Where a value ends that begins with its byte of type."""
    kind = encoded[position : position + 1]
    position += 1
    size = _SIZES.get(kind)
    if size is None:
        if kind not in _WITH_LENGTH:
            raise _Unreadable
        size = LENGTH.size + int(LENGTH.unpack_from(encoded, position)[0])
    if position + size > len(encoded):
        raise _Unreadable
    return position + size


@lru_cache(maxsize=1024)
def _folded(name: bytes) -> str:
    return folded(name.decode(errors="backslashreplace"))


_FOLDED_FIELDS = {name: folded(name) for _, name, _ in FIELDS}


def _short(encoded: bytes, position: int) -> tuple[Any, int]:
    start = position + 1
    end = start + encoded[position]
    return _text(_bytes(encoded, start, end)), end


def _octet(encoded: bytes, position: int) -> tuple[Any, int]:
    return encoded[position], position + 1


def _seconds(encoded: bytes, position: int) -> tuple[Any, int]:
    return _number(TIME.unpack_from(encoded, position)[0]), position + TIME.size


def _headers(encoded: bytes, position: int) -> tuple[Any, int]:
    inside, end = _part(encoded, position)
    return _table(inside, DEEPEST), end


_READERS: dict[str, Callable[[bytes, int], tuple[Any, int]]] = {
    SHORT: _short,
    OCTET: _octet,
    SECONDS: _seconds,
    TABLE: _headers,
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
        return _moment(TIME.unpack_from(encoded, position)[0]), position + TIME.size
    if kind not in NUMBERS:
        raise _Unreadable
    form = NUMBERS[kind]
    (number,) = form.unpack_from(encoded, position)
    end = position + form.size
    if kind == b"t":
        return bool(number), end
    if isinstance(number, float) and not math.isfinite(number):
        return repr(number), end
    return number, end


_DECIMAL = Struct(">Bi")
NUMBERS = {
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


_WITH_LENGTH = (b"F", b"A", b"S", b"x")
_SIZES = {
    b"V": 0,
    b"D": _DECIMAL.size,
    b"T": TIME.size,
    **{kind: form.size for kind, form in NUMBERS.items()},
}
"""Of values that have the same length each time."""


def _part(encoded: bytes, position: int) -> tuple[bytes, int]:
    """The bytes after a length of four bytes, and where they end."""
    start = position + LENGTH.size
    end = start + int(LENGTH.unpack_from(encoded, position)[0])
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
