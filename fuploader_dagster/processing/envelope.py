"""From a message's body to a file's name and bytes, and back.

What must always hold:

- A body that cannot become a file raises `BadMessage`, and nothing else, whatever its bytes are.
- The payload's bytes are kept as received. They are parsed only when somebody asks for `payload`.
- A small message cannot fill the memory: unpacking stops at `max_bytes`.
- Decoding a body twice gives the same name. A body without a name gets one made from its own bytes
  (UUID version 5), so a redelivery does not become a second file.

The envelope is a JSON object; producers that use FUploader write it like this:

    {"file_name": "7301", "compression": "gzip", "content_type": "json", "payload": "H4sIA..."}

`payload` is base64 of gzip of the content. `content_type` is `json` (the default), `text` or
`bytes`. The name is the first non-empty one of the name fields. Other fields are ignored.

How: an envelope of exactly that form takes the fast path: one typed decode, in which msgspec turns
the base64 into bytes, and one bounded decompression. Anything unusual (numbers as names, other
letter case, line breaks in the base64, several gzip members, gzip headers with extras) goes to
`read_envelope`, which is as tolerant as FUploader's reader and decides what is bad. Where the fast
path answers, both give the same answer. The one difference from FUploader: content of type `json`
is not parsed here, so damaged JSON shows when `payload` is asked for, or to the reader of the
archive.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import unicodedata
import uuid
import zlib
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import msgspec
from isal import isal_zlib

from fuploader_dagster.errors import BadMessage, ConfigError

NAME_FIELDS = ("file_name", "file_id", "aweme_id")
CONTENT_TYPES = frozenset(("json", "text", "bytes"))
MAX_FILE_NAME_BYTES = 255
"""The limit of ext4, xfs and most other file systems."""

_BODY_NAMES = uuid.UUID("6f3c1c0e-5d0a-5c55-9d0b-2b7c2f1f8a51")
_PLAIN_GZIP = b"\x1f\x8b\x08\x00"
"""A gzip header without extras. Others take the tolerant path: isal is stricter about them."""
_COMPRESSION_LEVEL = 2
"""Of isal: a fifth of the time of gzip's level 9, and 5 % larger on small JSON documents."""

_IsalError: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stub is wrong

# Everything the standard library raises on damaged JSON, base64 or gzip.
_DAMAGE = (ValueError, EOFError, OSError, zlib.error, RecursionError)


class Envelope(msgspec.Struct, frozen=True, dict=True):
    """A decoded message: what a file name generator, a parser and the segment work on."""

    file_name: str
    content_type: str
    """`json`, `text` or `bytes`."""
    content: bytes
    """The payload's bytes as received, unpacked, not parsed."""

    @cached_property
    def payload(self) -> Any:
        """The content as a JSON value, text or bytes. Raises `BadMessage` if it is not that."""
        try:
            return payload_of(self.content, self.content_type)
        except (ValueError, RecursionError) as error:
            raise BadMessage(
                f"the content of {self.file_name!r} is not {self.content_type}: {error}",
                hint="the producer wrote a content_type that does not match its payload",
            ) from error

    @property
    def file_id(self) -> str:
        """The file's name, under the name that older strategies use."""
        return self.file_name

    def __repr__(self) -> str:
        return f"<Envelope {self.file_name!r}, {self.content_type}, {len(self.content)} bytes>"


def decode_envelope(
    body: bytes,
    *,
    name_fields: tuple[str, ...] = NAME_FIELDS,
    max_bytes: int,
) -> Envelope:
    """Unwrap an envelope of at most `max_bytes` of content. Raises `BadMessage`."""
    wire = _wire_form(name_fields)
    try:
        form = wire.decoder.decode(body)
        packed = form.payload
        if (
            form.compression == "gzip"
            and form.content_type in CONTENT_TYPES
            and packed.startswith(_PLAIN_GZIP)
            and (body.isascii() or body.decode())  # msgspec does not look into skipped strings
        ):
            unpack = isal_zlib.decompressobj(wbits=31)
            content = unpack.decompress(packed, max_bytes + 1)
            if len(content) > max_bytes:
                raise _too_large(max_bytes)
            if unpack.eof and not unpack.unused_data:
                if form.content_type == "text" and not content.isascii():
                    content.decode()
                name = plain_name(_first_name(form, wire.attributes))
                return Envelope(name or _name_from(body), form.content_type, content)
    except (msgspec.DecodeError, ValueError, RecursionError, _IsalError):
        pass  # unusual or bad: the tolerant path decides which
    try:
        name, content_type, content = read_envelope(body, name_fields, max_bytes)
    except _DAMAGE as error:
        raise BadMessage(
            f"the message is not an envelope: {_reason(error)}", hint=_better_format(body)
        ) from error
    return Envelope(name or _name_from(body), content_type, content)


def _better_format(body: bytes) -> str:
    """What to set, if the producers' bodies are no envelopes and never will be."""
    try:
        fields = _json_object(body)
    except _DAMAGE:
        return (
            "it is no JSON object: if producers send such bodies, set message_format: raw; each "
            "body is then a file"
        )
    if fields.keys() & {"compression", "content_type"}:
        return "it looks like an envelope: correct the producer, see `fuploader publish`"
    return (
        "it is plain JSON: if producers send that, set message_format: json; each body is then a "
        "file, and name_fields say which of its fields names it"
    )


def decode_json(body: bytes, *, name_fields: tuple[str, ...] = NAME_FIELDS) -> Envelope:
    """Take a JSON object itself as the content, named by its own fields. Raises `BadMessage`."""
    wire = _wire_form(name_fields, with_payload=False)
    try:
        if not body.isascii():
            body.decode()
        try:
            name = _first_name(wire.decoder.decode(body), wire.attributes)
        except msgspec.DecodeError:
            name = _name_in(_json_object(body), name_fields)
        plain_name(name)
    except _DAMAGE as error:
        raise BadMessage(
            f"the message is not a JSON object: {_reason(error)}",
            hint="if producers send other bodies, set message_format to envelope or raw",
        ) from error
    return Envelope(name or _name_from(body), "json", body)


def decode_raw(body: bytes, message_id: str | None = None) -> Envelope:
    """Take the body itself as the content, named by the message's id or a UUID of the body."""
    if message_id:
        try:
            return Envelope(check_file_name(message_id), "bytes", body)
        except BadMessage:
            pass  # a message id that cannot be a file name is not an error
    return Envelope(_name_from(body), "bytes", body)


def encode(name: str, content: bytes, content_type: str = "json") -> bytes:
    """Wrap content into an envelope; the same arguments give the same bytes.

    Raises `ValueError` for a name that is not a plain file name or for another content type.
    """
    if content_type not in CONTENT_TYPES:
        raise ValueError(f"content_type must be json, text or bytes, not {content_type!r}")
    if not name or name != name.strip():
        raise ValueError(f"a name must not be empty or have spaces around it: {_shown(name)}")
    plain_name(name)
    packed = isal_zlib.compress(content, _COMPRESSION_LEVEL, 31)
    return _encoder.encode(_Written(name, "gzip", content_type, packed))


def content_type_of(content: bytes) -> str:
    """`json`, `text` or `bytes`: the first that readers of the envelope will accept."""
    for content_type in ("json", "text"):
        try:
            payload_of(content, content_type)
        except (ValueError, RecursionError):
            continue
        return content_type
    return "bytes"


def message_of(
    name: str, content: bytes, message_format: str, headers: Mapping[str, str]
) -> tuple[bytes, dict[str, Any]]:
    """Body and headers of a message that becomes this file in a pipeline without a parser.

    `headers` are those that were kept with the file.
    """
    if message_format == "envelope":
        return encode(name, content, content_type_of(content)), {**headers}
    return content, {**headers, "message_id": name} if message_format == "raw" else {**headers}


def check_file_name(name: str) -> str:
    """Return the name if a file can have it on any disk and in any archive, or raise `BadMessage`.

    Refused: empty names, `.`, `..`, slashes, backslashes, control characters, characters that UTF-8
    cannot encode, more than 255 bytes.
    """
    if (
        name.isascii()
        and name.isprintable()
        and len(name) <= MAX_FILE_NAME_BYTES
        and "/" not in name
        and "\\" not in name
        and name not in ("", ".", "..")
    ):
        return name
    if not name:
        raise _bad_name(name, "it is empty")
    if name in (".", ".."):
        raise _bad_name(name, "it means a directory")
    if "/" in name or "\\" in name:
        raise _bad_name(name, "it contains a path separator")
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise _bad_name(name, "it contains a control character")
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise _bad_name(name, "it contains half a surrogate pair") from None
    if size_bytes > MAX_FILE_NAME_BYTES:
        raise _bad_name(name, f"it has {size_bytes} bytes, the limit is {MAX_FILE_NAME_BYTES}")
    return name


def read_envelope(
    body: bytes | str, name_fields: tuple[str, ...], max_bytes: int | None
) -> tuple[str, str, bytes]:
    """Read any envelope that FUploader reads: its name (may be empty), content type and content.

    Raises what the standard library raises on damage, and `BadMessage` above `max_bytes`.
    """
    fields = _json_object(body)
    name = plain_name(_name_in(fields, name_fields))
    if _text_in(fields, "compression").lower() != "gzip":
        raise ValueError("its compression is not gzip")
    encoded = _text_in(fields, "payload")
    if not encoded:
        raise ValueError("it has no payload")
    content = _unpack(base64.b64decode(encoded.encode("ascii")), max_bytes)
    content_type = str(fields.get("content_type") or "json").strip().lower()
    if content_type not in CONTENT_TYPES:
        raise ValueError(f"its content type is {_shown(content_type)}, not json, text or bytes")
    if content_type == "text":
        content.decode()
    return name, content_type, content


def payload_of(content: bytes, content_type: str) -> Any:
    """The content's value. Raises `ValueError` if the content is not of that type."""
    if content_type == "bytes":
        return content
    text = content.decode()
    return json.loads(text) if content_type == "json" else text


class _Written(msgspec.Struct):
    file_name: str
    compression: str
    content_type: str
    payload: bytes


_encoder = msgspec.json.Encoder()


class _WireForm(NamedTuple):
    decoder: msgspec.json.Decoder[Any]
    attributes: tuple[str, ...]


@lru_cache(maxsize=64)
def _wire_form(name_fields: tuple[str, ...], with_payload: bool = True) -> _WireForm:
    """The typed decoder for these name fields, and its name attributes in order."""
    names = {field: f"name_{number}" for number, field in enumerate(name_fields)}
    fields: list[tuple[str, Any, Any]] = [
        (attribute, str | int | None, msgspec.field(name=field, default=None))
        for field, attribute in names.items()
    ]
    if with_payload:
        own = [("payload", bytes, b""), ("compression", str, ""), ("content_type", str, "json")]
        for taken in names.keys() & {field for field, _, _ in own}:
            raise ConfigError(
                f"name_fields cannot contain {taken}: it has another meaning in an envelope"
            )
        fields += own
    return _WireForm(msgspec.json.Decoder(msgspec.defstruct("Wire", fields)), tuple(names.values()))


def _first_name(form: Any, attributes: tuple[str, ...]) -> str:
    for attribute in attributes:
        name = str(getattr(form, attribute) or "").strip()
        if name:
            return name
    return ""


def plain_name(name: str) -> str:
    """The name, if it stays inside its directory. `check_file_name` demands more than that."""
    if "/" in name or "\\" in name or name in {".", ".."}:
        raise ValueError(f"its name is not a plain file name: {_shown(name)}")
    return name


def _json_object(body: bytes | str) -> dict[str, Any]:
    value = json.loads(body.decode() if isinstance(body, bytes) else body)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def _text_in(fields: dict[str, Any], field: str) -> str:
    return str(fields.get(field) or "").strip()


def _name_in(fields: dict[str, Any], name_fields: tuple[str, ...]) -> str:
    return next(filter(None, (_text_in(fields, field) for field in name_fields)), "")


def _unpack(packed: bytes, max_bytes: int | None) -> bytes:
    size = 0 if max_bytes is None else max_bytes + 1
    try:
        one_member = zlib.decompressobj(wbits=31)
        content = one_member.decompress(packed, size)
        whole = one_member.eof and not one_member.unused_data
    except zlib.error:
        whole = False
    if not whole:  # several members, padding, damage: gzip knows, but takes five times as long
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            content = file.read(size or -1)
    if max_bytes is not None and len(content) > max_bytes:
        raise _too_large(max_bytes)
    return content


def _name_from(body: bytes) -> str:
    """A UUID of the body: a redelivery gets the same one."""
    digest = hashlib.sha1(_BODY_NAMES.bytes + body, usedforsecurity=False).digest()
    return uuid.UUID(bytes=digest[:16], version=5).hex


def _shown(text: str) -> str:
    """An excerpt of a message for an error: short and printable."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")


def _reason(error: BaseException) -> str:
    return _shown(str(error) or type(error).__name__)[1:-1]


def _too_large(max_bytes: int) -> BadMessage:
    return BadMessage(
        f"the payload unpacks to more than {max_bytes} bytes",
        hint="raise max_unpacked_bytes if such messages are intended",
    )


def _bad_name(name: str, why: str) -> BadMessage:
    return BadMessage(
        f"the file name {_shown(name)} cannot be used: {why}",
        hint="correct the producer or the file name generator, then run "
        "`fuploader dead-letters requeue`",
    )
