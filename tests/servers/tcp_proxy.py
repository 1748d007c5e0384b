"""A TCP proxy on 127.0.0.1 with the faults of a network between clients and a server.

- `cut` until `mend`: half-open connections. Nothing passes in either direction, nothing is closed
  or refused: what was sent stays in buffers, and a close of one side never reaches the other. When
  it is mended everything goes on from there, as TCP's retransmissions would.
- `deaf` while it is set: what clients send is read and thrown away, so that acknowledgements never
  arrive; what the server sends still comes through.
- `forsake`: a connection is closed on the server's side only. The server gives its messages away
  while the client goes on with those in its hands, and notices nothing.
- `say`: the oldest connection's client gets bytes that no server sent.
- `drop`: all connections are closed, for both sides.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass

from tests.servers.ports import LOOPBACK

_CHUNK_BYTES = 1 << 16


@dataclass(eq=False)
class _Connection:
    client: socket.socket
    server: socket.socket
    forsaken: bool = False


class TcpProxy:
    """Use as a context manager; clients connect to `port`."""

    def __init__(self, upstream_port: int) -> None:
        self.deaf = False
        self.held = 0
        """Chunks that came while it was cut."""
        self._upstream_port = upstream_port
        self._flowing = threading.Event()
        self._flowing.set()
        self._connections: list[_Connection] = []
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> TcpProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._listener)
        self.mend()
        self.drop()

    def cut(self) -> None:
        self._flowing.clear()

    def mend(self) -> None:
        self._flowing.set()

    def forsake(self) -> None:
        """The oldest connection."""
        connection = self._connections[0]
        connection.forsaken = True
        _close(connection.server)

    def say(self, data: bytes) -> None:
        self._connections[0].client.sendall(data)

    def drop(self) -> None:
        while self._connections:
            connection = self._connections.pop()
            _close(connection.server)
            _close(connection.client)

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._join, args=[client], daemon=True).start()

    def _join(self, client: socket.socket) -> None:
        self._flowing.wait()
        try:
            server = socket.create_connection((LOOPBACK, self._upstream_port))
        except OSError:  # the server is down
            _close(client)
            return
        connection = _Connection(client, server)
        self._connections.append(connection)
        for pass_on in (self._from_client, self._from_server):
            threading.Thread(target=pass_on, args=[connection], daemon=True).start()

    def _from_client(self, connection: _Connection) -> None:
        with suppress(OSError):  # either side may be gone
            while data := self._received(connection.client):
                if not self.deaf and not connection.forsaken:
                    connection.server.sendall(data)
        _close(connection.client)
        _close(connection.server)

    def _from_server(self, connection: _Connection) -> None:
        with suppress(OSError):
            while data := self._received(connection.server):
                connection.client.sendall(data)
        if not connection.forsaken:
            _close(connection.client)

    def _received(self, source: socket.socket) -> bytes:
        """The next bytes, or none at the end; held back while the network is cut."""
        data = source.recv(_CHUNK_BYTES)
        if not self._flowing.is_set():
            self.held += 1
            self._flowing.wait()
        return data


def _close(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
