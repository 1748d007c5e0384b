"""A TCP proxy on 127.0.0.1 that can become a cut network: half-open connections.

While it is cut, nothing passes in either direction and nothing is closed or refused: what was sent
stays in buffers, and a close of one side never reaches the other. When it is mended everything
goes on from there, as TCP's retransmissions would.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from tests.servers.ports import LOOPBACK, free_port

_CHUNK_BYTES = 1 << 16


class TcpProxy:
    """`start`, connect to `port`, `cut`, `mend`, `stop`. `held` counts what a cut held up."""

    def __init__(self, upstream_port: int) -> None:
        self.port = free_port()
        self.held = 0
        """Chunks that came while it was cut."""
        self._upstream_port = upstream_port
        self._flowing = threading.Event()
        self._flowing.set()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server((LOOPBACK, self.port))

    def start(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._flowing.clear()

    def mend(self) -> None:
        self._flowing.set()

    def stop(self) -> None:
        self._flowing.set()
        for one in (self._listener, *self._sockets):
            with suppress(OSError):  # it may be closed by the other side
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):  # stopped
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._join, args=[client], daemon=True).start()

    def _join(self, client: socket.socket) -> None:
        self._sockets.append(client)
        self._flowing.wait()
        server = socket.create_connection((LOOPBACK, self._upstream_port))
        self._sockets.append(server)
        for ends in ((client, server), (server, client)):
            threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # either side may be gone
            while True:
                data = source.recv(_CHUNK_BYTES)
                if not self._flowing.is_set():
                    self.held += 1
                    self._flowing.wait()
                if not data:
                    break
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
