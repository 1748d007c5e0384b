"""Processor: slow, remote or a user's own work on the items of sealed slots.

What must always hold:

- `process` gets whole items and returns the results of each, in the order of the items. It keeps
  nothing between two calls that a result depends on: after a crash the items that were in work are
  processed again, by another process. `Item.key` is the same then, so that a handler can see it.
- What is wrong with an item raises `BadItem`; it becomes a dead letter and the others go on. What
  may pass raises `RetryItem`; the item is tried again. Nothing is swallowed.
- A processor belongs to one event loop: `open`, `process` (many calls at once, at most
  `concurrency` of the settings) and `close` are called in it.

Implementations: functions in child processes (`processing/functions.py`) and a handler behind HTTP
(`processing/http.py`). What becomes of the results: `delivery/process.py`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.settings import Count, Seconds, Settings
from fuploader_dagster.errors import BadItem


@dataclass(frozen=True)
class Item:
    """One file of a sealed slot."""

    name: str
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    """The message headers that the pipeline keeps (setting `headers`)."""
    key: str = ""
    """The same each time this item is processed for this slot: an idempotency key."""

    def json(self) -> Any:
        """The content as a JSON value. Raises `BadItem` if it is not JSON."""
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError) as error:
            raise BadItem(f"{self.name!r} is not JSON: {error}") from error


@dataclass(frozen=True)
class Result:
    """One file that came out of an item."""

    content: bytes
    name: str = ""
    """Empty: the item's name. Two results of one name are both kept (`name~2`)."""
    content_type: str = ""


class Processor(ABC):
    """Turns items into results."""

    async def open(self) -> None:  # noqa: B027 - a default, on purpose
        """Get ready: called once, before the first `process`."""

    @abstractmethod
    async def process(self, items: Sequence[Item]) -> Sequence[Sequence[Result] | BadItem]:
        """The results of each item: none, one or many; or why it can never have any.

        There is one item, or as many as the settings' `batch`. Raises `BadItem` if something is
        wrong with one of them and nobody knows which: each is then processed alone. Raises
        `RetryItem` for what may pass.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let go of everything. May be repeated."""


class ProcessorSettings(Settings):
    """The settings of a processor. Subclasses add fields, and build the processor."""

    INDECISIVE: ClassVar[frozenset[str]] = frozenset(
        {
            "concurrency",
            "timeout_seconds",
            "max_retries",
            "retry_delay_seconds",
            "keep",
            "partitions_per_run",
            "pool",
        }
    )
    """Settings that change when and where, not what comes out. Subclasses add theirs."""

    concurrency: Count = 16
    """Number of items (or batches) that are processed at once, in one run."""
    batch: Count = 1
    """Number of items in one call."""
    timeout_seconds: Seconds = 60.0
    """Longest time that one call may take."""
    max_retries: Annotated[int, Field(ge=0)] = 3
    """Attempts after the first for an item whose failure may pass. After these it becomes a dead
    letter, unless no item succeeds: then the run fails, and nothing becomes a dead letter."""
    retry_delay_seconds: Seconds = 1.0
    """Pause before the first retry. Doubles with each retry; a handler's Retry-After wins."""
    max_result_bytes: Count = 64 * 1024 * 1024
    """An item whose results are larger than this, together, becomes a dead letter."""
    keep: Literal["both", "results", "originals"] = "both"
    """What the archive holds: the originals and, below `results/`, what came out of them; or only
    one of the two. Without originals a partition cannot be processed again from its archive."""
    partitions_per_run: Annotated[int, Field(ge=1, le=1000)] = 4
    """Maximum number of slots in one run of a pipeline that processes them."""
    pool: str | None = None
    """A Dagster pool that limits how many runs process at once, over all pipelines that name it."""

    def processor(self) -> Processor:
        """A processor, not opened yet."""
        raise NotImplementedError

    def describe(self) -> str:
        """What processes, for logs and errors, without secrets: `http://10.0.0.7:8001/thumb`."""
        raise NotImplementedError

    def headers_used(self) -> Sequence[str]:
        """Message headers that it looks at; the setting `headers` of the pipeline keeps them."""
        return ()

    def version(self) -> str:
        """Changes when the results may: a digest, in hex, of what decides them.

        A slot whose processing began with another version begins again.
        """
        decisive = self.model_dump(mode="json", exclude=set(self.INDECISIVE))
        text = json.dumps([type(self).__qualname__, decisive], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def examine(self) -> Iterator[Diagnosis]:
        """Check the processor for `fuploader doctor`, without processing an item.

        Raises an error of this package if the check cannot go on.
        """
        yield Diagnosis("processor", "good", self.describe())
