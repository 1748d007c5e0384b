"""Reading a request's body within its limits of size and time.

What must always hold: no more than the limit is ever in memory, whatever length is announced, and a
client that sends nothing holds nothing up but its own connection. Whoever is refused while the body
is still coming loses the connection: what follows could not be told from the rest of the body.
"""

from __future__ import annotations

import asyncio
import math

from starlette.types import Receive

from fuploader_dagster.front.answers import Refusal
from fuploader_dagster.front.route import Call

_MOST_DIGITS = 18
CLOSE = {"connection": "close"}
"""With an answer that does not wait for the rest of the body."""


class Disconnected(Refusal):
    """The client is gone before its body was here: nobody waits for an answer."""

    def __init__(self) -> None:
        super().__init__(400, "the client left before its request was whole")


def check_length(stated: bytes | None, most_bytes: int) -> None:
    """Raise a `Refusal` if the stated length is too much already."""
    if stated_bytes(stated or b"") > most_bytes:
        raise _too_large(most_bytes)


def stated_bytes(length: bytes) -> float:
    """What a Content-Length says."""
    if not length.isdigit():
        return 0
    return int(length) if len(length) <= _MOST_DIGITS else math.inf


async def body_of(call: Call) -> bytes:
    """The whole body of a request to a pipeline. Raises a `Refusal`."""
    serve = call.of_pipeline.serve
    stated = call.request.headers.get("content-length", "").encode("latin-1")
    check_length(stated, serve.max_body_bytes)
    return await read_body(call.request.receive, serve.max_body_bytes, serve.body_seconds)


async def read_body(receive: Receive, most_bytes: int, most_seconds: float) -> bytes:
    """The whole body. Raises a `Refusal`, or `Disconnected`."""
    task = asyncio.current_task()
    late = False

    def give_up() -> None:
        nonlocal late
        late = True
        if task is not None:
            task.cancel()

    # asyncio.wait_for makes a task for each call, a tenth of what a request costs
    timer = asyncio.get_running_loop().call_later(most_seconds, give_up)
    try:
        return await _read(receive, most_bytes)
    except asyncio.CancelledError:
        if not late:
            raise
        raise Refusal(
            408,
            f"the body was not here after {most_seconds:g} s",
            hint="send smaller requests, or raise body_seconds",
            headers=CLOSE,
        ) from None
    finally:
        timer.cancel()


async def _read(receive: Receive, most_bytes: int) -> bytes:
    message = await receive()
    pieces: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise Disconnected()
        piece = message.get("body", b"")
        size += len(piece)
        if size > most_bytes:
            raise _too_large(most_bytes)
        if not message.get("more_body", False):
            return bytes(piece) if not pieces else b"".join([*pieces, piece])
        pieces.append(piece)
        message = await receive()


def _too_large(most_bytes: int) -> Refusal:
    return Refusal(
        413,
        f"the body has more than {most_bytes:,} bytes, which is max_body_bytes",
        hint="send it in several requests, or raise max_body_bytes",
        headers=CLOSE,
    )
