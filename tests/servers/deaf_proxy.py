"""A TCP proxy in front of a broker that loses what consumers say, or their connections.

`deaf`: what clients send is read and thrown away, so that acknowledgements never arrive. `forsake`
closes a connection on the server's side only: the server gives its messages to others while the
client goes on with those in its hands, and notices nothing. `cut` closes all of them for both.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass

from tests.servers.ports import LOOPBACK

_CHUNK_BYTES = 1 << 16


@dataclass(eq=False)
class _Connection:
    client: socket.socket
    server: socket.socket
    forsaken: bool = False


class DeafProxy:
    """Use as a context manager; clients connect to `port`."""

    def __init__(self, upstream_port: int) -> None:
        self.deaf = False
        self._upstream_port = upstream_port
        self._connections: list[_Connection] = []
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> DeafProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._listener)
        self.cut()

    def cut(self) -> None:
        while self._connections:
            connection = self._connections.pop()
            _close(connection.server)
            _close(connection.client)

    def forsake(self) -> None:
        """The oldest connection, on the server's side."""
        connection = self._connections[0]
        connection.forsaken = True
        _close(connection.server)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                connection = _Connection(
                    client, socket.create_connection((LOOPBACK, self._upstream_port))
                )
                self._connections.append(connection)
                threading.Thread(target=self._from_client, args=[connection], daemon=True).start()
                threading.Thread(target=self._from_server, args=[connection], daemon=True).start()

    def _from_client(self, connection: _Connection) -> None:
        with contextlib.suppress(OSError):
            while data := connection.client.recv(_CHUNK_BYTES):
                if not self.deaf and not connection.forsaken:
                    connection.server.sendall(data)
        _close(connection.client)
        _close(connection.server)

    def _from_server(self, connection: _Connection) -> None:
        with contextlib.suppress(OSError):
            while data := connection.server.recv(_CHUNK_BYTES):
                connection.client.sendall(data)
        if not connection.forsaken:
            _close(connection.client)


def _close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
