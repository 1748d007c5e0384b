"""Processor: slow, remote or a user's own work on the items of sealed slots.

What must always hold:

- `process` gets whole items and returns the results of each, in the order of the items. It keeps
  nothing between two calls that a result depends on: after a crash the items that were in work are
  processed again, by another process. `Item.key` is the same then, so that a handler can see it.
- What is wrong with an item raises `BadItem`; it becomes a dead letter and the others go on. What
  may pass raises `RetryItem`; the item is tried again. Nothing is swallowed. Items that always get
  `RetryItem` are blamed only if others get an answer; so who refuses an item before anybody is
  asked says so (`BadItem.answered`).
- A result is content in memory (`Result`), or a file that the processor made in the item's folder
  (`FileResult`), which is never read whole. An item may give both.
- An item that is made of parts may give the results of some and say why it has none of the others
  (`Partial`): results are stored, and what is left to do of the item becomes one dead letter.
- An `OSError` about the disk that leaves a processor with folders ends the attempt of the slot and
  blames no item: the disk is full, or it fails.
- A processor belongs to one event loop: `open`, `process` (many calls at once, at most
  `concurrency` of the settings) and `close` are called in it.

Implementations: functions in child processes (`processing/functions.py`) and a handler behind HTTP
(`processing/http.py`). What becomes of the results: `delivery/process.py`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.contracts.settings import Count, Seconds, Settings
from fuploader_dagster.errors import BadItem


@dataclass(frozen=True)
class StoredResult:
    """A result of an earlier processing of the same slot, in a stored archive."""

    name: str
    size_bytes: int
    digest: bytes
    """The first 16 bytes of its SHA-256."""
    headers: Mapping[str, str]
    """Those of the `FileResult`, with `content-type` if there was one."""
    pieces: Callable[[], Iterator[memoryview]]
    """Reads the content from the object store. It blocks, so call it in a thread. Damage raises
    `DamagedArchive`, perhaps only after the last piece."""


@dataclass(frozen=True)
class Item:
    """One file of a sealed slot."""

    name: str
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    """The message headers that the pipeline keeps (setting `headers`)."""
    key: str = ""
    """The same each time this item is processed for this slot: an idempotency key."""
    folder: Path | None = None
    """Of a processor that `uses_folder`: a folder of this item's own, on the disk of the pipeline.

    It is there when `process` is called, and keeps what lies in it over retries, failed attempts
    and crashes, as long as the slot is processed by the same processor. So a processor takes up
    what it finds there, and trusts it only as far as it can check: after a power cut, what was not
    synced may be missing. It is removed once the item's results are committed."""
    before: Mapping[str, StoredResult] | None = None
    """If a stored slot is processed again, by a processor that `uses_folder`: all results that its
    archive holds now, of any of its items, by their names. A processor may take over what it would
    make again; it tells by name and headers what that is. The archive is opened by the first look
    into the mapping, which blocks, so look in a thread."""

    def json(self) -> Any:
        """The content as a JSON value. Raises `BadItem` if it is not JSON."""
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError) as error:
            raise BadItem(f"{self.name!r} is not JSON: {error}", answered=False) from error


@dataclass(frozen=True, slots=True)
class Result:
    """One file that came out of an item."""

    content: bytes
    name: str = ""
    """Empty: the item's name. Two results of one name are both kept (`name~2`)."""
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class FileResult:
    """One file that came out of an item, and is in the item's folder.

    Committing makes it durable, so the processor need not sync it, and removes it from the folder.
    Before that it must not change: a file whose size or time of change is another one by then makes
    the item a dead letter, as does one that is missing, is no regular file, or is reached through a
    link or outside of the folder. `max_result_bytes` does not count it.
    """

    name: str
    """As in `Result`."""
    path: Path
    """In the item's folder, or in a folder below it. Two results may be of one file."""
    size_bytes: int
    sha256: bytes
    """The digest, 32 bytes. It is compared when the file is packed, and for the first 16 MiB of a
    slot's files when they are committed."""
    content_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Kept with the file, as message headers are; at most 16 KiB of JSON."""


@dataclass(frozen=True)
class Failure:
    """A part of an item that has no result."""

    name: str
    """What it would have been called, or where it would have come from."""
    reason: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    """More about it, for programs: a JSON object of at most 4 KiB."""


@dataclass(frozen=True)
class Partial:
    """The outcome of an item of which some parts have results and others failed.

    The results are stored. The item gets one dead letter, and the failures are listed in the
    archive's manifest.
    """

    results: Sequence[Result | FileResult]
    failures: Sequence[Failure]
    rest: bytes | None = None
    """The content of an item that asks for what failed, and for nothing else: a task with only
    those addresses. The dead letter holds it, so sending that back, to the stage or to the queue,
    does not do again what is stored. None: the whole content, and all is done again."""
    answered: bool = True
    """Whether somebody answered. False, if the results were there before and nobody was asked for
    them: that does not show that the processor works."""


Answer = Sequence[Result | FileResult] | Partial | BadItem
"""What becomes of an item."""


class Processor(ABC):
    """Turns items into results."""

    uses_folder: ClassVar[bool] = False
    """Whether items get a folder, so that results can be files. Results are then stored as files on
    this disk until they are packed, not in a segment."""

    async def open(self) -> None:  # noqa: B027 - a default, on purpose
        """Get ready: called once, before the first `process`."""

    @abstractmethod
    async def process(self, items: Sequence[Item]) -> Sequence[Answer]:
        """The results of each item: none, one or many; or why it can never have any; or both.

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
    """An item whose results are larger than this, together, becomes a dead letter. Results that are
    files on the disk do not count."""
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
