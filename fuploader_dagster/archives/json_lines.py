"""The format of one line of a `.jsonl.zst` archive: a member as a JSON object.

What must always hold: decoding a line gives back the name, the message headers and every byte of
the content, or a `ValueError`. Each line was decoded and compared before it is given out.

    {"name":"1.json","headers":{"cmd":"thumb"},"newlines":[7],"content":{"id": 1} }

The content is the last field, under one of three names:

- `content`: it is JSON, and stands there as it is: with its spaces, its duplicate keys, its forms
  of numbers. Only a newline cannot stand in a line: it is a space there, and `newlines` says where
  (each counted from the one before it, the first from the start).
- `content_text`: other text in UTF-8, as a JSON string. So is JSON that other programs may stumble
  over: carriage returns, more than 100 levels, numbers that no float holds, half a surrogate pair.
- `content_base64`: anything else, or text that would be longer as a JSON string.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64encode
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec

from fuploader_dagster.archives.frame_encoder import not_decoded
from fuploader_dagster.errors import UNREADABLE_JSON

LINE_START = b'{"name":'
"""How each line begins."""
_MOST_LEVELS = 100
_STRINGS = re.compile(rb'"[^"]*"')
_BASE64_TEXT = re.compile(rb"[A-Za-z0-9+/]*={0,2}")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_CONTENT, _TEXT, _BASE64 = b"content", b"content_text", b"content_base64"


class Line(NamedTuple):
    """A member."""

    name: str
    headers: str
    content: bytes | memoryview


class _Fields(msgspec.Struct):
    name: str
    headers: msgspec.Raw = msgspec.Raw(b"")
    newlines: list[int] = []
    content: msgspec.Raw = msgspec.Raw(b"")
    content_text: str | None = None
    content_base64: msgspec.Raw = msgspec.Raw(b"")


_decode_fields = msgspec.json.Decoder(_Fields).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.encode


def encode_line(line: Line) -> bytes:
    """The line, with its newline. Raises `DamagedArchive` if it does not decode to the same."""
    for make in (_as_json, _as_text, _as_base64):
        made = make(line)
        if made is not None and _decodes_to(made, line):
            return made
    raise not_decoded()


def _decodes_to(made: bytes, line: Line) -> bool:
    try:
        return decode_line(made) == line
    except ValueError:
        return False


def decode_line(line: bytes) -> Line:
    """The member in a line. Raises `ValueError`."""
    try:
        fields = _decode_fields(line)
    except UNREADABLE_JSON as error:
        raise ValueError(f"it is no line of this format: {error}") from error
    headers = bytes(fields.headers).decode()
    if fields.content_text is not None:
        return Line(fields.name, headers, fields.content_text.encode("utf-8", "strict"))
    if encoded := memoryview(fields.content_base64):
        return Line(fields.name, headers, _from_base64(encoded))
    head = _head(fields.name, headers, fields.newlines, _CONTENT)
    if not line.startswith(head) or not line.endswith(b"}\n"):
        raise ValueError("its fields are not those of this format")
    content = memoryview(line)[len(head) : -2]
    if fields.newlines:
        return Line(fields.name, headers, _with_newlines(content, fields.newlines))
    return Line(fields.name, headers, content)


def _from_base64(quoted: memoryview) -> memoryview:
    """Without a copy of what is decoded as text: some members are large."""
    if bytes(quoted[:1]) != b'"' or bytes(quoted[-1:]) != b'"':
        raise ValueError("its content is no text")
    try:
        if not _BASE64_TEXT.fullmatch(quoted[1:-1]):
            raise ValueError("its content is not base64")
        return memoryview(binascii.a2b_base64(quoted[1:-1]))
    except binascii.Error as error:
        raise ValueError(f"its content is not base64: {error}") from error


def _with_newlines(content: memoryview, newlines: list[int]) -> memoryview:
    changed = bytearray(content)
    for at in accumulate(newlines):
        if not 0 <= at < len(changed) or changed[at] != ord(" "):
            raise ValueError("a newline is said to be where there is no space")
        changed[at] = ord("\n")
    return memoryview(changed)


def _head(name: str, headers: str, newlines: list[int], field: bytes) -> bytes:
    """All of a line before its content."""
    return b"".join(
        (
            LINE_START,
            _encode(name),
            b',"headers":' + headers.encode() if headers else b"",
            b',"newlines":' + _encode(newlines) if newlines else b"",
            b',"%b":' % field,
        )
    )


def json_value(content: bytes) -> Any:
    """What the content says, if it is JSON that every program reads. Raises `ValueError`."""
    try:
        value = _decode_any(content)
    except UNREADABLE_JSON as error:
        raise ValueError("it is no JSON") from error
    if _levels(content) > _MOST_LEVELS:
        raise ValueError(f"it has more than {_MOST_LEVELS} levels")
    return value


def _as_json(line: Line) -> bytes | None:
    content = bytes(line.content)  # the same, if it is that
    try:
        json_value(content)
    except ValueError:
        return None
    if b"\r" in content:
        return None
    newlines = []
    if b"\n" in content:
        places = [found.start() for found in re.finditer(b"\n", content)]
        newlines = [at - before for at, before in zip(places, [0, *places], strict=False)]
        content = content.replace(b"\n", b" ")
    return _head(line.name, line.headers, newlines, _CONTENT) + content + b"}\n"


def _levels(content: bytes) -> int:
    """How deep the brackets of valid JSON are nested; 0 if there are too few to matter."""
    if content.count(b"[") + content.count(b"{") <= _MOST_LEVELS:
        return 0
    without = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = _STRINGS.sub(b"", without).translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0)


def _as_text(line: Line) -> bytes | None:
    try:
        text = _encode(bytes(line.content).decode())
    except UnicodeDecodeError:
        return None
    if len(text) > 2 + 4 * -(-len(line.content) // 3):
        return None
    return _head(line.name, line.headers, [], _TEXT) + text + b"}\n"


def _as_base64(line: Line) -> bytes | None:
    return _head(line.name, line.headers, [], _BASE64) + b'"' + b64encode(line.content) + b'"}\n'
