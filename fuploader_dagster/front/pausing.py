"""`POST /NAME/pause` and `POST /NAME/resume`: what `fuploader pause` and `fuploader resume` do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from fuploader_dagster.control.wishes import PARTS, Part, wish
from fuploader_dagster.errors import UNREADABLE_JSON
from fuploader_dagster.front.answers import Refusal, json_answer
from fuploader_dagster.front.bodies import body_of
from fuploader_dagster.front.route import Call, Route

_BODY = {
    "required": False,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "parts": {
                        "type": "array",
                        "minItems": 1,
                        "items": {"enum": list(PARTS)},
                        "description": "Default: both.",
                    },
                    "reason": {"type": "string", "description": "Why, for all who meet it."},
                    "by": {"type": "string", "description": "Who asks. Default: http."},
                },
            }
        }
    },
}


def routes() -> Sequence[Route]:
    return [
        Route(
            "POST",
            f"/{{pipeline}}/{verb}",
            "control",
            answer,
            spec={
                "summary": f"{verb.capitalize()} the pipeline on all its nodes.",
                "requestBody": _BODY,
                "responses": {
                    "200": {"description": "what is wanted now, and before"},
                    "400": {"description": "the body cannot be understood"},
                },
            },
        )
        for verb, answer in (("pause", _pause), ("resume", _resume))
    ]


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    """The body; it may be left out."""

    parts: tuple[Part, ...] = PARTS
    reason: str = ""
    by: str = "http"


async def _pause(call: Call) -> Response:
    return await _wish(call, paused=True)


async def _resume(call: Call) -> Response:
    return await _wish(call, paused=False)


async def _wish(call: Call, *, paused: bool) -> Response:
    asked = _asked(await body_of(call))
    pipeline = call.of_pipeline.pipeline
    done = await asyncio.to_thread(
        wish, pipeline, asked.parts, paused=paused, by=asked.by, reason=asked.reason
    )
    answer: dict[str, Any] = {"now": done.now, "before": done.before, "trouble": done.trouble}
    return json_answer(answer)


def _asked(body: bytes) -> _Asked:
    if not body:
        return _Asked()
    try:
        asked = msgspec.json.decode(body, type=_Asked)
    except UNREADABLE_JSON as error:
        raise Refusal(
            400,
            f"the body cannot be understood: {error}",
            hint='leave it out, or send {"parts": ["intake"], "reason": "why"}',
        ) from None
    if not asked.parts:
        raise Refusal(400, "parts is empty", hint="leave it out for both")
    return asked
