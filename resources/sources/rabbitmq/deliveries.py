"""Deliveries read from the socket's bytes, before pika parses them: by private names of pika.

`_NEEDED` lists the names, `pika_internals` the tested versions. Where a name is missing, pika reads
the deliveries itself, which takes about twice the CPU and fails on properties that Python cannot
represent; a warning says so.

Why: more than half of a drain worker's CPU went into pika's general path from bytes to callback,
which reads 4 KiB at a time and copies the rest after each of the three frames of a message
(docs/decisions/0007). Here a whole delivery is read with a few fixed structures. pika keeps the
connection, the channel, heartbeats, acknowledgements and every other frame.

What must always hold:

- Every delivery of our channel is read here, in the order in which it came. Delivery tags follow
  each other without a hole, because one acknowledgement covers all tags before it. A hole is an
  error.
- pika never sees a frame of a delivery, so it never decodes properties: those that Python cannot
  represent would raise in the middle of its loop, each time the message is delivered.
- Every other frame goes to pika complete, unchanged, and in order.
- What breaks the protocol raises; pika closes the connection and names the error. A frame that
  announces more bytes than agreed (`frame_max`) is such an error before its bytes arrive.

How: a complete delivery in three frames is read at once. Everything else (a body of many frames, an
incomplete delivery) is read frame by frame, and the frames of the message are kept meanwhile. Only
an incomplete frame waits as bytes.

AMQP 0-9-1 frame: type u8, channel u16, size u32, payload, 0xCE; numbers big-endian.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from struct import Struct
from struct import error as StructError  # noqa: N812  struct names its exception in lower case
from typing import Any, NoReturn

import pika.frame
import pika.spec
from pika.exceptions import BodyTooLongError, InvalidFrameError, UnexpectedFrameError

from fuploader_dagster.contracts.source import Message
from fuploader_dagster.resources.sources.rabbitmq.pika_internals import impl
from fuploader_dagster.resources.sources.rabbitmq.properties import MESSAGE_ID_FLAG, message_id
from fuploader_dagster.resources.sources.rabbitmq.written_properties import encoded

log = logging.getLogger(__name__)

READ_BYTES = 1 << 16

_FRAME = Struct(">BHI")
_METHOD_ID = Struct(">I")
_DELIVER = Struct(">3sIIB")  # type and channel, size, class and method, length of the consumer tag
_TAG = Struct(">QB")
_HEADER = Struct(">3sIHHQH")  # type and channel, size, class, weight, body size, property flags
_BODY_FRAME = Struct(">3sI")  # type and channel, size
_CONTENT = Struct(">HHQH")  # the same without the frame
_FRAME_BYTES, _DELIVER_BYTES, _TAG_BYTES = _FRAME.size, _DELIVER.size, _TAG.size
_FLAGS_IN_FRAME = _HEADER.size - 2
_SHORTEST_HEADER = _CONTENT.size
_METHOD, _CONTENT_HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_KINDS = (_METHOD, _CONTENT_HEADER, _BODY, _HEARTBEAT)
_BASIC, _BASIC_DELIVER = 60, 60
_DELIVERY = _BASIC << 16 | _BASIC_DELIVER
_FRAME_END = 0xCE
_FRAME_OVERHEAD = _FRAME_BYTES + 1
_UNLIMITED = 1 << 32
_NEEDED = ("_on_data_available", "_frame_buffer", "bytes_received", "_transport", "params")

_new = tuple.__new__
_NOT_HERE = 0
"""The delivery or frame that starts here is not complete."""


def take_deliveries(
    connection: pika.BlockingConnection,
    channel_number: int,
    append: Callable[[Message], None],
    number_offset: int,
) -> None:
    """From now on append deliveries of the channel as `Message`s.

    A message's delivery number is its delivery tag plus `number_offset`; its attributes are the
    encoded properties (`properties`).
    """
    wrapped = impl(connection, *_NEEDED)
    if wrapped is None or not hasattr(connection, "_request_channel_dispatch"):
        log.warning(
            "pika %s lacks names that we need to read deliveries, so pika reads them, at twice the "
            "CPU, and a message with a property that Python cannot represent stops the worker: "
            "install pika 1.3.2 to 1.4.4",
            pika.__version__,
        )
        return
    reader = _Deliveries(connection, wrapped, channel_number, append, number_offset)
    wrapped._on_data_available = reader.on_data
    wrapped._transport._MAX_RECV_BYTES = READ_BYTES


def read_by_pika(method: Any, properties: Any, body: bytes, number_offset: int) -> Message:
    """The message of a delivery that pika has read and decoded itself."""
    raw = encoded(vars(properties))
    number = number_offset + method.delivery_tag
    return Message(body, number, method.redelivered, message_id(raw), raw)


class _Deliveries:
    """Reads what comes from a connection's socket before pika does."""

    def __init__(
        self,
        connection: Any,
        wrapped: Any,
        channel_number: int,
        append: Callable[[Message], None],
        number_offset: int,
    ) -> None:
        self._connection = connection
        self._impl = wrapped
        self._pika = wrapped._on_data_available
        self._channel = channel_number
        self._method_start, self._header_start, self._body_start = (
            _FRAME.pack(kind, channel_number, 0)[:3] for kind in (_METHOD, _CONTENT_HEADER, _BODY)
        )
        self._append = append
        self._number_offset = number_offset
        frame_max = wrapped.params.frame_max
        self._largest = frame_max - _FRAME_OVERHEAD if frame_max else _UNLIMITED
        """The longest payload of a frame, in bytes."""
        self._last_tag = 0
        self._begun: tuple[int, int] | None = None
        """Tag and flag of a delivery whose frames have not all arrived."""
        self._properties: bytes | None = None
        """Its properties, once their frame has arrived."""
        self._body_bytes = 0
        self._missing = 0
        self._parts: list[bytes] = []

    def on_data(self, received: bytes) -> None:
        """Take our deliveries from the bytes that came, give the rest to pika, frame by frame."""
        wrapped = self._impl
        held: bytes = wrapped._frame_buffer
        data = held + received if held else received
        wrapped._frame_buffer = b""
        position, end = 0, len(data)
        last_tag, taken = self._last_tag, 0
        try:
            while position < end:
                after = _NOT_HERE if self._begun else self._whole(data, position, end)
                if after == _NOT_HERE:
                    after = self._one_frame(data, position, end)
                    if after == _NOT_HERE:
                        wrapped._frame_buffer = data[position:]
                        break
                else:
                    taken += after - position
                position = after
        finally:
            wrapped.bytes_received += taken
            if self._last_tag != last_tag:  # otherwise `process_data_events` would go on waiting
                self._connection._request_channel_dispatch(self._channel)

    def _whole(  # noqa: PLR0911  one return for each reason not to take it here
        self, data: bytes, position: int, end: int
    ) -> int:
        """Take the delivery that starts here if it is complete and has at most three frames.

        Anything odd is left to `_one_frame`, which has the errors for it.
        """
        try:
            start, size, method_id, of_tag = _DELIVER.unpack_from(data, position)
            if start != self._method_start or method_id != _DELIVERY:
                return _NOT_HERE
            method_end = position + _FRAME_BYTES + size
            arguments = position + _DELIVER_BYTES + of_tag
            tag, redelivered = _TAG.unpack_from(data, arguments)
            exchange = arguments + _TAG_BYTES
            key = exchange + 1 + data[exchange]
            if key + 1 + data[key] != method_end:
                return _NOT_HERE
            header: int = method_end + 1
            start, size, class_id, _, body_bytes, flags = _HEADER.unpack_from(data, header)
            header_end: int = header + _FRAME_BYTES + size
            after = body = header_end + 1
            largest = self._largest
            if (
                start != self._header_start
                or class_id != _BASIC
                or body_bytes > largest
                or not _SHORTEST_HEADER <= size <= largest
            ):
                return _NOT_HERE
            if body_bytes:
                start, size = _BODY_FRAME.unpack_from(data, body)
                if start != self._body_start or size != body_bytes:
                    return _NOT_HERE
                body += _FRAME_BYTES
                after = body + size + 1
            if not (data[method_end] == data[header_end] == data[after - 1] == _FRAME_END):
                return _NOT_HERE
        except (StructError, IndexError):
            return _NOT_HERE  # it ends after the bytes that we have
        content = data[body : after - 1] if body_bytes else b""
        properties = data[header + _FLAGS_IN_FRAME : header_end]
        if tag != self._last_tag + 1:
            self._refuse_hole(tag)
        self._last_tag = tag
        name = message_id(properties) if flags & MESSAGE_ID_FLAG else None
        self._append(
            _new(
                Message,
                (content, self._number_offset + tag, redelivered & 1 == 1, name, properties, ""),
            )
        )
        return after

    def _refuse_hole(self, tag: int) -> NoReturn:
        raise UnexpectedFrameError(
            f"delivery {tag} came after delivery {self._last_tag}: what is in between is missing"
        )

    def _one_frame(self, data: bytes, position: int, end: int) -> int:
        """Take the frame that starts here or give it to pika; return where it ends."""
        if end - position < _FRAME_BYTES:
            return _NOT_HERE
        kind, channel, size = _FRAME.unpack_from(data, position)
        if kind not in _KINDS:
            raise InvalidFrameError(f"the broker sent a frame of the unknown type {kind}")
        if size > self._largest:
            raise InvalidFrameError(
                f"the broker announced a frame of {size:,} bytes; "
                f"the agreed limit is {self._largest:,}"
            )
        start = position + _FRAME_BYTES
        after: int = start + size + 1
        if after > end:
            return _NOT_HERE
        if data[after - 1] != _FRAME_END:
            raise InvalidFrameError("a frame of the broker does not end where it should")
        if channel == self._channel and self._is_ours(kind, data, start, after - 1):
            self._impl.bytes_received += after - position
        else:
            self._pika(data[position:after])
        return after

    def _is_ours(self, kind: int, data: bytes, start: int, end: int) -> bool:
        """Whether the frame of our channel belongs to a delivery; if so, it is taken."""
        if kind == _METHOD:
            return self._begins(data, start, end)
        if self._begun is None or kind == _HEARTBEAT:
            return False  # content of another method, which is pika's, or no content
        if kind == _BODY:
            self._add(data[start:end])
        else:
            self._note_properties(data[start:end])
        return True

    def _begins(self, data: bytes, start: int, end: int) -> bool:
        if end - start < _METHOD_ID.size:
            return False
        (method_id,) = _METHOD_ID.unpack_from(data, start)
        if self._begun is not None and pika.spec.has_content(method_id):
            raise UnexpectedFrameError(f"delivery {self._begun[0]} was cut off by another message")
        if method_id != _DELIVERY:
            return False
        _, frame = pika.frame.decode_frame(data[start - _FRAME_BYTES : end + 1])
        method: Any = frame
        self._begun = method.method.delivery_tag, method.method.redelivered
        return True

    def _note_properties(self, content: bytes) -> None:
        if self._properties is not None or len(content) < _SHORTEST_HEADER:
            raise UnexpectedFrameError("a delivery has two headers, or one that is too short")
        class_id, _, self._body_bytes, _ = _CONTENT.unpack_from(content)
        if class_id != _BASIC:
            raise UnexpectedFrameError(f"a delivery has a header of class {class_id}")
        self._properties = content[_CONTENT.size - 2 :]
        self._missing = self._body_bytes
        self._finish_if_whole()

    def _add(self, part: bytes) -> None:
        if self._properties is None:
            raise UnexpectedFrameError("a delivery's body came before its header")
        self._parts.append(part)
        self._missing -= len(part)
        if self._missing < 0:
            raise BodyTooLongError(self._body_bytes - self._missing, self._body_bytes)
        self._finish_if_whole()

    def _finish_if_whole(self) -> None:
        if self._missing or self._begun is None or self._properties is None:
            return
        (tag, redelivered), properties, parts = self._begun, self._properties, self._parts
        self._begun, self._properties, self._parts = None, None, []
        if tag != self._last_tag + 1:
            self._refuse_hole(tag)
        self._last_tag = tag
        number = self._number_offset + tag
        self._append(
            Message(b"".join(parts), number, bool(redelivered), message_id(properties), properties)
        )
