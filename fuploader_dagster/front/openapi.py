"""`/openapi.json`: all routes as an OpenAPI 3.1 document, made from them. `/`: a page of it.

The page is one file without anything from elsewhere. It knows nothing by itself: it asks for the
document with the token that its reader types in, which stays in the page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from starlette.responses import Response

from fuploader_dagster.front.answers import json_answer
from fuploader_dagster.front.route import Call, Route
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.serve import RIGHTS

_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
)
_ERROR = {
    "type": "object",
    "required": ["error", "hint"],
    "properties": {"error": {"type": "string"}, "hint": {"type": "string"}},
}
_IN_WORDS = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
_REFUSED = {
    "description": "It was refused; `error` says why, `hint` what to do.",
    "content": _IN_WORDS,
}


def routes() -> Sequence[Route]:
    document = {
        "summary": "This document.",
        "responses": {"200": {"description": "OpenAPI 3.1", "content": {"application/json": {}}}},
    }
    page = {
        "summary": "A page that shows this document.",
        "responses": {"200": {"description": "HTML", "content": {"text/html": {}}}},
    }
    return [
        Route("GET", "/openapi.json", None, _document, spec=document),
        Route("GET", "/", None, _page, spec=page, open=True),
    ]


async def _document(call: Call) -> Response:
    front = call.front
    root = call.request.scope.get("root_path", "")
    return json_answer(
        document_of(front.routes, [one.pipeline for one in front.served.values()], root or "/")
    )


async def _page(_: Call) -> Response:
    page = files("fuploader_dagster.front").joinpath("page.html").read_bytes()
    headers = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff"}
    return Response(page, 200, headers, "text/html")


def document_of(
    routes: Sequence[Route], pipelines: Sequence[Pipeline], root: str
) -> dict[str, Any]:
    """The OpenAPI document of these routes."""
    paths: dict[str, Any] = {}
    for route in routes:
        path = _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, pipelines)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "fuploader serve",
            "version": "1",
            "description": "Messages into pipelines, and what became of them.",
        },
        "servers": [{"url": root}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _ERROR},
        },
    }


def _operation(route: Route, pipelines: Sequence[Pipeline]) -> dict[str, Any]:
    spec = {**(route.spec(pipelines) if callable(route.spec) else route.spec)}
    stated = {one["name"] for one in spec.get("parameters", ())}
    parameters = [*spec.pop("parameters", ())]
    for name in _PARAMETER.findall(route.path):
        if name not in stated:
            schema: dict[str, Any] = {"type": "string"}
            if name == "pipeline":
                schema["enum"] = [pipeline.name for pipeline in pipelines]
            one = {"name": name, "in": "path", "required": True, "schema": schema}
            parameters.append(one)
    responses = {
        status: {"content": _IN_WORDS, **response} if status >= "400" else response
        for status, response in spec.pop("responses", {"200": {"description": "done"}}).items()
    }
    responses["default"] = _REFUSED
    if route.right is not None and route.right in RIGHTS:
        spec["description"] = (
            f"{spec.get('description', '')} Needs the right `{route.right}`.".strip()
        )
    made = {**spec, "responses": responses, "security": [] if route.open else [{"token": []}]}
    if parameters:
        made["parameters"] = parameters
    return made
