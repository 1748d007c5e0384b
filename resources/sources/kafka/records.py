"""From the records of a topic to messages, and back.

What must always hold: no record raises. What the publisher here adds comes out unchanged; of any
other record, all is in what `described` returns, or in the body.

Format of what we publish: the value is the body. Header `message_id`: the id, if there is one. A
header that is text is a header of the same name in UTF-8; all others (numbers, lists, names that
Kafka cannot keep) are together in the header `fuploader-headers`, a JSON object.

Reading: a header's value is text, or `{"base64": ...}` if it is not UTF-8; one that occurs several
times is a list; a null one is null.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fuploader_dagster.contracts.source import Message
from fuploader_dagster.errors import BadMessage
from fuploader_dagster.resources.sources.embedded.rows import row_of

MESSAGE_ID, HEADERS = "message_id", "fuploader-headers"
_NO_TIMESTAMP = 0
Headers = Sequence[tuple[str, bytes | None]]


def headers_to_send(headers: Mapping[str, Any]) -> list[tuple[str, bytes]]:
    """Headers of a record. Raises `BadMessage` for one that would come back different."""
    _, raw_id, _, _ = row_of(b"", headers)
    plain: list[tuple[str, bytes]] = []
    others: dict[str, Any] = {}
    if raw_id is not None:
        plain.append((MESSAGE_ID, raw_id))
    for name, value in headers.items():
        raw = value.encode() if isinstance(value, str) else _bytes_of(value)
        if name == MESSAGE_ID:
            continue
        if raw is None or name == HEADERS or not name or "\0" in name:
            others[name] = value
        else:
            plain.append((name, raw))
    if others:
        plain.append((HEADERS, json.dumps(others).encode()))
    return plain


def key_to_send(attributes: Mapping[str, Any]) -> bytes | None:
    """The key of a message that was described."""
    key = attributes.get("key")
    return key.encode("utf-8", "replace") if isinstance(key, str) else _bytes_of(key)


def message_id_of(headers: Headers | None) -> str | None:
    for name, value in headers or ():
        if name == MESSAGE_ID:
            return None if value is None else _text(value)
    return None


def described(message: Message) -> dict[str, Any]:
    """All that is known about a message except its body, as JSON-ready values; never raises."""
    record: Any = message.attributes
    kind, timestamp = record.timestamp()
    description: dict[str, Any] = {
        "topic": record.topic(),
        "partition": record.partition(),
        "offset": record.offset(),
    }
    if kind != _NO_TIMESTAMP:
        description["timestamp"] = timestamp
    if record.key() is not None:
        description["key"] = _value(record.key())
    if record.value() is None:
        description["tombstone"] = True
    if message.message_id is not None:
        description["message_id"] = message.message_id
    headers = _headers(record.headers() or (), message.message_id)
    return {**description, "headers": headers} if headers else description


def _headers(sent: Headers, message_id: str | None) -> dict[str, Any]:
    values: dict[str, list[Any]] = {}
    ours: dict[str, Any] = {}
    seen: set[str] = set()
    for name, value in sent:
        first = name not in seen
        seen.add(name)
        if first and name == MESSAGE_ID and message_id is not None:
            continue
        if first and name == HEADERS and (found := _object(value)) is not None:
            ours = found
        else:
            values.setdefault(name, []).append(None if value is None else _value(value))
    table = {name: found[0] if len(found) == 1 else found for name, found in values.items()}
    return {**table, **ours}


def _value(raw: bytes) -> Any:
    text = _text(raw)
    return {"base64": base64.b64encode(raw).decode()} if text is None else text


def _bytes_of(value: Any) -> bytes | None:
    """What was described as base64, because it is not UTF-8."""
    if not isinstance(value, Mapping) or set(value) != {"base64"}:
        return None
    try:
        raw = base64.b64decode(value["base64"], validate=True)
    except (TypeError, ValueError, binascii.Error):
        return None
    return raw if _value(raw) == value else None


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _object(raw: bytes | None) -> dict[str, Any] | None:
    """A JSON object, if JSON can keep it as it is."""
    try:
        found = json.loads(raw or b"")
        if not isinstance(found, dict):
            return None
        row_of(b"", found)
    except (ValueError, RecursionError, BadMessage):
        return None
    return found
