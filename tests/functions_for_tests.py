"""Processors that child processes of the tests import by name."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fuploader_dagster import Item, processor
from fuploader_dagster.errors import BadItem, RetryItem


@processor
def as_the_contract_says(item: Item) -> Any:
    """What the table of `ProcessorContract` says."""
    word, _, rest = item.content[:100].partition(b" ")
    if word == b"slow":
        time.sleep(float(rest))
    return outcome_of(item, word, rest)


def outcome_of(item: Item, word: bytes, rest: bytes) -> Any:
    if word.startswith(b"echo"):
        return item.content
    if word == b"bad":
        raise BadItem("it is bad")
    if word == b"retry":
        raise RetryItem("it may pass", retry_after_seconds=2.5)
    return {
        b"key": item.key,
        b"header": item.headers.get(rest.decode()),
        b"none": [],
        b"many": (b"%d" % number for number in range(int(rest) if word == b"many" else 0)),
        b"slow": b"slow",
    }[word]


@processor(route="async")
async def as_the_contract_says_async(item: Item) -> Any:
    """The same, async."""
    word, _, rest = item.content[:100].partition(b" ")
    if word == b"slow":
        await asyncio.sleep(float(rest))
    return outcome_of(item, word, rest)
