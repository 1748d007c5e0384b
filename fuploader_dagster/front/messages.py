"""`POST /NAME/messages`: messages into the pipeline's queue, answered once it has confirmed them.

The path that has to be quick: it works on the raw request, without Starlette's objects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fuploader_dagster.front.answers import JSON_HEADERS, Refusal, error_answer, refusal_of
from fuploader_dagster.front.bodies import (
    CLOSE,
    Disconnected,
    check_length,
    read_body,
    stated_bytes,
)
from fuploader_dagster.front.items import Items, form_of, request_digests
from fuploader_dagster.front.publishing import Publishing
from fuploader_dagster.front.route import Call, Route, Served
from fuploader_dagster.front.schemas import message_bodies
from fuploader_dagster.front.tokens import Tokens
from fuploader_dagster.settings.pipeline import Pipeline

LARGE_BYTES = 64 * 1024
"""A body of this size or more is taken apart in a thread, beside the others."""
LONGEST_KEY = 255
_IDS = {
    "type": "object",
    "required": ["ids"],
    "properties": {"ids": {"type": "array", "items": {"type": "string"}}},
}
_LATER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}}


def _spec(pipelines: Sequence[Pipeline]) -> dict[str, Any]:
    return {
        "operationId": "publish",
        "summary": "Put one message, or several, into the pipeline's queue.",
        "description": "A JSON list and JSON lines are a message per element; any other body is "
        "one.",
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "The same request with the same key is published once.",
                "schema": {"type": "string", "maxLength": LONGEST_KEY},
            }
        ],
        "requestBody": {"required": True, "content": message_bodies(pipelines)},
        "responses": {
            "202": {
                "description": "The queue has confirmed all of them; their ids, in order.",
                "content": {"application/json": {"schema": _IDS}},
                "links": {
                    "message": {
                        "operationId": "where",
                        "parameters": {
                            "pipeline": "$request.path.pipeline",
                            "id": "$response.body#/ids/0",
                        },
                    }
                },
            },
            "409": {"description": "The same request is in work", "headers": _LATER},
            "422": {"description": "A message cannot become a file, or the queue refuses it"},
            "429": {"description": "Too many messages wait in the queue", "headers": _LATER},
            "503": {"description": "The queue has not confirmed it", "headers": _LATER},
        },
    }


_OUR_HEADERS = [(name.encode(), value.encode()) for name, value in JSON_HEADERS.items()]


def routes() -> Sequence[Route]:
    return [Route("POST", "/{pipeline}/messages", "publish", _answer, spec=_spec)]


class Door:
    """Takes messages for one pipeline."""

    def __init__(self, served: Served) -> None:
        self._serve = served.serve
        self._name = served.pipeline.name
        self.publishing = Publishing(served.pipeline)
        self._items = Items(served.pipeline, self.publishing.publisher_type)
        self._kept = {name.lower().encode(): name.lower() for name in served.serve.headers}

    async def __call__(self, tokens: Tokens, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        headers = dict(scope["headers"])
        try:
            tokens.check(headers.get(b"authorization"), self._name, "publish")
            ids = await self.take(headers, receive)
        except Disconnected:
            return
        except Exception as error:  # noqa: BLE001  the edge: it is logged, and answered in words
            refusal = refusal_of(error)
            if _unread(headers):
                refusal.headers.update(CLOSE)
            await error_answer(refusal)(scope, receive, send)
            return
        body = msgspec.json.encode({"ids": ids})
        length = (b"content-length", b"%d" % len(body))
        start = {"type": "http.response.start", "status": 202, "headers": [*_OUR_HEADERS, length]}
        await send(start)
        await send({"type": "http.response.body", "body": body})

    async def take(self, headers: Mapping[bytes, bytes], receive: Receive) -> list[str]:
        """The ids of the messages, once the queue has them."""
        serve = self._serve
        self.publishing.check_backlog()
        key = headers.get(b"idempotency-key", b"")
        if len(key) > LONGEST_KEY:
            raise Refusal(
                400,
                f"the Idempotency-Key has more than {LONGEST_KEY} bytes",
                hint="a UUID is enough",
            )
        check_length(headers.get(b"content-length"), serve.max_body_bytes)
        body = await read_body(receive, serve.max_body_bytes, serve.body_seconds)
        form = form_of(headers.get(b"content-type", b""))
        kept = {
            name: headers[raw].decode("utf-8", "replace")
            for raw, name in self._kept.items()
            if raw in headers
        }
        if len(body) < LARGE_BYTES:
            items = self._items.of(body, form, key, kept)
        else:
            items = await asyncio.to_thread(self._items.of, body, form, key, kept)
        digests = request_digests(key, body, form) if key else (None, b"")
        await self.publishing.publish(items, *digests)
        return [one.id for one in items]


def _unread(headers: Mapping[bytes, bytes]) -> bool:
    """Whether much of a body may still come that nobody will read."""
    length = headers.get(b"content-length", b"")
    return b"transfer-encoding" in headers or stated_bytes(length) > LARGE_BYTES


async def _answer(_: Call) -> Response:
    raise LookupError("the requests of served pipelines go to their doors")
