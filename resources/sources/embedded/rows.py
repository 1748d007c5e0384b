"""A row of the embedded queue: what is stored of a message, and whether it is still the same.

What must always hold: a message is delivered as intact only if its body, id and headers are those
that were published. A row that changed on the disk, or that nobody can read, is delivered with
`damage`, and its body byte by byte as it is now. What `publish` accepts can be described as JSON,
and comes out of the queue unchanged.

Format of the columns: body, message_id and headers (JSON) as bytes; digest: 16 bytes of BLAKE2b
over the lengths of the three as decimals (-1: there is none), each followed by a comma, then the
three. A row of an older version has no digest: it is delivered unless it is unreadable.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from fuploader_dagster.contracts.source import Message
from fuploader_dagster.errors import BadMessage

DIGEST_BYTES = 16
MOST_NESTED = 64
"""Levels of lists and objects in a header."""
_SMALLEST_INTEGER, _LARGEST_INTEGER = -(2**63), 2**64 - 1
"""The limits of a dead letter's JSON."""
_MOST_DELIVERIES = 2**31
_CHANGED = (
    "its row in the embedded queue is not what was published: the disk or a program changed it"
)

Row = tuple[bytes, bytes | None, bytes | None, bytes]
"""body, message_id, headers, digest."""


class Attributes(NamedTuple):
    """What the queue knows about a message, except its body."""

    deliveries: int
    headers: bytes | None
    unreadable_id: bytes | None = None


def row_of(body: bytes, headers: Mapping[str, Any]) -> Row:
    """The row to store. Raises `BadMessage` for a header that would come back different."""
    others = {name: value for name, value in headers.items() if name != "message_id"}
    message_id = headers.get("message_id")
    _check(others, "a header", 0)
    raw_id = None if message_id is None else _encoded(str(message_id), "the message_id")
    raw_headers = json.dumps(others).encode() if others else None
    body = bytes(body)
    return body, raw_id, raw_headers, _digest(body, raw_id, raw_headers)


def message_of(columns: tuple[Any, Any, Any, Any, Any], number: int) -> Message:
    """The message of (body, deliveries, message_id, headers, digest), texts as bytes."""
    body, deliveries, raw_id, raw_headers, digest = columns
    damage = ""
    try:
        if digest != _digest(body, raw_id, raw_headers) and digest is not None:
            damage = _CHANGED
        message_id = None if raw_id is None else raw_id.decode()
    except (
        TypeError,
        ValueError,
        AttributeError,
    ):  # columns of other types, an id that is not UTF-8
        damage, message_id = _CHANGED, None
    if digest is None and not damage and _headers_of(raw_headers) is None:
        damage = _CHANGED
    if type(deliveries) is not int or not 0 <= deliveries < _MOST_DELIVERIES:
        deliveries = 1  # unknown: a message that may have come before is checked for duplicates
    unreadable_id = None if message_id is not None else _bytes(raw_id)
    attributes = Attributes(deliveries + 1, _bytes(raw_headers), unreadable_id)
    content = body if type(body) is bytes else _bytes(body) or b""
    return Message(content, number, deliveries > 0, message_id, attributes, damage)


def described(message: Message) -> dict[str, Any]:
    """Headers and id as JSON-ready values; never raises. What is unreadable becomes base64."""
    attributes: Attributes = message.attributes
    description: dict[str, Any] = {"deliveries": attributes.deliveries}
    unreadable = {}
    headers = _headers_of(attributes.headers)
    if headers:
        description["headers"] = headers
    if headers is None:
        unreadable["headers"] = _as_base64(attributes.headers)
    if message.message_id is not None:
        description["message_id"] = message.message_id
    if attributes.unreadable_id is not None:
        unreadable["message_id"] = _as_base64(attributes.unreadable_id)
    return {**description, "unreadable": unreadable} if unreadable else description


def _digest(body: bytes, message_id: bytes | None, headers: bytes | None) -> bytes:
    lengths = b"%d,%d,%d," % (
        len(body),
        -1 if message_id is None else len(message_id),
        -1 if headers is None else len(headers),
    )
    digest = hashlib.blake2b(lengths, digest_size=DIGEST_BYTES)
    digest.update(body)
    digest.update(message_id or b"")
    digest.update(headers or b"")
    return digest.digest()


def _check(value: Any, what: str, depth: int) -> None:
    """Raises `BadMessage` unless JSON keeps the value as it is."""
    if depth > MOST_NESTED:
        raise BadMessage(f"{what} is nested deeper than {MOST_NESTED} levels")
    if isinstance(value, dict):
        for name, part in value.items():
            if not isinstance(name, str):
                raise BadMessage(f"a header's name is {type(name).__name__}, not a string")
            _encoded(name, "a header's name")
            _check(part, f"the header {name[:100]!r}" if depth == 0 else what, depth + 1)
    elif isinstance(value, (list, tuple)):
        for part in value:
            _check(part, what, depth + 1)
    elif isinstance(value, str):
        _encoded(value, what)
    elif value is None or isinstance(value, bool):
        pass
    elif isinstance(value, int):
        if not _SMALLEST_INTEGER <= value <= _LARGEST_INTEGER:
            raise BadMessage(f"{what} has an integer of more than 64 bits")
    elif not isinstance(value, float):
        raise BadMessage(f"{what} cannot be stored as JSON: it is {type(value).__name__}")
    elif not math.isfinite(value):
        raise BadMessage(f"{what} cannot be stored as JSON: it is {value}")


def _encoded(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadMessage(f"{what} is not valid Unicode: {error}") from error


def _headers_of(raw: bytes | None) -> dict[str, Any] | None:
    """The headers; empty if there are none, None if they cannot be what was published."""
    if raw is None:
        return {}
    try:
        headers = json.loads(raw)
        if not isinstance(headers, dict):
            return None
        _check(headers, "a header", 0)
    except (TypeError, ValueError, RecursionError, BadMessage):
        return None
    return headers


def _bytes(value: Any) -> bytes | None:
    """A column of whatever type, as bytes."""
    return value if value is None or isinstance(value, bytes) else str(value).encode()


def _as_base64(raw: bytes | None) -> dict[str, str]:
    return {"base64": base64.b64encode(raw or b"").decode("ascii")}
