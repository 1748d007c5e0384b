"""The least that a server can do: Starlette takes a body and gives it back."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def echo(request: Request) -> Response:
    return Response(await request.body(), 202)


app = Starlette(routes=[Route("/docs/messages", echo, methods=["POST"])])
