"""`/health/live`: whether this process answers at all. `/health/ready`: whether it can work.

Ready means that messages are taken and will be stored: queue, state store, disk and object store
work. They are looked at in a thread, when somebody asks and the last look is a few seconds old;
whoever asks waits for it only so long. A pause is shown, and is no trouble: messages wait in the
queue. Without a token the answer is only yes or no.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from fuploader_dagster.control.wishes import PARTS
from fuploader_dagster.delivery.store_trouble import find_refusal
from fuploader_dagster.errors import FuploaderError
from fuploader_dagster.front.answers import json_answer
from fuploader_dagster.front.route import Call, Route, Served
from fuploader_dagster.health.figures import Figures, figures_of
from fuploader_dagster.health.status import part_status
from fuploader_dagster.intake.disk_space import shortage
from fuploader_dagster.settings.pipeline import Pipeline

log = logging.getLogger(__name__)

FRESH_SECONDS = 5.0
"""An answer is not older than this, unless the next look takes longer."""
STORE_SECONDS = 30.0
"""Between two looks at the object store, where each may cost money."""
PATIENCE_SECONDS = 10.0
"""How long somebody who asks waits for a look."""

_SEEN = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["ready"],
            "properties": {
                "ready": {"type": "boolean"},
                "pipelines": {"type": "array", "items": {"type": "object"}},
            },
        }
    }
}
_ANSWER = {
    "200": {"description": "yes", "content": _SEEN},
    "503": {"description": "no; with a token also why", "content": _SEEN},
}


def routes() -> Sequence[Route]:
    live = {"summary": "Does this process answer?", "responses": {"200": {"description": "yes"}}}
    ready = {"summary": "Can all pipelines take and store messages?", "responses": _ANSWER}
    return [
        Route("GET", "/health/live", None, _live, spec=live, open=True),
        Route("GET", "/health/ready", None, _ready, spec=ready, open=True),
    ]


async def _live(_: Call) -> Response:
    return json_answer({"live": True})


async def _ready(call: Call) -> Response:
    looks = [one.kept(_Look) for one in call.front.served.values()]
    found = await asyncio.gather(*(look.found() for look in looks))
    ready = all(one["ready"] for one in found)
    token = call.request.headers.get("authorization", "").encode("latin-1")
    shown = [one for one in found if call.front.tokens.may(token or None, one["pipeline"], "read")]
    body = {"ready": ready, "pipelines": shown} if shown else {"ready": ready}
    headers = {} if ready else {"retry-after": str(int(FRESH_SECONDS))}
    return json_answer(body, 200 if ready else 503, headers)


class _Look:
    """What was last seen of a pipeline. Used in the event loop."""

    def __init__(self, served: Served) -> None:
        self._pipeline = served.pipeline
        self._found: dict[str, Any] | None = None
        self._at = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._store_at = 0.0
        self._store_trouble = ""

    async def found(self) -> dict[str, Any]:
        if self._looking is None and time.monotonic() - self._at >= FRESH_SECONDS:
            self._looking = asyncio.create_task(self._look())
        if self._looking is not None:
            await asyncio.wait([self._looking], timeout=PATIENCE_SECONDS)
        if self._found is None or time.monotonic() - self._at > FRESH_SECONDS + PATIENCE_SECONDS:
            said = f"looking takes longer than {PATIENCE_SECONDS:g} s"
            return {"pipeline": self._pipeline.name, "ready": False, "troubles": [said]}
        return self._found

    async def _look(self) -> None:
        try:
            self._found = await asyncio.to_thread(self._seen)
        except FuploaderError as error:
            self._found = _report(self._pipeline.name, [str(error)])
        except Exception as error:  # the edge: it is logged, and not ready
            log.error("looking at %s failed", self._pipeline.name, exc_info=error)
            self._found = _report(self._pipeline.name, ["an unexpected error: see the log"])
        finally:
            self._at, self._looking = time.monotonic(), None

    def _seen(self) -> dict[str, Any]:
        pipeline = self._pipeline
        figures = figures_of(pipeline)
        return {
            **_report(pipeline.name, self._troubles(figures)),
            "waiting_messages": figures.queue.waiting,
            "oldest_unshipped_seconds": figures.oldest_unshipped_seconds,
            "free_bytes": figures.space.free_bytes,
            "parts": {
                part: part_status(part, figures.wishes, figures.workers, pipeline.layout)
                for part in PARTS
            },
        }

    def _troubles(self, figures: Figures) -> list[str]:
        found = {
            "queue": figures.queue.trouble,
            "state store": str(figures.state_trouble or ""),
            "disk": shortage(figures.space, self._pipeline, paused=False),
            "object store": self._ask_store(self._pipeline),
        }
        return [f"{what}: {said}" for what, said in found.items() if said]

    def _ask_store(self, pipeline: Pipeline) -> str:
        now = time.monotonic()
        if not self._store_at or now - self._store_at >= STORE_SECONDS:
            try:
                pipeline.store.open().check()
                self._store_trouble = ""
            except FuploaderError as error:
                self._store_trouble = str(error)
            self._store_at = now
        return self._store_trouble or str(find_refusal(pipeline.layout) or "")


def _report(pipeline: str, troubles: Sequence[str]) -> dict[str, Any]:
    return {"pipeline": pipeline, "ready": not troubles, "troubles": list(troubles)}
