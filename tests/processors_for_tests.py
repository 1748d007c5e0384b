"""Processors that tests put into pipelines: what becomes of an item is written in its content."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from fuploader_dagster.contracts.processor import (
    Answer,
    Failure,
    FileResult,
    Item,
    Partial,
    Processor,
    ProcessorSettings,
    Result,
)
from fuploader_dagster.errors import BadItem, ConfigError, RetryItem

calls: Counter[str] = Counter()
"""How often each item was processed in this process."""
later: dict[str, bytes] = {}
"""What items do instead of what is written in their content."""
begun_when_quiet: list[int] = []
"""How many items had been begun when nothing went on until an item that says `waits` has ended."""
most_at_once = [0, 0]
"""How many calls are in work now, and the most that ever were."""


def script(**steps: Any) -> bytes:
    """The content of an item that does this."""
    return json.dumps(steps).encode()


class Scripted(Processor):
    """Does what the items say."""

    def __init__(self, settings: Script) -> None:
        self._settings = settings

    async def process(self, items: Sequence[Item]) -> Sequence[Answer]:
        most_at_once[0] += 1
        most_at_once[1] = max(most_at_once)
        try:
            refused = [self._refused(item) for item in items]
            if len(items) == 1 and refused[0] is not None:
                return [refused[0]]
            if self._settings.switch is not None and not self._settings.switch.exists():
                raise RetryItem("the handler is switched off")
            if len(items) > 1 and any("poison" in one.json() for one in items):
                raise BadItem("one of them is bad")
            return [
                await self._one(item) if bad is None else bad
                for item, bad in zip(items, refused, strict=True)
            ]
        finally:
            most_at_once[0] -= 1

    def _refused(self, item: Item) -> BadItem | None:
        """Before anybody is asked."""
        if self._settings.refuses:
            return BadItem("refused", answered=False)
        try:
            item.json()
        except BadItem as error:
            return error
        return None

    async def _one(self, item: Item) -> Answer:
        calls[item.name] += 1
        self._note(f"{item.name} {item.key}")
        steps = json.loads(later.get(item.name, item.content))
        await asyncio.sleep(steps.get("seconds", 0))
        if "waits" in steps:
            begun_when_quiet.append(await _all_begun())
        if "poison" in steps:
            raise BadItem(steps["poison"])
        if "bad" in steps:
            return BadItem(steps["bad"])
        if "raise" in steps:
            raise ValueError(steps["raise"])
        if calls[item.name] <= steps.get("retries", 0):
            raise RetryItem("not now", shared=steps.get("shared", False))
        if "die" in steps:
            os._exit(steps["die"])
        if "outside" in steps:
            return [FileResult("x", Path(steps["outside"]), 0, bytes(32))]
        name, kind = steps.get("name", ""), steps.get("kind", "")
        results = [
            *(
                Result(f"{item.name}-{number}".encode() * steps.get("times", 1), name, kind)
                for number in range(steps.get("results", 0 if "files" in steps else 1))
            ),
            *[await self._taken_or_made(item, steps, file) for file in steps.get("files", ())],
        ]
        if "stop" in steps and calls[item.name] == 1:
            raise ConfigError("stopped")
        if "missing" not in steps:
            return results
        failures = [Failure(one, "404", {"status": 404}) for one in steps["missing"]]
        return Partial(results, failures, script(files=steps["missing"]))

    async def _taken_or_made(self, item: Item, steps: dict[str, Any], name: str) -> FileResult:
        if not self._settings.takes_over:
            return self._file(item, steps, name)
        return await asyncio.to_thread(self._taken, item, name) or self._file(item, steps, name)

    def _taken(self, item: Item, name: str) -> FileResult | None:
        assert item.folder is not None
        assert item.before is not None
        found = item.before.get(name)
        if found is None or found.headers.get("etag") != name[:9]:
            return None
        path = item.folder / f"taken-{name}"
        with path.open("wb") as file:
            file.writelines(found.pieces())
        content = path.read_bytes()
        self._note(f"took {name}")
        digest = hashlib.sha256(content).digest()
        assert digest[:16] == found.digest
        return FileResult(name, path, found.size_bytes, digest, "text/plain", {"etag": name[:9]})

    def _note(self, line: str) -> None:
        if self._settings.journal is not None:
            with self._settings.journal.open("a") as journal:
                journal.write(f"{line}\n")

    def _file(self, item: Item, steps: dict[str, Any], name: str) -> FileResult:
        """A file in the item's folder, made unless an earlier attempt made it."""
        assert item.folder is not None
        path = item.folder / hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()
        content = f"{item.name} {name} ".encode() * steps.get("times", 1)
        found = path.exists() and path.stat().st_size == len(content)
        self._note(f"{'found' if found else 'made'} {name}")
        if not found:
            path.write_bytes(content)
        digest = hashlib.sha256(content).digest()
        digest = bytes.fromhex(steps.get("digest", "")) or digest
        return FileResult(name, path, len(content), digest, "text/plain", {"etag": name[:9]})

    async def close(self) -> None:
        """Nothing is open."""


async def _all_begun() -> int:
    """How many items have been begun, once no more are."""
    begun = -1
    while begun != calls.total():
        begun = calls.total()
        for _ in range(500):
            await asyncio.sleep(0)
    return begun


class Script(ProcessorSettings):
    """Settings of `Scripted`."""

    retry_delay_seconds: float = 0.001
    edition: int = 1
    switch: Path | None = None
    """Without this file the handler does not answer."""
    refuses: bool = False
    """Whether each item is refused before anybody is asked."""
    takes_over: bool = False
    """Whether results that are stored are taken over."""
    journal: Path | None = None
    """Gets a line for each item that is processed."""

    def processor(self) -> Processor:
        return Scripted(self)

    def describe(self) -> str:
        return "the scripted processor"


class ScriptedWithFolders(Scripted):
    """The same, whose results can be files."""

    uses_folder: ClassVar[bool] = True


class ScriptWithFolders(Script):
    """Settings of `ScriptedWithFolders`."""

    def processor(self) -> Processor:
        return ScriptedWithFolders(self)
