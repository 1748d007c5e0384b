"""The body of a request, with the limits of the pipeline's settings.

What must always hold: no more than `max_body_bytes` is ever held of it, whatever length is
announced, and nobody waits for it longer than `body_seconds`. Whoever is refused while the body is
still coming loses the connection: what follows on it could not be told from the rest of the body.
"""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from fuploader_dagster.front.answers import Refusal
from fuploader_dagster.front.route import Call

_CLOSE = {"connection": "close"}


async def body_of(call: Call) -> bytes:
    """The whole body. Raises a `Refusal`."""
    serve = call.of_pipeline.serve
    announced = call.request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[-18:]) > serve.max_body_bytes:
        raise _too_large(serve.max_body_bytes)
    try:
        return await asyncio.wait_for(_read(call.request, serve.max_body_bytes), serve.body_seconds)
    except asyncio.TimeoutError:
        raise Refusal(
            408,
            f"the body was not here after {serve.body_seconds:g} s",
            hint="`body_seconds` of the setting `serve` is the limit",
            headers=_CLOSE,
        ) from None
    except ClientDisconnect:
        raise Refusal(400, "the client left before its request was whole") from None


async def _read(request: Request, most_bytes: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > most_bytes:
            raise _too_large(most_bytes)
        pieces.append(piece)
    return b"".join(pieces)


def _too_large(most_bytes: int) -> Refusal:
    return Refusal(
        413,
        f"the body has more than {most_bytes:,} bytes",
        hint="`max_body_bytes` of the setting `serve` is the limit",
        headers=_CLOSE,
    )
