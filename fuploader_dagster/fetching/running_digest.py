"""The SHA-256 of bytes that come one piece after the other.

What must always hold: the digest is that of all pieces in their order. Of larger files a thread
computes it, beside whoever takes the pieces, and is never more than `MOST_BEHIND` bytes behind.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

WORTH_A_THREAD = 128 * 1024
MOST_BEHIND = 512 * 1024


class RunningDigest:
    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._behind: list[bytes | memoryview] = []
        self._behind_bytes = 0
        self._in_work: Future[None] | None = None

    def update(self, piece: bytes | memoryview) -> None:
        """Add the next piece, which must not change afterwards."""
        self._behind.append(piece)
        self._behind_bytes += len(piece)
        if self._behind_bytes < WORTH_A_THREAD:
            return
        if self._behind_bytes >= MOST_BEHIND or self._in_work is None or self._in_work.done():
            self._wait()
            self._in_work = _thread(os.getpid()).submit(self._add, self._taken())

    def hexdigest(self) -> str:
        return self.digest().hex()

    def digest(self) -> bytes:
        """That of all pieces so far."""
        self._wait()
        self._add(self._taken())
        return self._digest.digest()

    def _taken(self) -> list[bytes | memoryview]:
        taken, self._behind, self._behind_bytes = self._behind, [], 0
        return taken

    def _add(self, pieces: list[bytes | memoryview]) -> None:
        for piece in pieces:
            self._digest.update(piece)

    def _wait(self) -> None:
        if self._in_work is not None:
            self._in_work.result()
            self._in_work = None


@lru_cache(1)
def _thread(process: int) -> ThreadPoolExecutor:
    """One for all digests of this process: a fork has none of its parent's threads."""
    return ThreadPoolExecutor(1, thread_name_prefix=f"digests-{process}")
