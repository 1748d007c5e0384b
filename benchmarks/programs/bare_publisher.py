"""What the broker allows to who has few messages unconfirmed: ready frames to a socket, no client.

Settings come as JSON in BENCH_SETTINGS: `url`, `queue`, `unconfirmed`, `seconds`, `body_bytes`. As
many persistent messages as were confirmed follow at once, in one piece. Prints how many a second
were confirmed.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

import pika
from pika import spec
from pika.frame import Body, Header, Method, decode_frame

READ_BYTES = 65_536


class Broker:
    """A connection without a client library's loops."""

    def __init__(self, url: str) -> None:
        known = pika.URLParameters(url)
        login: Any = known.credentials
        self._socket = socket.create_connection((known.host, known.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._socket.sendall(b"AMQP\x00\x00\x09\x01")
        self._next()
        answer = f"\0{login.username}\0{login.password}".encode()
        self._ask(0, spec.Connection.StartOk({}, "PLAIN", answer))
        tuned = self._next()
        self._ask(0, spec.Connection.TuneOk(tuned.channel_max, tuned.frame_max, 0))
        for channel, method in (
            (0, spec.Connection.Open(known.virtual_host)),
            (1, spec.Channel.Open()),
            (1, spec.Confirm.Select()),
        ):
            self._ask(channel, method)
            self._next()

    def send(self, frames: bytes) -> None:
        self._socket.sendall(frames)

    def confirmed(self) -> int:
        """The number of the last message that is confirmed, when the next confirm is here."""
        method = self._next()
        if not isinstance(method, spec.Basic.Ack):
            raise RuntimeError(f"no confirm, but {method}")
        return int(method.delivery_tag or 0)

    def _ask(self, channel: int, method: Any) -> None:
        self.send(Method(channel, method).marshal())

    def _next(self) -> Any:
        while True:
            used, frame = decode_frame(self._received)
            if frame is not None:
                self._received = self._received[used:]
                return frame.method
            more = self._socket.recv(READ_BYTES)
            if not more:
                raise ConnectionError("the broker closed the connection")
            self._received += more


def message(queue: str, size: int) -> bytes:
    """The frames of a message."""
    properties = spec.BasicProperties(delivery_mode=2, message_id="0" * 32)
    method = spec.Basic.Publish(exchange="", routing_key=queue, mandatory=True)
    frames = (Method(1, method), Header(1, size, properties), Body(1, b"x" * size))
    return b"".join(frame.marshal() for frame in frames)


def main() -> None:
    settings = json.loads(os.environ["BENCH_SETTINGS"])
    broker = Broker(settings["url"])
    one = message(settings["queue"], settings["body_bytes"])
    sent = confirmed = 0
    begin = time.monotonic()
    while time.monotonic() < begin + settings["seconds"]:
        room = settings["unconfirmed"] - (sent - confirmed)
        broker.send(one * room)
        sent += room
        confirmed = max(confirmed, broker.confirmed())
    print(json.dumps({"per_second": confirmed / (time.monotonic() - begin)}))


if __name__ == "__main__":
    main()
