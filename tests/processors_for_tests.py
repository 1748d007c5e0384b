"""Processors that tests put into pipelines: what becomes of an item is written in its content."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuploader_dagster.contracts.processor import Item, Processor, ProcessorSettings, Result
from fuploader_dagster.errors import BadItem, RetryItem

calls: Counter[str] = Counter()
"""How often each item was processed in this process."""
most_at_once = [0, 0]
"""How many calls are in work now, and the most that ever were."""


def script(**steps: Any) -> bytes:
    """The content of an item that does this."""
    return json.dumps(steps).encode()


class Scripted(Processor):
    """Does what the items say."""

    def __init__(self, settings: Script) -> None:
        self._settings = settings

    async def process(self, items: Sequence[Item]) -> Sequence[Sequence[Result] | BadItem]:
        most_at_once[0] += 1
        most_at_once[1] = max(most_at_once)
        try:
            if self._settings.switch is not None and not self._settings.switch.exists():
                raise RetryItem("the handler is switched off")
            if len(items) > 1 and any("poison" in one.json() for one in items):
                raise BadItem("one of them is bad")
            return [await self._one(item) for item in items]
        finally:
            most_at_once[0] -= 1

    async def _one(self, item: Item) -> Sequence[Result] | BadItem:
        calls[item.name] += 1
        if self._settings.journal is not None:
            with self._settings.journal.open("a") as journal:
                journal.write(f"{item.name} {item.key}\n")
        steps = item.json()
        await asyncio.sleep(steps.get("seconds", 0))
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
        name, kind = steps.get("name", ""), steps.get("kind", "")
        return [
            Result(f"{item.name}-{number}".encode() * steps.get("times", 1), name, kind)
            for number in range(steps.get("results", 1))
        ]

    async def close(self) -> None:
        """Nothing is open."""


class Script(ProcessorSettings):
    """Settings of `Scripted`."""

    retry_delay_seconds: float = 0.001
    edition: int = 1
    switch: Path | None = None
    """Without this file the handler does not answer."""
    journal: Path | None = None
    """Gets a line for each item that is processed."""

    def processor(self) -> Processor:
        return Scripted(self)

    def describe(self) -> str:
        return "the scripted processor"
