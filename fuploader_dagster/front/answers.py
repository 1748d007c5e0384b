"""Answers: JSON, and errors in our own words.

What must always hold: whatever goes wrong, the client gets `{"error": ..., "hint": ...}`, never a
trace; what only we can mend is logged here, with its trace.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from fuploader_dagster.errors import (
    DamagedData,
    FuploaderError,
    SourceRefused,
    StateRefused,
    TemporaryError,
)
from fuploader_dagster.settings.safe_text import in_a_line

log = logging.getLogger(__name__)

JSON_HEADERS = {"content-type": "application/json", "x-content-type-options": "nosniff"}
"""Stored text in an answer may be anybody's: no browser may guess another type."""
RETRY_SECONDS = 5
"""What `Retry-After` says where nothing better is known."""


class Refusal(Exception):
    """A request that is not served, and why."""

    def __init__(
        self,
        status: int,
        error: str,
        *,
        hint: str = "",
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.hint = hint
        self.headers = dict(headers or {})
        self.more = dict(more or {})
        """Further fields of the answer."""


def try_later(error: str, *, hint: str = "", seconds: float = RETRY_SECONDS) -> Refusal:
    """503: the same request can succeed later."""
    wait = str(max(1, math.ceil(seconds)))
    return Refusal(503, error, hint=hint, headers={"retry-after": wait})


def refusal_of(error: Exception) -> Refusal:
    """What a request that ended with this exception is answered."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, TemporaryError | SourceRefused | StateRefused):
        # also what a person has to mend first: then the same request succeeds
        pause = getattr(error, "retry_after_seconds", None) or RETRY_SECONDS
        return try_later(error.message, hint=error.hint, seconds=pause)
    if isinstance(error, DamagedData):
        return Refusal(422, error.message, hint=error.hint)
    if isinstance(error, FuploaderError):
        log.error("a request failed: %s", error)
        return Refusal(500, error.message, hint=error.hint)
    log.error("a request failed unexpectedly", exc_info=error)
    return Refusal(500, "an unexpected error", hint="the server's log has its trace")


def json_answer(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON body."""
    return Response(msgspec.json.encode(value), status, {**JSON_HEADERS, **(headers or {})})


def error_answer(refusal: Refusal) -> Response:
    """`{"error": ..., "hint": ...}`, each one line."""
    body = {
        "error": in_a_line(refusal.error),
        "hint": in_a_line(refusal.hint),
        **refusal.more,
    }
    return json_answer(body, refusal.status, refusal.headers)
