"""`/health/live`: whether this process answers at all. `/health/ready`: whether it can work."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response

from fuploader_dagster.front.answers import json_answer
from fuploader_dagster.front.route import Call, Route


def routes() -> Sequence[Route]:
    return [Route("GET", "/health/live", None, _live, open=True)]


async def _live(_: Call) -> Response:
    return json_answer({"live": True})
