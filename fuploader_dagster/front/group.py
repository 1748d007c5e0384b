"""A group of requests on its way into the queue: what is known already, and what became of each.

What must always hold: a request ends well only if each of its messages is in the queue, from this
group or an earlier one. An id is confirmed only then; every other id that the group noted is
forgotten again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.errors import DamagedData, FuploaderError
from fuploader_dagster.front.accepted import Accepted, State
from fuploader_dagster.front.answers import Refusal
from fuploader_dagster.front.items import Item

log = logging.getLogger(__name__)

Send = Callable[[Sequence[Item]], Mapping[int, FuploaderError]]
"""Publishes items, each confirmed; returns the refused ones by position."""


class Request:
    """The messages of one HTTP request."""

    __slots__ = ("content", "future", "items", "key", "size_bytes")

    def __init__(
        self,
        items: Sequence[Item],
        size_bytes: int,
        future: asyncio.Future[None],
        key: bytes | None,
        content: bytes,
    ) -> None:
        self.items = items
        self.size_bytes = size_bytes
        self.future = future
        self.key = key
        """Digest of its idempotency key; None without one."""
        self.content = content


class Group:
    def __init__(self, requests: Sequence[Request], send: Send, memory: Accepted | None) -> None:
        self._requests = requests
        self._send = send
        self._memory = memory
        self._outcomes: dict[int, Exception | None] = {}
        """By the number of the request; those that are decided."""
        self._same: dict[int, int] = {}
        """Requests that repeat an earlier one of the group."""
        self._in_queue: set[bytes] = set()
        """Ids that were confirmed now or before."""

    def outcomes(self) -> list[Exception | None]:
        """What became of each request; None: all of it is in the queue.

        Raises what the queue does; then that became of all of them.
        """
        noted = self._note() if self._memory is not None else ()
        try:
            self._publish()
        finally:
            self._settle(noted)
        return [self._outcomes[self._same.get(at, at)] for at in range(len(self._requests))]

    def _note(self) -> Sequence[bytes]:
        """Decide what is known; returns the ids that are new, and now noted as begun."""
        wanted: dict[bytes, bytes] = {}
        first: dict[bytes, int] = {}
        for at, request in enumerate(self._requests):
            wanted.update((one.key, b"") for one in request.items if one.key is not None)
            if request.key is None:
                continue
            before = first.setdefault(request.key, at)
            if wanted.setdefault(request.key, request.content) != request.content:
                self._outcomes[at] = _other_content()
            elif before != at:
                self._same[at] = before
        if not wanted or self._memory is None:
            return ()
        states = self._memory.claim(wanted)
        self._in_queue = {key for key, state in states.items() if state == "known"}
        for at, request in enumerate(self._requests):
            if at not in self._outcomes and at not in self._same:
                self._decide(at, request, states)
        return [key for key, state in states.items() if state == "new"]

    def _decide(self, at: int, request: Request, states: Mapping[bytes, State]) -> None:
        own = states[request.key] if request.key is not None else "new"
        if own == "known":
            self._outcomes[at] = None
        elif own == "other":
            self._outcomes[at] = _other_content()
        elif own == "busy" or any(
            one.key is not None and states[one.key] == "busy" for one in request.items
        ):
            self._outcomes[at] = _busy()

    def _publish(self) -> None:
        """Send what is new, each message once."""
        undecided = [
            at
            for at in range(len(self._requests))
            if at not in self._outcomes and at not in self._same
        ]
        items: list[Item] = []
        senders: list[list[int]] = []
        place: dict[bytes, int] = {}
        for at in undecided:
            for item in self._requests[at].items:
                if item.key is None or self._memory is None:
                    items.append(item)
                    senders.append([at])
                elif item.key in place:
                    senders[place[item.key]].append(at)
                elif item.key not in self._in_queue:
                    place[item.key] = len(items)
                    items.append(item)
                    senders.append([at])
        refused = self._sent(items) if items else {}
        self._in_queue |= {key for key, position in place.items() if position not in refused}
        wrong: dict[int, dict[str, FuploaderError]] = {}
        for position, error in refused.items():
            for at in senders[position]:
                wrong.setdefault(at, {})[items[position].id] = error
        for at in undecided:
            self._outcomes[at] = _refused(self._requests[at], wrong[at]) if at in wrong else None
            key = self._requests[at].key
            if at not in wrong and key is not None:
                self._in_queue.add(key)

    def _sent(self, items: Sequence[Item]) -> Mapping[int, FuploaderError]:
        try:
            return self._send(items)
        except DamagedData:  # one that cannot be sent at all: find out which
            refused: dict[int, FuploaderError] = {}
            for position, item in enumerate(items):
                try:
                    if wrong := self._send([item]):
                        refused[position] = wrong[0]
                except DamagedData as error:
                    refused[position] = error
            return refused

    def _settle(self, noted: Sequence[bytes]) -> None:
        """Confirm or forget what was noted. A failure only means that something may be published
        twice."""
        if self._memory is None or not noted:
            return
        confirmed = [key for key in noted if key in self._in_queue]
        lost = [key for key in noted if key not in self._in_queue]
        try:
            if confirmed:
                self._memory.confirm(confirmed)
            if lost:
                self._memory.forget(lost)
        except FuploaderError as error:
            log.warning("%s", error)


def _refused(request: Request, wrong: Mapping[str, FuploaderError]) -> Refusal:
    first = next(iter(wrong.values()))
    return Refusal(
        422,
        f"the queue refuses {len(wrong)} of {counted(len(request.items), 'message')}: "
        f"{first.message}",
        hint=first.hint or "the others are accepted: send only these again, changed",
        more={
            "accepted": [one.id for one in request.items if one.id not in wrong],
            "refused": list(wrong),
        },
    )


def _other_content() -> Refusal:
    return Refusal(
        422,
        "this Idempotency-Key came with another body before",
        hint="a key is for one request: make a new one for each, and keep it for its repetitions",
    )


def _busy() -> Refusal:
    return Refusal(
        409,
        "the same request is in work",
        hint="send it again in a moment for its answer",
        headers={"retry-after": "1"},
    )
