"""Who may download now: so many in all, so many from one host, with pauses between.

What must always hold: never more than `concurrency` places are taken, nor `per_host` for one host,
nor two within `pause_seconds` for one host. A host that is slow or paused holds up no other: who
waits for it has no place yet. Within a host first come, first served; hosts take turns.
"""

from __future__ import annotations

import asyncio
from collections import deque


class _Host:
    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.taken = 0
        self.not_before = 0.0
        self.listed = False
        """Whether it is in turn, or a timer will bring it there."""


class Lanes:
    """Places to download; belongs to one event loop."""

    def __init__(self, concurrency: int, per_host: int, pause_seconds: float = 0.0) -> None:
        self._free = concurrency
        self._per_host = per_host
        self._pause = pause_seconds
        self._hosts: dict[str, _Host] = {}
        self._turns: deque[_Host] = deque()

    def place(self, host: str) -> _Place:
        """A place for one download from this host, for `async with`."""
        return _Place(self, host)

    async def take(self, name: str) -> _Host:
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host(name)
        turn = asyncio.get_running_loop().create_future()
        host.waiting.append(turn)
        self._list(host)
        self._hand_out()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(host)  # it was handed over just now
            raise
        return host

    def give_back(self, host: _Host) -> None:
        host.taken -= 1
        self._free += 1
        self._list(host)
        self._hand_out()

    def _list(self, host: _Host) -> None:
        """Put the host in turn if somebody may begin there; forget one that nobody needs."""
        if host.listed:
            return
        loop = asyncio.get_running_loop()
        wait = host.not_before - loop.time()
        if (host.waiting or host.taken == 0) and host.taken < self._per_host and wait > 0:
            host.listed = True
            loop.call_later(wait, self._due, host)
        elif host.waiting and host.taken < self._per_host:
            host.listed = True
            self._turns.append(host)
        elif not host.waiting and host.taken == 0:
            self._hosts.pop(host.name, None)

    def _due(self, host: _Host) -> None:
        host.listed = False
        self._list(host)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._free and self._turns:
            host = self._turns.popleft()
            host.listed = False
            while host.waiting and host.waiting[0].done():
                host.waiting.popleft()  # it was cancelled
            if host.waiting:
                host.waiting.popleft().set_result(None)
                host.taken += 1
                self._free -= 1
                host.not_before = asyncio.get_running_loop().time() + self._pause
            self._list(host)


class _Place:
    def __init__(self, lanes: Lanes, host: str) -> None:
        self._lanes = lanes
        self._name = host

    async def __aenter__(self) -> None:
        self._host = await self._lanes.take(self._name)

    async def __aexit__(self, *_: object) -> None:
        self._lanes.give_back(self._host)
