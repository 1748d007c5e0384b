"""The producer API: FUploader's message functions, with the same names and the same results.

What must always hold: a program that imports these from `fuploader_dagster` instead of
`file_uploader` sees the same values, the same bytes on disk and in the queue, and errors of the
same standard types. We chose two things ourselves:

- The modification time in the gzip header is zero, so encoding an item twice gives the same bytes.
  Every other byte is the one that `gzip.compress` writes.
- `parse_file_message` gives a message without a name a random one, as FUploader does; the drain
  itself (`envelope.decode_envelope`) derives the name from the body.

`envelope` describes the form of an envelope.
"""

from __future__ import annotations

import base64
import gzip
import inspect
import json
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fuploader_dagster.processing.envelope import NAME_FIELDS, payload_of, plain_name, read_envelope

PublishCallable = Callable[[str], Awaitable[None] | None]
"""Sends one body to the queue; may be a coroutine function."""

_GZIP_TIME = slice(4, 8)


@dataclass(frozen=True)
class FileMessage:
    """What is to become a file. The payload is `bytes`, `str` or anything that JSON can write."""

    payload: Any
    file_name: str | None = None


@dataclass(frozen=True)
class DecodedFilePayload:
    """A message unwrapped from its envelope, its payload parsed."""

    file_name: str
    payload: Any
    content_type: str

    @property
    def file_id(self) -> str:
        """The file's name, under its older name."""
        return self.file_name


def is_encoded(item: Mapping[str, Any]) -> bool:
    """Whether the mapping is an envelope already; `encode_file_message` returns it unchanged."""
    named = any(field in item for field in NAME_FIELDS)
    return named and "compression" in item and "payload" in item


def encode_file_message(
    item: FileMessage | Mapping[str, Any],
    *,
    file_name_field: str = "file_name",
    id_field: str | None = None,
) -> dict[str, Any]:
    """Wrap one item into an envelope, as a dict ready for `json.dumps`.

    Takes a `FileMessage`, or a mapping with `payload` or else `content`. The mapping's name is the
    first non-empty one of `file_name_field`, `file_name`, `id_field` (default `file_id`) and
    `aweme_id`; a UUID if there is none. An envelope is returned unchanged. Raises `ValueError` for
    a mapping without payload and for a name that is not a plain file name.
    """
    if isinstance(item, FileMessage):
        payload, name = item.payload, item.file_name or ""
    elif is_encoded(item):
        return dict(item)
    else:
        fields = (file_name_field, "file_name", id_field or "file_id", "aweme_id")
        name = str(next(filter(None, map(item.get, fields)), "")).strip()
        if "payload" not in item and "content" not in item:
            raise ValueError("payload is required")
        payload = item["payload"] if "payload" in item else item["content"]
    name = plain_name(name or uuid.uuid4().hex)
    content, content_type = _content_of(payload)
    return {
        "file_name": name,
        "compression": "gzip",
        "content_type": content_type,
        "payload": base64.b64encode(_gzipped(content)).decode("ascii"),
    }


def parse_file_message(
    raw_body: bytes | str, *, name_fields: tuple[str, ...] = NAME_FIELDS
) -> DecodedFilePayload:
    """Unwrap an envelope and parse its payload, of any size.

    Raises `ValueError`, `EOFError`, `OSError` or `zlib.error`, depending on what is damaged.
    """
    name, content_type, content = read_envelope(raw_body, name_fields, max_bytes=None)
    return DecodedFilePayload(
        file_name=name or uuid.uuid4().hex,
        payload=payload_of(content, content_type),
        content_type=content_type,
    )


def file_message_name(data: Any, *, suffix: str = ".json") -> str:
    """The local file name of a decoded message: its name, ending in `suffix`.

    Takes an `Envelope`, a `DecodedFilePayload`, anything else with a `file_name`, or a mapping with
    `file_name` or `file_id`. Without a name it is a UUID.
    """
    if not suffix.startswith("."):
        raise ValueError("suffix must start with '.'")
    name = getattr(data, "file_name", "")
    if isinstance(data, Mapping):
        name = name or data.get("file_name") or data.get("file_id")
    name = plain_name(str(name or "").strip() or uuid.uuid4().hex)
    return name if name.endswith(suffix) else name + suffix


def serialize_file_payload(payload: Any, *, content_type: str = "json") -> bytes:
    """The bytes that FUploader writes to disk for a parsed payload."""
    kind = content_type.lower()
    if kind == "json":
        return json.dumps(payload, ensure_ascii=False).encode()
    if kind == "text":
        return str(payload).encode()
    if kind != "bytes":
        raise ValueError(f"unsupported content_type: {kind}")
    if not isinstance(payload, bytes):
        raise TypeError("bytes payload must be bytes")
    return payload


async def publish_file_messages(
    items: Iterable[FileMessage | Mapping[str, Any]],
    publish: PublishCallable,
    *,
    file_name_field: str = "file_name",
    id_field: str | None = None,
) -> None:
    """Encode items one after the other and pass each body to `publish`."""
    publisher = FileMessagePublisher(publish, file_name_field=file_name_field, id_field=id_field)
    await publisher.publish_many(items)


class FileMessagePublisher:
    """Encodes items and passes the bodies to the caller's `publish` function."""

    def __init__(
        self,
        publish: PublishCallable,
        *,
        file_name_field: str = "file_name",
        id_field: str | None = None,
    ) -> None:
        self._publish = publish
        self._file_name_field = file_name_field
        self._id_field = id_field

    async def publish_many(self, items: Iterable[FileMessage | Mapping[str, Any]]) -> None:
        """Publish the items in order; each is published before the next is encoded."""
        for item in items:
            await self.publish_one(item)

    async def publish_one(self, item: FileMessage | Mapping[str, Any]) -> None:
        """Publish one item as compact JSON text."""
        envelope = encode_file_message(
            item, file_name_field=self._file_name_field, id_field=self._id_field
        )
        result = self._publish(_compact(envelope))
        if inspect.isawaitable(result):
            await result


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _content_of(payload: Any) -> tuple[bytes, str]:
    if isinstance(payload, bytes):
        return payload, "bytes"
    if isinstance(payload, str):
        return payload.encode(), "text"
    return _compact(payload).encode(), "json"


def _gzipped(content: bytes) -> bytes:
    packed = bytearray(gzip.compress(content))
    packed[_GZIP_TIME] = bytes(4)
    return bytes(packed)
