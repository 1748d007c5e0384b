"""From what a processor's function returned to results.

What must always hold: whatever a function returns becomes results, or a `BadItem` that says what to
return instead; never a result that the user did not mean (None, a path, an open file). All results
of an item together have at most `max_bytes`; the check is made while a generator still yields.

A list, a tuple or a generator holds one result for each of its members, and a member that is a list
is one JSON value. Text is UTF-8, JSON as FUploader writes it.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from fuploader_dagster.contracts.processor import Result
from fuploader_dagster.errors import BadItem, BadMessage
from fuploader_dagster.processing.envelope import check_file_name

MAX_RESULTS = 100_000
"""Of one item: a generator that never ends is an error, not a reason to run out of memory."""
MAX_CONTENT_TYPE = 255
_RETURN = "return a Result, bytes, text, a JSON value, or a list of these; [] for no result"

Written = tuple[bytes, str, str]
"""A result as it is sent: content, name, content type."""


class Results:
    """The results of one item, while they are collected."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        self.written: list[Written] = []

    def take(self, returned: Any) -> list[Written]:
        """All that a function returned. Raises `BadItem`, and what a generator raises."""
        if isinstance(returned, (list, tuple, Iterator)) and not isinstance(returned, io.IOBase):
            for one in returned:
                self._add(one, member=True)
        else:
            self._add(returned, member=False)
        return self.written

    async def take_async(self, returned: AsyncIterator[Any]) -> list[Written]:
        """All that an async generator yields."""
        async for one in returned:
            self._add(one, member=True)
        return self.written

    def _add(self, value: Any, *, member: bool) -> None:
        if len(self.written) >= MAX_RESULTS:
            raise BadItem(f"it gave more than {MAX_RESULTS:,} results")
        result = value if isinstance(value, Result) else _as_result(value, member)
        content, name, content_type = result.content, result.name, result.content_type
        if isinstance(content, str):
            content = _utf8(content)
        elif not isinstance(content, bytes):
            if not isinstance(content, (bytearray, memoryview)):
                raise BadItem(
                    f"the content of its Result is a {_type(content)}", hint="bytes or text can be"
                )
            content = bytes(content)
        self._size += len(content)
        if self._size > self._max_bytes:
            raise BadItem(
                f"its results have more than {self._max_bytes:,} bytes together",
                hint="raise max_result_bytes if such results are intended",
            )
        self.written.append((content, _checked_name(name), _checked_type(content_type)))


def _as_result(value: Any, member: bool) -> Result:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Result(bytes(value))
    if isinstance(value, str):
        return Result(_utf8(value), content_type="text/plain; charset=utf-8")
    if isinstance(value, (Mapping, bool, int, float)) or (
        member and isinstance(value, (list, tuple))
    ):
        return Result(_json(value), content_type="application/json")
    if value is None:
        what = "yielded None" if member else "returned None"
        raise BadItem(f"it {what}", hint=_RETURN)
    if isinstance(value, os.PathLike):
        raise BadItem(
            "it returned a path, not content", hint="return path.read_bytes(), and remove the file"
        )
    if isinstance(value, io.IOBase) or hasattr(value, "read"):
        raise BadItem(
            f"it returned an open file ({_type(value)})",
            hint="return what read() or getvalue() gives",
        )
    raise BadItem(f"it returned a value of type {_type(value)}", hint=_RETURN)


def _json(value: Any) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_unknown)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadItem(
            f"what it returned cannot be written as JSON: {error}", hint=_RETURN
        ) from None
    return _utf8(text)


def _unknown(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a value of type {_type(value)}")


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadItem(f"the text that it returned cannot be written as UTF-8: {error}") from None


def _checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise BadItem(f"the name of its Result is a {_type(name)}, not text")
    if not name:
        return ""  # the item's
    try:
        return check_file_name(name)
    except BadMessage as error:
        raise BadItem(
            error.message, hint="give the Result a plain file name, or none for that of the item"
        ) from None


def _checked_type(content_type: Any) -> str:
    if not isinstance(content_type, str):
        raise BadItem(f"the content_type of its Result is a {_type(content_type)}, not text")
    if len(content_type) > MAX_CONTENT_TYPE or not (
        content_type.isascii() and (content_type.isprintable())
    ):
        raise BadItem(
            f"the content_type of its Result is not one: {content_type[:80]!a}",
            hint="something like image/png",
        )
    return content_type


def _type(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
