"""From the body of a request to messages, each with the id under which it can be asked for.

What must always hold:

- What the pipeline's drain would make a dead letter of is refused here, as far as its format tells:
  all of the request, with the number of the message that is wrong.
- The bytes of a message are those that were sent: an element of a list is cut out, not written
  again. Only for `message_format: envelope` a body that is no envelope yet is wrapped into one.
- The id is the name of the message's file, where the pipeline names files by its settings; with a
  parser or a name generator of the user's own it is the id of the message.
- The same request with the same idempotency key has the same ids.
"""

from __future__ import annotations

import codecs
import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from fuploader_dagster.contracts.source import MessagePublisher
from fuploader_dagster.errors import UNREADABLE_JSON, BadMessage
from fuploader_dagster.front.answers import Refusal
from fuploader_dagster.processing.envelope import (
    check_file_name,
    content_type_of,
    decode_envelope,
    decode_json,
    decode_raw,
    encode,
)
from fuploader_dagster.processing.producer import encode_file_message
from fuploader_dagster.settings.pipeline import Pipeline

Form = Literal["bytes", "json", "lines"]
_LINES = (b"application/x-ndjson", b"application/jsonl", b"application/x-jsonlines")
_ID_FIELDS = ("rec_id", "id")
_SPACE = b" \t\r\n"
_DIGEST_BYTES = 16


class Item(NamedTuple):
    """A message to publish."""

    id: str
    body: bytes
    headers: dict[str, str]
    key: bytes | None = None
    """Digest under which it is remembered, if its sender gave it an id."""


class _Given(msgspec.Struct):
    """The fields with which a sender names a message."""

    rec_id: str | int | None = None
    id: str | int | None = None


_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
_raw_value = msgspec.json.Decoder(msgspec.Raw)
_given = msgspec.json.Decoder(_Given)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_flat = msgspec.json.Decoder(dict[str, str | int | float | bool | None])


def form_of(content_type: bytes) -> Form:
    """How a body is divided into messages."""
    kind = content_type.partition(b";")[0].strip().lower()
    if kind in _LINES:
        return "lines"
    return "json" if kind == b"application/json" else "bytes"


class Items:
    """Makes messages for one pipeline."""

    def __init__(self, pipeline: Pipeline, publisher: type[MessagePublisher]) -> None:
        self._pipeline = pipeline
        self._flat = pipeline.serve is not None and pipeline.serve.flat
        self._most = pipeline.serve.max_items if pipeline.serve else 1
        self._named_by_us = pipeline.parser is None and pipeline.file_name is None
        self._keeps_ids = publisher.keeps_headers

    def of(self, body: bytes, form: Form, key: bytes, headers: Mapping[str, str]) -> list[Item]:
        """The messages of a body. `key`: the request's idempotency key, or empty.

        Raises a `Refusal`; then nothing of the request is taken.
        """
        if not body:
            raise Refusal(400, "the request has no body", hint="the body is the message")
        if form == "bytes":
            return [self._item(body, "", key, headers)]
        pieces = self._pieces(body, form)
        if not pieces:
            raise Refusal(400, "the body has no message in it", hint="send at least one")
        return [
            self._item(piece, _given_id(piece), key, headers, number=number, count=len(pieces))
            for number, piece in enumerate(pieces)
        ]

    def _pieces(self, body: bytes, form: Form) -> Sequence[bytes]:
        """The JSON values in a body, each as it was sent."""
        body = body.removeprefix(codecs.BOM_UTF8)
        try:
            if not body.isascii():
                body.decode()
            if form == "lines":
                lines = [line for line in body.split(b"\n") if line.strip(_SPACE)]
                self._check_number(len(lines))
                return [line.strip(_SPACE) for line in _checked(lines)]
            if body.lstrip(_SPACE)[:1] != b"[":
                return [bytes(_raw_value.decode(body)).strip(_SPACE)]
            elements = _raw_list.decode(body)
        except UNREADABLE_JSON as error:
            raise Refusal(
                400,
                f"the body is not JSON: {error}",
                hint="a message that is not JSON needs another Content-Type, such as "
                "application/octet-stream",
            ) from None
        self._check_number(len(elements))
        return [bytes(one).strip(_SPACE) for one in elements]

    def _check_number(self, found: int) -> None:
        if found > self._most:
            raise Refusal(
                413,
                f"the request has {found:,} messages; max_items is {self._most:,}",
                hint="send it in several requests",
            )

    def _item(
        self,
        body: bytes,
        given: str,
        key: bytes,
        headers: Mapping[str, str],
        *,
        number: int = 0,
        count: int = 1,
    ) -> Item:
        try:
            if self._flat:
                _check_flat(body)
            body, name = self._checked(body, given)
        except BadMessage as error:
            which = f"message {number + 1} of {count}: " if count > 1 else ""
            raise Refusal(422, f"{which}{error.message}", hint=error.hint) from None
        id_ = name or given or (_derived(key, number) if key else uuid.uuid4().hex)
        if self._keeps_ids:
            headers = {**headers, "message_id": id_}
        elif not name:  # the queue has no place for an id
            id_ = decode_raw(body).file_name
        remembered = _digest(b"item", id_.encode(), body) if given and not key else None
        return Item(id_, body, dict(headers), remembered)

    def _checked(self, body: bytes, given: str) -> tuple[bytes, str]:
        """The message to send, and the name that its file gets; empty if the id decides, or a
        function of the user's."""
        pipeline = self._pipeline
        if pipeline.parser is not None or pipeline.message_format == "raw":
            return body, ""
        if pipeline.message_format == "json":
            name = decode_json(body, name_fields=pipeline.name_fields).file_name
        else:
            body = self._wrapped(body, given)
            limits = {"name_fields": pipeline.name_fields, "max_bytes": pipeline.max_unpacked_bytes}
            name = decode_envelope(body, **limits).file_name  # type: ignore[arg-type]
        return body, check_file_name(name) if self._named_by_us else ""

    def _wrapped(self, body: bytes, given: str) -> bytes:
        """An envelope: the body itself, of its `payload` or `content`, or around all of it."""
        try:
            fields = _object.decode(body)
        except UNREADABLE_JSON:
            fields = {}
        if "compression" in fields and "payload" in fields:
            return body
        names = [*self._pipeline.name_fields, *_ID_FIELDS]
        try:
            name = next((text for one in names if (text := _text(fields.get(one)))), given)
            if "payload" in fields or "content" in fields:
                item = msgspec.json.decode(body)
                item["file_name"] = name or decode_raw(body).file_name
                made = encode_file_message(item)
            else:
                whole = encode(name or decode_raw(body).file_name, body, content_type_of(body))
                made = msgspec.json.decode(whole)
        except (ValueError, TypeError, RecursionError) as error:
            raise BadMessage(
                f"it cannot become an envelope: {error}",
                hint='send an envelope, or {"file_name": "1.json", "payload": ...}',
            ) from None
        known = self._pipeline.name_fields
        if known and "file_name" not in known:  # where the drain looks for the name
            made[known[0]] = made.pop("file_name")
        return msgspec.json.encode(made)


def _checked(lines: Sequence[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(lines, start=1):
        try:
            _raw_value.decode(line)
        except UNREADABLE_JSON as error:
            raise Refusal(
                400, f"line {number} is not JSON: {error}", hint="send one JSON value a line"
            ) from None
        yield line


def _check_flat(body: bytes) -> None:
    try:
        _flat.decode(body)
    except UNREADABLE_JSON as error:
        raise BadMessage(
            f"it is not a flat JSON object: {error}",
            hint="values are texts, numbers, true, false or null: put what is nested into a text, "
            "or set serve: {flat: false}",
        ) from None


def _given_id(body: bytes) -> str:
    """The id that the sender gave the message, if it could be a file's name."""
    if b"id" not in body:
        return ""
    try:
        given = _given.decode(body)
        for value in (given.rec_id, given.id):
            if value is not None and (text := str(value).strip()):
                return check_file_name(text)
    except (BadMessage, *UNREADABLE_JSON):
        return ""
    return ""


def _text(raw: Any) -> str:
    """A name out of a field: text or a number."""
    if raw is None:
        return ""
    value = msgspec.json.decode(raw)
    return str(value).strip() if isinstance(value, (str, int)) and value is not False else ""


def _derived(key: bytes, number: int) -> str:
    return _digest(b"id", key, str(number).encode()).hex()


def request_digests(key: bytes, body: bytes, form: Form) -> tuple[bytes, bytes]:
    """Of an idempotency key, and of what was sent with it."""
    return _digest(b"key", key), _digest(b"body", form.encode(), body)


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        digest.update(b"%d," % len(part))
        digest.update(part)
    return digest.digest()
