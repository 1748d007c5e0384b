"""Deliveries taken straight from the socket's bytes, before pika parses them frame by frame.

Why: more than half of a drain worker's CPU went into pika's general path from bytes to callback,
which reads 4 KiB at a time and copies what is left after each of the three frames of a message
(docs/decisions/0007). Here a whole delivery is read with three fixed structures. pika keeps the
connection, the channel, heartbeats, acknowledgements and every other frame.

What must always hold: what is taken here is exactly a `Basic.Deliver` of our channel with its
header and body, whole, between frame ends; anything else goes to pika untouched and in order. A
delivery that is not whole yet waits for more bytes; a large one goes to pika, frame by frame.

AMQP 0-9-1 frame: type u8, channel u16, size u32, payload, 0xCE; numbers big-endian.

pika has no public way in, so `take_deliveries` looks whether the pieces that it needs are there
and says no if they are not; then pika's own callback does the work.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any

import pika.spec

from fuploader_dagster.source import Message

READ_BYTES = 1 << 16
LARGE_BODY_BYTES = 1 << 20

_FRAME = Struct(">BHI")
_DELIVER = Struct(">BHIHHB")  # frame, class 60, method 60, length of the consumer tag
_TAG = Struct(">QB")
_HEADER = Struct(">BHIHHQH")  # frame, class 60, weight, body size, property flags
_FLAGS_OFFSET = _HEADER.size - 2
_METHOD, _CONTENT_HEADER, _BODY = 1, 2, 3
_BASIC, _BASIC_DELIVER = 60, 60
_HAS_MESSAGE_ID = 1 << 7
_FRAME_END = 0xCE

_INCOMPLETE = 0
"""`_take` needs more bytes."""
_FOREIGN = -1
"""What lies there is for pika."""


def take_deliveries(
    connection: pika.BlockingConnection,
    channel_number: int,
    append: Callable[[Message], None],
    first_receipt: int,
) -> bool:
    """From now on append deliveries of the channel as `Message`s; False if this pika is unlike.

    A message's receipt is its delivery tag plus `first_receipt`; its attributes are the encoded
    properties (`decode_properties`).
    """
    impl: Any = getattr(connection, "_impl", None)
    needed = ("_on_data_available", "_frame_buffer", "bytes_received", "_transport")
    if not all(hasattr(impl, name) for name in needed):
        return False
    if not hasattr(connection, "_request_channel_dispatch"):
        return False
    reader = _Deliveries(connection, impl, channel_number, append, first_receipt)
    impl._on_data_available = reader.on_data
    impl._transport._MAX_RECV_BYTES = READ_BYTES
    return True


def decode_properties(encoded: bytes) -> Any:
    """pika's `BasicProperties` of a message that was taken here."""
    return pika.spec.BasicProperties().decode(encoded)


class _Deliveries:
    """Stands between a connection's socket and pika."""

    def __init__(
        self,
        connection: Any,
        impl: Any,
        channel_number: int,
        append: Callable[[Message], None],
        first_receipt: int,
    ) -> None:
        self._connection = connection
        self._impl = impl
        self._pika = impl._on_data_available
        self._channel = channel_number
        self._append = append
        self._first_receipt = first_receipt

    def on_data(self, received: bytes) -> None:
        """Take what is ours out of the bytes that came, give the rest to pika, frame by frame."""
        impl = self._impl
        held: bytes = impl._frame_buffer
        data = held + received if held else received
        impl._frame_buffer = b""
        position, end = 0, len(data)
        took = False
        while position < end:
            after = self._take(data, position, end)
            if after > 0:
                took = True
                impl.bytes_received += after - position
            elif after == _INCOMPLETE or (after := _frame_end(data, position, end)) == _INCOMPLETE:
                impl._frame_buffer = data[position:]
                break
            else:
                self._pika(data[position:after])
            position = after
        if took:  # or `process_data_events` would go on waiting
            self._connection._request_channel_dispatch(self._channel)

    def _take(  # noqa: PLR0911  one return for each reason why it is not to be taken
        self, data: bytes, position: int, end: int
    ) -> int:
        """Append the delivery that begins here and return where it ends, or one of the above."""
        if data[position] != _METHOD:
            return _FOREIGN
        if end - position < _DELIVER.size:
            return _INCOMPLETE
        kind, channel, size, class_id, method_id, tag_bytes = _DELIVER.unpack_from(data, position)
        if channel != self._channel or class_id != _BASIC or method_id != _BASIC_DELIVER:
            return _FOREIGN
        header = position + _FRAME.size + size + 1
        if end - header < _HEADER.size:
            return _INCOMPLETE
        tag, redelivered = _TAG.unpack_from(data, position + _DELIVER.size + tag_bytes)
        kind, channel, size, class_id, _, body_bytes, flags = _HEADER.unpack_from(data, header)
        if kind != _CONTENT_HEADER or channel != self._channel or body_bytes > LARGE_BODY_BYTES:
            return _FOREIGN
        after_header = header + _FRAME.size + size
        if after_header >= end:
            return _INCOMPLETE
        body, after = _body(data, after_header + 1, end, body_bytes, channel)
        if after <= 0:
            return after
        if data[header - 1] != _FRAME_END or data[after_header] != _FRAME_END:
            return _FOREIGN  # pika finds the words for a broken stream
        properties = data[header + _FLAGS_OFFSET : after_header]
        message_id = decode_properties(properties).message_id if flags & _HAS_MESSAGE_ID else None
        receipt = self._first_receipt + tag
        self._append(Message(body, receipt, bool(redelivered & 1), message_id, properties))
        return after


def _body(data: bytes, position: int, end: int, size: int, channel: int) -> tuple[bytes, int]:
    """The body that begins here, of one frame or several, and where it ends or why it is none."""
    parts: list[bytes] = []
    missing = size
    while missing:
        if end - position < _FRAME.size:
            return b"", _INCOMPLETE
        kind, of_channel, length = _FRAME.unpack_from(data, position)
        if kind != _BODY or of_channel != channel or length > missing:
            return b"", _FOREIGN
        start = position + _FRAME.size
        position = start + length + 1
        if position > end:
            return b"", _INCOMPLETE
        if data[position - 1] != _FRAME_END:
            return b"", _FOREIGN
        parts.append(data[start : start + length])
        missing -= length
    return parts[0] if len(parts) == 1 else b"".join(parts), position


def _frame_end(data: bytes, position: int, end: int) -> int:
    """Where the frame that begins here ends, or `_INCOMPLETE`."""
    if end - position < _FRAME.size:
        return _INCOMPLETE
    after = position + _FRAME.size + int(_FRAME.unpack_from(data, position)[2]) + 1
    return after if after <= end else _INCOMPLETE
