"""`/metrics`: the figures of the served pipelines, for Prometheus.

What must always hold: nobody sees a pipeline whose `read` right he lacks, unless its settings say
that its metrics are open. However many ask at once, one thread reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from fuploader_dagster.front.route import Call, Route
from fuploader_dagster.health.metrics import PipelineMetrics

_SPEC = {
    "summary": "Metrics for Prometheus",
    "description": "Of the pipelines that the token may read, and of those with `open_metrics`.",
    "responses": {
        "200": {
            "description": "Metrics in Prometheus' text format.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    },
}


def routes() -> Sequence[Route]:
    return [Route("GET", "/metrics", None, _Answers().answer, _SPEC, open=True)]


class _Answers:
    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._metrics: PipelineMetrics | None = None

    async def answer(self, call: Call) -> Response:
        names = _visible(call)
        async with self._lock:
            if self._metrics is None:
                served = call.front.served.values()
                self._metrics = PipelineMetrics([one.pipeline for one in served])
            text = await asyncio.to_thread(self._metrics.text, names)
        headers = {"x-content-type-options": "nosniff", "content-type": CONTENT_TYPE_LATEST}
        return Response(text, headers=headers)


def _visible(call: Call) -> set[str]:
    """The pipelines that this request may see. Raises `Refusal` if there is none."""
    header = call.request.headers.get("authorization")
    token = header.encode("latin-1") if header else None
    served, tokens = call.front.served, call.front.tokens
    names = {name for name, one in served.items() if one.serve.open_metrics}
    names |= {name for name in served if tokens.may(token, name, "read")}
    if not names:
        tokens.check(token, next(iter(served)), "read")
    return names
