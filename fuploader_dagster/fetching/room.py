"""How much may be in work at once, where one piece of work takes more room than another."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Room:
    """Belongs to one event loop. First come, first served: what is large waits for no stream of
    what is small. What is larger than all of the room has it for itself."""

    def __init__(self, size: int) -> None:
        self._free = self._size = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Have so much of it, for the block."""
        size = min(size, self._size)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        self._hand_out()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._free += size
            self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.cancelled():
                if size > self._free:
                    return
                self._free -= size
                turn.set_result(None)
            self._waiting.popleft()
