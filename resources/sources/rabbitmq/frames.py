"""A message to publish, as the frames that AMQP 0-9-1 has for it: method, header, body.

What must always hold: the bytes are those that pika makes of the same message.

pika gives each frame to the socket by itself, so a batch of small messages reaches the broker in
hundreds of pieces, and the broker syncs the first of them alone. Here a batch is one piece.

Frame, numbers big-endian: u8 type, u16 channel, u32 length of the payload, the payload, 0xCE. The
header's payload: u16 class, u16 zero, u64 length of the body, then the properties (`properties`).
A body that is longer than one frame goes on in the next; an empty one has none.
"""

from __future__ import annotations

from struct import Struct

import pika

OVERHEAD_BYTES = 8
"""Of a frame, around its payload."""
HEADER_BYTES = 12
"""Of a header's payload, before the properties."""
_HEADER, _BODY = Struct(">BHIHHQ"), Struct(">BHI")
_BASIC = 60
_END = bytes([pika.spec.FRAME_END])


class Framing:
    """Makes the frames of messages to one queue, on one channel."""

    def __init__(self, channel_number: int, queue: str, frame_max: int) -> None:
        """`frame_max`: the bytes of a frame that were agreed on; 0: no limit."""
        method = pika.spec.Basic.Publish(exchange="", routing_key=queue, mandatory=True)
        self._method = pika.frame.Method(channel_number, method).marshal()
        self._channel_number = channel_number
        self._most = max(0, frame_max - OVERHEAD_BYTES)
        self.frame_max = frame_max

    def framed(self, properties: bytes, body: bytes) -> list[bytes]:
        """A message in pieces, of which each ends with a frame. Its properties must fit into one.

        A message whose body fits into one frame is one piece.
        """
        size, number = len(body), self._channel_number
        header = _HEADER.pack(
            pika.spec.FRAME_HEADER, number, HEADER_BYTES + len(properties), _BASIC, 0, size
        )
        head = (self._method, header, properties, _END)
        if not body:
            return [b"".join(head)]
        if not self._most or size <= self._most:
            start = _BODY.pack(pika.spec.FRAME_BODY, number, size)
            return [b"".join((*head, start, body, _END))]
        pieces = [b"".join(head)]
        for at in range(0, size, self._most):
            part = body[at : at + self._most]
            pieces.append(_BODY.pack(pika.spec.FRAME_BODY, number, len(part)) + part + _END)
        return pieces
