"""The processor of kind `fetch`: a task's files are its results.

What must always hold:

- A file that is a result was fetched whole. What could not be fetched is a failure with its reason,
  never left out in silence.
- An item is blamed only if somebody answered. A task of which nothing came and no server gave a
  final answer (the network is down, all hosts are, or all of them say "later") is tried again; if
  that goes on for every task, the processor is unavailable and nothing becomes a dead letter.
- What is in the item's folder is taken up: after a crash only what is missing is fetched. When a
  stored task is processed again, so is what its archive holds.
- Tasks in work have at most `ADDRESSES_IN_WORK` addresses together, or one of them alone has more:
  memory does not grow with the number of large tasks.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.processor import (
    Answer,
    Failure,
    FileResult,
    Item,
    Partial,
    Processor,
)
from fuploader_dagster.errors import BadItem, RetryItem
from fuploader_dagster.fetching.addresses import Address, addresses_of, rest_of
from fuploader_dagster.fetching.room import Room
from fuploader_dagster.fetching.stored_files import ADDRESS_HEADER, take_stored
from fuploader_dagster.fetching.task_folder import TaskFolder

if TYPE_CHECKING:
    from fuploader_dagster.fetching.connections import Connections
    from fuploader_dagster.fetching.fetcher import Fetcher, Missed, Outcome
    from fuploader_dagster.fetching.settings import Fetch

ADDRESSES_IN_WORK = 10_000
"""An address takes about a kilobyte until its task has ended."""
_NAMED_REASONS = 3


class FetchProcessor(Processor):
    """Fetches the addresses in items, those of many items at once."""

    uses_folder: ClassVar[bool] = True

    def __init__(self, settings: Fetch) -> None:
        self._settings = settings
        self._connections: Connections | None = None
        self._fetcher: Fetcher | None = None
        self._takes_over: asyncio.Lock | None = None
        """Held while files are read from a stored archive."""
        self._room: Room | None = None
        """For addresses."""

    async def open(self) -> None:
        # They load aiohttp, which loading settings must not.
        from fuploader_dagster.fetching.connections import Connections  # noqa: PLC0415
        from fuploader_dagster.fetching.fetcher import Fetcher  # noqa: PLC0415

        self._takes_over = asyncio.Lock()
        self._room = Room(ADDRESSES_IN_WORK)
        self._connections = Connections(self._settings)
        self._fetcher = Fetcher(self._settings, self._connections)

    async def close(self) -> None:
        if self._connections is not None:
            await self._connections.close()

    async def process(self, items: Sequence[Item]) -> Sequence[Answer]:
        (item,) = items
        assert self._room, "open() comes first"  # noqa: S101 - the contract
        try:
            number = len(self._addresses(item))
        except BadItem as error:
            error.answered = False
            return [error]
        async with self._room.taken(number):
            # Read again, so that tasks that wait for room hold no addresses.
            return [await self._fetched(item, self._addresses(item))]

    def _addresses(self, item: Item) -> list[Address]:
        settings = self._settings
        return addresses_of(
            item.content, urls=settings.urls, url=settings.url, most=settings.max_files
        )

    async def _fetched(self, item: Item, addresses: Sequence[Address]) -> Answer:
        assert self._fetcher and self._takes_over, "open() comes first"  # noqa: S101 - the contract
        assert item.folder is not None, "each item has one"  # noqa: S101
        settings = self._settings
        with TaskFolder(item.folder) as folder:
            if item.before is not None:
                async with self._takes_over:
                    await asyncio.to_thread(take_stored, folder, addresses, item.before)
            outcome = await self._fetcher.fetch(addresses, folder, durably=False)
            results = [
                FileResult(
                    name=one.file.name,
                    path=folder.path(one.file),
                    size_bytes=one.file.size_bytes,
                    sha256=bytes.fromhex(one.file.sha256),
                    content_type=one.file.content_type,
                    headers={**one.file.headers, ADDRESS_HEADER: one.file.key},
                )
                for one in outcome.fetched
            ]
        if not outcome.missed:
            return results if outcome.answered else Partial(results, [], answered=False)
        if not results or len(results) < settings.needed(len(addresses)):
            failed = _failed(outcome, len(addresses))
            if len(results) < settings.needed(len(addresses)):
                return failed
        rest = rest_of(item.content, [one.position for one in outcome.missed], urls=settings.urls)
        failures = [_failure(one) for one in outcome.missed]
        return Partial(results, failures, rest, answered=outcome.answered)


def _failed(outcome: Outcome, addresses: int) -> BadItem:
    """For a task of which too little could be fetched. Raises `RetryItem` if nobody is to blame."""
    missed = outcome.missed
    asked = [one for one in missed if one.passing or one.status is not None]
    said = f"{len(missed)} of {addresses} addresses could not be fetched: {_reasons(missed)}"
    if asked and not outcome.something_came and all(one.passing for one in asked):
        nobody = all(one.unreachable for one in asked)
        raise RetryItem(
            said,
            hint="check the network, name resolution and proxy of this machine" if nobody else "",
        )
    hint = "min_success says how many have to be"
    return BadItem(said, hint=hint, answered=outcome.answered)


def _reasons(missed: Sequence[Missed]) -> str:
    """Each reason with how often it is there and an address, the most frequent ones."""
    counts = Counter(one.reason for one in missed)
    examples = {one.reason: one.address for one in reversed(missed)}
    named = [
        f"{reason} ({count}, such as {examples[reason]})"
        for reason, count in counts.most_common(_NAMED_REASONS)
    ]
    more = len(counts) - len(named)
    return "; ".join(named) + (f"; and {counted(more, 'more reason')}" if more > 0 else "")


def _failure(missed: Missed) -> Failure:
    detail = {
        "position": missed.position,
        "address": missed.address,
        "status": missed.status,
        "may_pass": missed.passing,
    }
    return Failure(missed.name or missed.address, missed.reason, detail)
