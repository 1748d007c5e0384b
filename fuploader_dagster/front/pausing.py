"""`POST /NAME/pause` and `POST /NAME/resume`: what `fuploader pause` and `fuploader resume` do.

What is asked stands in the query or in a JSON body; what both say counts as the body says it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.datastructures import QueryParams
from starlette.responses import Response

from fuploader_dagster.control.wishes import PARTS, Part, wish
from fuploader_dagster.errors import UNREADABLE_JSON
from fuploader_dagster.front.answers import Refusal, json_answer
from fuploader_dagster.front.bodies import body_of
from fuploader_dagster.front.route import Call, Route

_FIELDS: dict[str, dict[str, Any]] = {
    "parts": {
        "type": "array",
        "minItems": 1,
        "items": {"enum": list(PARTS)},
        "description": "Default: both.",
    },
    "reason": {"type": "string", "description": "Why, for all who meet it."},
    "by": {"type": "string", "description": "Who asks. Default: http."},
}
_BODY = {
    "required": False,
    "description": "May be left out. It wins over the query.",
    "content": {
        "application/json": {
            "schema": {"type": "object", "additionalProperties": False, "properties": _FIELDS}
        }
    },
}
_QUERY = [{"name": name, "in": "query", "schema": schema} for name, schema in _FIELDS.items()]


def routes() -> Sequence[Route]:
    return [
        Route(
            "POST",
            f"/{{pipeline}}/{verb}",
            "control",
            answer,
            spec={
                "summary": f"{verb.capitalize()} the pipeline on all its nodes.",
                "parameters": _QUERY,
                "requestBody": _BODY,
                "responses": {
                    "200": {"description": "what is wanted now, and before"},
                    "400": {"description": "the body or the query cannot be understood"},
                },
            },
        )
        for verb, answer in (("pause", _pause), ("resume", _resume))
    ]


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    """What the query and the body say; both may be left out."""

    parts: tuple[Part, ...] = PARTS
    reason: str = ""
    by: str = "http"


async def _pause(call: Call) -> Response:
    return await _wish(call, paused=True)


async def _resume(call: Call) -> Response:
    return await _wish(call, paused=False)


async def _wish(call: Call, *, paused: bool) -> Response:
    asked = _asked(call.request.query_params, await body_of(call))
    pipeline = call.of_pipeline.pipeline
    done = await asyncio.to_thread(
        wish, pipeline, asked.parts, paused=paused, by=asked.by, reason=asked.reason
    )
    answer: dict[str, Any] = {"now": done.now, "before": done.before, "trouble": done.trouble}
    return json_answer(answer)


def _asked(query: QueryParams, body: bytes) -> _Asked:
    stated = {name: query.getlist(name) if name == "parts" else query[name] for name in query}
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any]) if body else {}
        asked = msgspec.convert({**stated, **fields}, _Asked)
    except UNREADABLE_JSON as error:
        raise Refusal(
            400,
            f"the request cannot be understood: {error}",
            hint='leave the body out, or send {"parts": ["intake"], "reason": "why"}',
        ) from None
    if not asked.parts:
        raise Refusal(400, "parts is empty", hint="leave it out for both")
    return asked
