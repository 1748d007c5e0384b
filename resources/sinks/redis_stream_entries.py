"""From rows to the entries of a Redis stream, in chunks that one script can add.

What must always hold: a value is stored as it is, or its item is rejected; an item is in with all
its rows or with none. A reason names the field and what is wrong, never the value. Memory holds one
chunk, and the rows of one item.

Redis has bytes only. So, where each value is a field of its own: text is UTF-8, numbers and
booleans are as in JSON, a dict or a list is JSON text, and None has no field. Where the row is one
field, it is JSON.
"""

from __future__ import annotations

import enum
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from fuploader_dagster.contracts.sink import ItemRows, RejectedItem, Row
from fuploader_dagster.resources.sql.values import Unfit, text
from fuploader_dagster.resources.states.redis_errors import shown

CHUNK_ENTRIES = 500
CHUNK_BYTES = 1 << 20
"""A chunk is full when it has so many. The server does nothing else while it adds one."""
MOST_FIELDS = 1_000
"""Of an entry. A script can pass on about 8,000 arguments."""
MOST_BYTES = 64 << 20
"""Of an entry. Redis takes 512 MiB, and has it in memory several times while a script runs."""

Entry = list[bytes]
"""Names and values in turn."""
Encode = Callable[[Row], Entry]


class Chunks:
    """The rows of items as chunks: `msgpack` of a list of entries."""

    def __init__(self, encode: Encode) -> None:
        self.rows = 0
        self.chunks = 0
        self.rejected: list[RejectedItem] = []
        self._encode = encode

    def of(self, items: Iterable[ItemRows]) -> Iterator[bytes]:
        """Bad items are in `rejected` afterwards."""
        chunk: list[Entry] = []
        size = 0
        for item in items:
            for entry in self._entries(item):
                chunk.append(entry)
                size += sum(map(len, entry))
                if len(chunk) >= CHUNK_ENTRIES or size >= CHUNK_BYTES:
                    yield self._packed(chunk)
                    chunk, size = [], 0
        if chunk:
            yield self._packed(chunk)

    def _entries(self, item: ItemRows) -> Sequence[Entry]:
        reason = ""
        try:
            return [self._encode(row) for row in item.rows]
        except Unfit as error:
            reason = str(error)
        self.rejected.append(RejectedItem(item.position, sys.intern(reason)))  # often the same
        return ()

    def _packed(self, chunk: Sequence[Entry]) -> bytes:
        self.rows += len(chunk)
        self.chunks += 1
        return _array([_array([_text(part) for part in entry]) for entry in chunk])


def _array(elements: Sequence[bytes]) -> bytes:
    return b"".join([b"\xdd", len(elements).to_bytes(4, "big"), *elements])


def _text(value: bytes) -> bytes:
    """As msgpack has it for text, though it may be any bytes: Redis does not read its bin type."""
    return b"\xdb" + len(value).to_bytes(4, "big") + value


def flat(row: Row) -> Entry:
    """Each value is a field. Raises `Unfit`, as `as_json` does."""
    entry: Entry = []
    for name, value in row.items():
        if value is not None:
            entry += _field(name, value)
    if not entry:
        raise Unfit("the row has no values, and an entry needs a field")
    if len(entry) > 2 * MOST_FIELDS:
        raise Unfit(f"the row has more than {MOST_FIELDS:,} fields")
    return _sized(entry)


def as_json(field: str) -> Encode:
    """The row is one field of this name."""
    name = field.encode()

    def encode(row: Row) -> Entry:
        return _sized([name, _json(dict(row))])

    return encode


def _field(name: Any, value: Any) -> Entry:
    if not isinstance(name, str):
        raise Unfit(f"the name of a field is a {type(name).__name__}, not a text")
    reason = ""
    try:
        return [text(name).encode(), _bytes_of(value)]
    except Unfit as error:
        reason = str(error)
    raise Unfit(f"field {shown(name)}: {reason}")


def _sized(entry: Entry) -> Entry:
    if sum(map(len, entry)) > MOST_BYTES:
        raise Unfit(f"the row has more than {MOST_BYTES:,} bytes")
    return entry


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        return text(str.__str__(value)).encode()
    if isinstance(value, Decimal | UUID | date | time):
        return str(_plain(value)).encode()
    return _json(value)


def _json(value: Any) -> bytes:
    if isinstance(value, float) and not math.isfinite(value):
        raise Unfit("a number that is not finite")
    try:
        written: str = json.dumps(
            value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain
        )
    except (TypeError, ValueError, RecursionError):
        raise Unfit("what cannot be written as JSON") from None
    return text(written).encode()


def _plain(value: Any) -> Any:
    """For what JSON does not have."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError
