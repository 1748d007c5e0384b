"""A handler behind HTTP, as users write them: an aiohttp server that answers as a test tells it.

    handler.answer = lambda call: call.reply(200, b"...")

It runs in a thread with an event loop of its own. `calls` are the requests that came.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from aiohttp import web

from tests.servers.ports import LOOPBACK


class Call:
    """A request that waits for its answer."""

    def __init__(self, request: web.Request, body: bytes, handler: HttpHandlerServer) -> None:
        self.request = request
        self.headers: Mapping[str, str] = request.headers
        self.body = body
        self._handler = handler

    async def reply(self, status: int = 200, body: bytes = b"", **headers: str) -> web.Response:
        """A whole answer; `Content_Type="..."` becomes a header of that name."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=body, headers=named)

    async def reply_raw(self, data: bytes, *, end: bool = True) -> web.Response:
        """These bytes, and the end of the connection if it is to end."""
        transport = self._transport()
        transport.write(data)
        if end:
            transport.close()
        else:
            await self._handler.stopping.wait()
        return web.Response()

    async def reset(self, data: bytes = b"") -> web.Response:
        """These bytes, then a reset instead of an end."""
        transport = self._transport()
        if data:
            transport.write(data)
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        return web.Response()

    async def trickle(self, start: bytes, again: bytes) -> web.Response:
        """The start, then for ever `again`, never silent for long; ends when the client leaves."""
        transport = self._transport()
        transport.write(start)
        while not transport.is_closing() and not self._handler.stopping.is_set():
            transport.write(again)
            await asyncio.sleep(0.02)
        return web.Response()

    async def flood(self, start: bytes, piece: bytes) -> web.Response:
        """The start, then for ever `piece`, as fast as the client reads; ends when it leaves."""
        transport = self._transport()
        transport.write(start)
        while not transport.is_closing() and not self._handler.stopping.is_set():
            if transport.get_write_buffer_size() < len(piece):
                transport.write(piece)
            await asyncio.sleep(0)
        return web.Response()

    async def nothing(self) -> web.Response:
        """No answer, until the test is over."""
        await self._handler.stopping.wait()
        return web.Response()

    def _transport(self) -> asyncio.Transport:
        transport = self.request.transport
        assert transport is not None
        return transport


Answer = Callable[[Call], Awaitable[web.StreamResponse]]


class HttpHandlerServer:
    """Use as a context manager."""

    def __init__(
        self, certificate: Path | None = None, *, trusted_clients: Path | None = None
    ) -> None:
        """Over TLS if it gets a PEM file with a certificate for 127.0.0.1 and its key; with
        `trusted_clients`, only clients with one of these certificates are let in."""
        self.answer: Answer = lambda call: call.reply(200, call.body)
        self.calls: list[Call] = []
        self.ports: set[int] = set()
        """The clients' ports: one for each connection on which a request came."""
        self.stopping: asyncio.Event
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        if self._tls is not None and trusted_clients is not None:
            self._tls.verify_mode = ssl.CERT_REQUIRED
            self._tls.load_verify_locations(trusted_clients)
        self._socket = socket.create_server((LOOPBACK, 0), backlog=1024)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"{'https' if certificate else 'http'}://{LOOPBACK}:{self.port}/handle"
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="http handler")

    def __enter__(self) -> HttpHandlerServer:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self.stopping.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self.stopping = asyncio.Event()
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.SockSite(runner, self._socket, ssl_context=self._tls).start()
        self._ready.set()
        await self.stopping.wait()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        self.ports.add(request.transport.get_extra_info("peername")[1])
        call = Call(request, await request.read(), self)
        self.calls.append(call)
        return await self.answer(call)
