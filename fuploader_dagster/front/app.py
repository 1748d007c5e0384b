"""The application: routes, tokens and errors put together, for one server process.

What must always hold: every route but an open one checks the token before it looks at anything
else, and every answer that is not a route's own is JSON with an error and a hint.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from starlette.types import Receive, Scope, Send

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.front import (
    health,
    lookups,
    messages,
    metrics,
    openapi,
    pausing,
    processing,
)
from fuploader_dagster.front.answers import Refusal, error_answer, refusal_of
from fuploader_dagster.front.route import Call, Route, Served
from fuploader_dagster.front.tokens import Tokens
from fuploader_dagster.settings.pipeline import Pipeline

ROUTE_MODULES = (health, messages, lookups, processing, pausing, metrics, openapi)
"""Each has a function `routes()`."""

_SAID = {404: "there is nothing at this address", 405: "this address does not take this method"}


class Front:
    """What one server process serves: an ASGI application."""

    def __init__(self, pipelines: Mapping[str, Pipeline], environment: Mapping[str, str]) -> None:
        """Raises `ConfigError` if there is nothing to serve, or nobody to serve it to."""
        self.served = {
            name: Served(pipeline)
            for name, pipeline in pipelines.items()
            if pipeline.serve is not None
        }
        if not self.served:
            raise ConfigError(
                "no pipeline is to be served",
                hint="add `serve: true` to the settings of each pipeline that is",
            )
        self.tokens = Tokens([one.pipeline for one in self.served.values()], environment)
        self.doors = {name: messages.Door(one) for name, one in self.served.items()}
        self._by_path = {f"/{name}/messages": door for name, door in self.doors.items()}
        self.routes: Sequence[Route] = [route for one in ROUTE_MODULES for route in one.routes()]
        self._app = Starlette(
            routes=[
                StarletteRoute(route.path, self._endpoint(route), methods=[route.method])
                for route in self.routes
            ],
            exception_handlers={HTTPException: _not_routed},
            lifespan=self._life,
        )
        self._app.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            door = self._by_path.get(path)
            if door is not None:
                await door(self.tokens, scope, receive, send)
                return
        await self._app(scope, receive, send)

    @asynccontextmanager
    async def _life(self, _: Starlette) -> AsyncIterator[None]:
        for door in self.doors.values():
            door.publishing.start()
        try:
            yield
        finally:
            for door in self.doors.values():
                await asyncio.to_thread(door.publishing.close)
            for one in self.served.values():
                await asyncio.to_thread(one.at_end.close)

    def _endpoint(self, route: Route):  # type: ignore[no-untyped-def]
        async def endpoint(request: Request) -> Response:
            try:
                return await route.answer(self._allowed(route, request))
            except Exception as error:  # noqa: BLE001  the edge: it is logged, and answered in words
                return error_answer(refusal_of(error))

        return endpoint

    def _allowed(self, route: Route, request: Request) -> Call:
        """The call, if its token may make it."""
        name = request.path_params.get("pipeline")
        if not route.open:
            header = request.headers.get("authorization")
            known = name is None or name in self.served
            right = route.right if known else None
            self.tokens.check(header.encode("latin-1") if header else None, name, right)
            if not known:
                raise Refusal(
                    404,
                    f"there is no pipeline {name} here",
                    hint=f"it serves {', '.join(self.served)}",
                )
        return Call(request, self, self.served.get(name) if name else None)


async def _not_routed(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(getattr(error, "headers", None) or {})
    said = _SAID.get(status, str(getattr(error, "detail", "")))
    return error_answer(
        Refusal(status, said, hint="/openapi.json lists all addresses", headers=headers)
    )
