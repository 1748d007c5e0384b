"""A TCP proxy that breaks a connection at a chosen piece of what a client sends.

Pieces are counted from 0 over all connections since `play`. `hit` says whether the fault was
played.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from tests.servers.ports import LOOPBACK

Kind = Literal["request lost", "answer lost", "server killed"]
_CHUNK_BYTES = 1 << 16


class CuttingProxy:
    """Use as a context manager; clients connect to `port`."""

    def __init__(self, upstream_port: int, kill: Callable[[], None]) -> None:
        """`kill`: ends the server at once."""
        self.pieces = 0
        self.hit = False
        self._upstream_port, self._kill = upstream_port, kill
        self._kind: Kind | None = None
        self._at = 0
        self._lock = threading.Lock()
        self._killed = threading.Event()
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> CuttingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._listener)

    def play(self, kind: Kind | None, at: int = 0) -> None:
        """Break at that piece: before it reaches the server, after the server has answered it, or
        by killing the server as it gets it."""
        with self._lock:
            self._kind, self._at = kind, at
            self.pieces, self.hit = 0, False
            self._killed.clear()

    def wait_for_kill(self) -> None:
        """If it is about to kill the server, which may have answered before, wait until it has."""
        if self.hit and self._kind == "server killed":
            assert self._killed.wait(60), "the server was not killed"

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection((LOOPBACK, self._upstream_port))
                except OSError:  # the server is down
                    _close(client)
                    continue
                deaf = threading.Event()
                for pass_on in (self._from_client, self._from_server):
                    arguments = (client, server, deaf)
                    threading.Thread(target=pass_on, args=arguments, daemon=True).start()

    def _from_client(
        self, client: socket.socket, server: socket.socket, deaf: threading.Event
    ) -> None:
        with suppress(OSError):  # either side may be gone
            while data := client.recv(_CHUNK_BYTES):
                fault = self._due()
                if fault == "request lost":
                    break
                if fault == "answer lost":
                    deaf.set()
                server.sendall(data)
                if fault == "server killed":
                    self._kill()
                    self._killed.set()
                    break
        _close(client)
        _close(server)

    def _from_server(
        self, client: socket.socket, server: socket.socket, deaf: threading.Event
    ) -> None:
        with suppress(OSError):
            while data := server.recv(_CHUNK_BYTES):
                if deaf.is_set():
                    break
                client.sendall(data)
        _close(client)
        _close(server)

    def _due(self) -> Kind | None:
        with self._lock:
            number, self.pieces = self.pieces, self.pieces + 1
            if self._kind is None or self.hit or number != self._at:
                return None
            self.hit = True
            return self._kind


def _close(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
