"""A handler behind HTTP that answers each request after a time, on the port that it prints.

It prints `called`, too, when the first request comes.

`python -m benchmarks.programs.slow_handler SECONDS`; ends with SIGTERM.
"""

from __future__ import annotations

import asyncio
import socket
import sys

from aiohttp import web


async def main() -> None:
    seconds = float(sys.argv[1])

    called = False

    async def handle(request: web.Request) -> web.Response:
        nonlocal called
        if not called:
            called = True
            print("called", flush=True)
        body = await request.read()
        await asyncio.sleep(seconds)
        return web.Response(body=body)

    app = web.Application()
    app.router.add_post("/", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    await web.SockSite(runner, listening).start()
    print(listening.getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
