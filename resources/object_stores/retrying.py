"""Retries, once for all backends.

What must always hold:

- Only a `TemporaryError` is retried. Everything else passes through at once, unchanged.
- Pauses grow exponentially with jitter and are never shorter than what the server asked for.
- Progress starts the budget again: a large upload over a bad line goes on as long as each attempt
  gets some parts through; one that gets nothing through ends after the budget.

This is safe because every method of an ObjectStore may be repeated: `put` finds what is stored.
"""

from __future__ import annotations

import builtins
import logging
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TypeVar

import tenacity

from fuploader_dagster.contracts.object_store import (
    ArchiveFile,
    ObjectInfo,
    ObjectStore,
    Progress,
    Retry,
    StoredObject,
    UnfinishedUpload,
)
from fuploader_dagster.errors import StoreUnavailable, TemporaryError

log = logging.getLogger(__name__)

T = TypeVar("T")


class RetryingObjectStore(ObjectStore):
    """Another store, whose methods are retried while that can help."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        budget_seconds: float = 300,
        first_pause_seconds: float = 0.5,
        longest_pause_seconds: float = 30,
    ) -> None:
        self.store = store
        self._budget_seconds = budget_seconds
        self._pauses = tenacity.wait_random_exponential(
            multiplier=first_pause_seconds, max=longest_pause_seconds
        )
        self._floor_seconds = first_pause_seconds / 2
        self._ear: Callable[[Retry], None] = lambda retry: log.warning("%s", retry)

    def listen(self, ear: Callable[[Retry], None]) -> None:
        self._ear = ear
        self.store.listen(ear)

    def put(self, key: str, archive: ArchiveFile, progress: Progress | None = None) -> StoredObject:
        attempts = _Attempts(self._budget_seconds)

        def report(confirmed: int, total: int) -> None:
            attempts.progressed(confirmed)
            if progress is not None:
                progress(confirmed, total)

        return self._try(lambda: self.store.put(key, archive, report), attempts)

    def head(self, key: str) -> ObjectInfo | None:
        return self._try(lambda: self.store.head(key))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        return self._try(lambda: self.store.get_range(key, offset, length))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        # A listing that breaks off starts again, so it is read to its end before we return it.
        return iter(self._try(lambda: builtins.list(self.store.list(prefix))))

    def delete(self, key: str) -> None:
        self._try(lambda: self.store.delete(key))

    def erase(self, key: str) -> None:
        self._try(lambda: self.store.erase(key))

    def check(self) -> None:
        """One attempt only: people and ticks want to know how the store is now."""
        self.store.check()

    def address(self, key: str) -> str:
        return self.store.address(key)

    def presigned(self, key: str, seconds: int) -> str | None:
        return self._try(lambda: self.store.presigned(key, seconds))

    def clock(self) -> datetime | None:
        """One attempt only: a later one would have another time."""
        return self.store.clock()

    def unfinished(self, prefix: str = "") -> builtins.list[UnfinishedUpload]:
        return self._try(lambda: self.store.unfinished(prefix))

    def abort(self, upload: UnfinishedUpload) -> None:
        self._try(lambda: self.store.abort(upload))

    def _try(self, action: Callable[[], T], attempts: _Attempts | None = None) -> T:
        attempts = attempts or _Attempts(self._budget_seconds)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TemporaryError),
            wait=self._pause,
            stop=attempts.exhausted,
            before_sleep=lambda state: self._ear(attempts.failed(state)),
            reraise=True,
        )
        return retrying(action)

    def _pause(self, state: tenacity.RetryCallState) -> float:
        pause = max(self._floor_seconds, self._pauses(state))
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, StoreUnavailable) and error.retry_after_seconds is not None:
            return max(pause, error.retry_after_seconds)
        return pause


class _Attempts:
    """When to stop: when the budget has passed since the last newly confirmed byte."""

    def __init__(self, budget_seconds: float) -> None:
        self._budget_seconds = budget_seconds
        self._most_confirmed = 0
        self._last_progress = time.monotonic()

    def progressed(self, confirmed: int) -> None:
        if confirmed > self._most_confirmed:
            self._most_confirmed = confirmed
            self._last_progress = time.monotonic()

    def failed(self, state: tenacity.RetryCallState) -> Retry:
        error = state.outcome.exception() if state.outcome else None
        seconds = time.monotonic() - self._last_progress
        return Retry(error or Exception(), state.attempt_number, state.upcoming_sleep, seconds)

    def exhausted(self, state: tenacity.RetryCallState) -> bool:
        # A pause that ends after the budget would only waste the caller's time.
        spent = time.monotonic() - self._last_progress + state.upcoming_sleep
        return spent > self._budget_seconds
