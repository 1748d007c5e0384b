"""From the entries of a stream to messages, and back.

What must always hold: no entry raises. What the publisher here adds comes out unchanged; of any
other entry, every field is in the body, in a header or in the message's id.

Format of an entry: field `body` (the setting `body_field` names another), if there is one
`message_id`, and `headers` as a JSON object. Other fields are headers too. An entry without a body
becomes a JSON object of all its fields; a field that occurs twice has a list of values. Bytes that
are not UTF-8 become `{"base64": ...}`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fuploader_dagster.contracts.source import Message
from fuploader_dagster.errors import BadMessage
from fuploader_dagster.resources.sources.embedded.rows import row_of

MESSAGE_ID, HEADERS = b"message_id", b"headers"
Fields = Sequence[bytes]
"""Names and values in turn."""


class Attributes(NamedTuple):
    """What is known about a message, except its body."""

    entry_id: str
    deliveries: int
    fields: Fields


def fields_of(body: bytes, headers: Mapping[str, Any], body_field: bytes) -> list[bytes]:
    """The fields to add. Raises `BadMessage` for a header that would come back different."""
    raw_body, raw_id, raw_headers, _ = row_of(body, headers)
    fields = [body_field, raw_body]
    if raw_id is not None:
        fields += [MESSAGE_ID, raw_id]
    if raw_headers is not None:
        fields += [HEADERS, raw_headers]
    return fields


def message_of(
    entry_id: bytes, fields: Fields, number: int, deliveries: int, body_field: bytes
) -> Message:
    """The message of an entry that was delivered so often, this time included."""
    attributes = Attributes(entry_id.decode(), deliveries, fields)
    if fields[0] == body_field and len(fields) == 2:  # the usual case
        return Message(fields[1], number, deliveries > 1, None, attributes)
    body = message_id = None
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        if name == body_field and body is None:
            body = value
        elif name == MESSAGE_ID and message_id is None:
            message_id = _text(value)
    if body is None:
        return Message(_as_json(fields), number, deliveries > 1, None, attributes)
    return Message(body, number, deliveries > 1, message_id, attributes)


def described(message: Message, body_field: bytes) -> dict[str, Any]:
    """Headers and id of a message as JSON-ready values; never raises."""
    attributes: Attributes = message.attributes
    description: dict[str, Any] = {
        "entry_id": attributes.entry_id,
        "deliveries": attributes.deliveries,
    }
    names = attributes.fields[::2]
    if body_field not in names:  # the fields are the body
        return description
    headers: dict[str, Any] = {}
    others: list[bytes] = []
    seen: set[bytes] = set()
    for name, value in zip(names, attributes.fields[1::2], strict=True):
        ours = name not in seen
        seen.add(name)
        if ours and name == body_field:
            continue
        if ours and name == MESSAGE_ID and message.message_id is not None:
            description["message_id"] = message.message_id
        elif ours and name == HEADERS and (found := _object(value)) is not None:
            headers = found
        else:
            others += [name, value]
    headers = {**_table(others), **headers}
    return {**description, "headers": headers} if headers else description


def _as_json(fields: Fields) -> bytes:
    return json.dumps(_table(fields), ensure_ascii=False, separators=(",", ":")).encode()


def _table(fields: Fields) -> dict[str, Any]:
    values: dict[str, list[Any]] = {}
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        values.setdefault(name.decode(errors="backslashreplace"), []).append(_value(value))
    return {name: found[0] if len(found) == 1 else found for name, found in values.items()}


def _value(raw: bytes) -> Any:
    text = _text(raw)
    return {"base64": base64.b64encode(raw).decode()} if text is None else text


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _object(raw: bytes) -> dict[str, Any] | None:
    """A JSON object, if JSON can keep it as it is."""
    try:
        found = json.loads(raw)
        if not isinstance(found, dict):
            return None
        row_of(b"", found)
    except (ValueError, RecursionError, BadMessage):
        return None
    return found
