"""A route: a method, a path, the right that it needs, and the function that answers.

Modules with routes have a function `routes()` that returns them; `app.ROUTE_MODULES` lists the
modules. A path with `{pipeline}` is served for each pipeline that says `serve`; others are the
server's own. `spec` is the route's operation in the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.settings.serve import Right, Serve

Kept = TypeVar("Kept")

if TYPE_CHECKING:
    from fuploader_dagster.front.app import Front


class Served:
    """A pipeline in this server process, and what its routes keep open."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.serve = pipeline.serve or Serve()
        self.at_end = ExitStack()
        """Closed in a thread when the server ends, after the last answer."""
        self._kept: dict[object, Any] = {}

    def kept(self, make: Callable[[Served], Kept]) -> Kept:
        """What this makes of the pipeline, made when it is first asked for. Called in the event
        loop."""
        if make not in self._kept:
            self._kept[make] = make(self)
        made: Kept = self._kept[make]
        return made


@dataclass(frozen=True)
class Call:
    """A request that may be served. `request.path_params` has what the path's names stand for."""

    request: Request
    front: Front
    served: Served | None

    @property
    def of_pipeline(self) -> Served:
        """The pipeline of a path with `{pipeline}`."""
        if self.served is None:
            raise LookupError(f"{self.request.url.path} is not a path of a pipeline")
        return self.served


Answer = Callable[[Call], Awaitable[Response]]
Spec = Mapping[str, Any]


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    right: Right | None
    """The right that a token needs; None: any token of the server."""
    answer: Answer
    """May raise a `Refusal`, or an error of this package."""
    spec: Spec | Callable[[Sequence[Pipeline]], Spec] = field(default_factory=dict)
    """Or what makes it for the pipelines that are served."""
    open: bool = False
    """Needs no token."""
