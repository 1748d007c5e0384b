"""A proxy on 127.0.0.1 that speaks TLS with clients, in front of a server that does not."""

from __future__ import annotations

import asyncio
import ssl
import threading
from contextlib import suppress
from pathlib import Path

from tests.servers.ports import LOOPBACK

_CHUNK_BYTES = 1 << 16


class TlsProxy:
    """Use as a context manager; clients connect to `port`."""

    def __init__(self, upstream_port: int, certificate: Path | None) -> None:
        """`certificate`: a PEM file with its key in it; without one it speaks no TLS."""
        self._upstream_port = upstream_port
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.port = 0

    def __enter__(self) -> TlsProxy:
        self._thread.start()
        starting = asyncio.start_server(self._serve, LOOPBACK, 0, ssl=self._context)
        server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(60)
        self.port = server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            above, below = await asyncio.open_connection(LOOPBACK, self._upstream_port)
            try:
                await self._welcome(reader, writer, above, below)
            except (EOFError, OSError):
                writer.close()
                below.close()
                return
            await asyncio.gather(_pass_on(reader, below), _pass_on(above, writer))

    async def _welcome(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        above: asyncio.StreamReader,
        below: asyncio.StreamWriter,
    ) -> None:
        """What comes before bytes are passed on: nothing. An error ends the connection."""


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with suppress(OSError):
            while chunk := await reader.read(_CHUNK_BYTES):
                writer.write(chunk)
                await writer.drain()
    finally:
        writer.close()
