"""Retries: what is tried again, how long, and what passes through at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuploader_dagster.contracts.object_store import (
    ArchiveFile,
    ObjectInfo,
    ObjectStore,
    Progress,
    StoredObject,
)
from fuploader_dagster.errors import (
    DigestMismatch,
    FuploaderError,
    ObjectConflict,
    StoreRefused,
    StoreUnavailable,
)
from fuploader_dagster.resources.object_stores.retrying import RetryingObjectStore

ARCHIVE = ArchiveFile(Path("archive"), 100, "0" * 64)


class ScriptedStore(ObjectStore):
    """Raises what the script says, one error per call; then succeeds."""

    def __init__(self, *script: FuploaderError, progress_per_call: int = 0) -> None:
        self.script = list(script)
        self.calls: list[float] = []
        self.progress_per_call = progress_per_call

    def _play(self) -> None:
        self.calls.append(time.monotonic())
        if self.script:
            raise self.script.pop(0)

    def put(self, key: str, archive: ArchiveFile, progress: Progress | None = None) -> StoredObject:
        if progress is not None:
            progress(self.progress_per_call * (len(self.calls) + 1), archive.size_bytes)
        self._play()
        return StoredObject("x://" + key, key, archive.size_bytes, archive.sha256)

    def head(self, key: str) -> ObjectInfo | None:
        self._play()
        return None

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        self._play()
        return b"x" * length

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        yield ObjectInfo("a", 1, None)
        self._play()
        yield ObjectInfo("b", 1, None)

    def delete(self, key: str) -> None:
        self._play()

    def check(self) -> None:
        self._play()

    def address(self, key: str) -> str:
        return "x://" + key


def quick(store: ObjectStore, budget_seconds: float = 5) -> RetryingObjectStore:
    return RetryingObjectStore(
        store, budget_seconds=budget_seconds, first_pause_seconds=0.01, longest_pause_seconds=0.05
    )


class Clock:
    """What time it is for the retries, who do not really wait."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def monotonic(self) -> float:
        return sum(self.pauses)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Instead of the real one, in this module and in what it tests."""
    made = Clock()
    monkeypatch.setattr("time.sleep", made.sleep)
    monkeypatch.setattr("time.monotonic", made.monotonic)
    return made


def down(count: int, retry_after_seconds: float | None = None) -> list[FuploaderError]:
    return [
        StoreUnavailable(f"down {n}", retry_after_seconds=retry_after_seconds) for n in range(count)
    ]


@pytest.mark.parametrize("method", ["put", "head", "get_range", "delete", "list"])
def test_every_method_is_tried_again_until_the_store_answers(method: str) -> None:
    store = ScriptedStore(*down(3))
    retrying = quick(store)
    result = {
        "put": lambda: retrying.put("k", ARCHIVE).key,
        "head": lambda: retrying.head("k"),
        "get_range": lambda: retrying.get_range("k", 0, 2),
        "delete": lambda: retrying.delete("k"),
        "list": lambda: [each.key for each in retrying.list()],
    }[method]()
    assert len(store.calls) == 4
    assert result in ("k", None, b"xx", ["a", "b"])


@pytest.mark.parametrize(
    "error", [StoreRefused("no"), ObjectConflict("other"), DigestMismatch("damaged")]
)
def test_what_cannot_pass_with_time_is_raised_at_once_as_it_is(error: FuploaderError) -> None:
    store = ScriptedStore(error)
    with pytest.raises(type(error)) as caught:
        quick(store).put("k", ARCHIVE)
    assert caught.value is error
    assert len(store.calls) == 1


def test_the_last_error_is_raised_when_the_budget_is_used_up() -> None:
    store = ScriptedStore(*down(1_000))
    with pytest.raises(StoreUnavailable, match="down"):
        quick(store, budget_seconds=0.5).put("k", ARCHIVE)
    assert 1 < len(store.calls) < 1_000


def test_without_a_budget_there_is_one_attempt() -> None:
    store = ScriptedStore(*down(1))
    with pytest.raises(StoreUnavailable):
        quick(store, budget_seconds=0).head("k")
    assert len(store.calls) == 1


def test_the_servers_retry_after_is_waited_for() -> None:
    store = ScriptedStore(*down(1, retry_after_seconds=0.5))
    quick(store).head("k")
    assert store.calls[1] - store.calls[0] >= 0.5


def test_a_retry_after_beyond_the_budget_ends_the_attempts_at_once() -> None:
    store = ScriptedStore(*down(1, retry_after_seconds=3600))
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable):
        quick(store, budget_seconds=100).head("k")
    assert time.monotonic() - begun < 60


def test_pauses_have_a_floor_and_grow(clock: Clock) -> None:
    store = ScriptedStore(*down(30))
    RetryingObjectStore(
        store, budget_seconds=1_000, first_pause_seconds=4, longest_pause_seconds=30
    ).head("k")
    assert len(clock.pauses) == 30
    assert min(clock.pauses) >= 2
    assert 8 < max(clock.pauses) <= 30
    assert max(clock.pauses[:1]) <= 4


def test_the_budget_begins_anew_with_each_byte_that_gets_through(clock: Clock) -> None:
    slow = ScriptedStore(*down(12), progress_per_call=1)
    retrying = RetryingObjectStore(
        slow, budget_seconds=25, first_pause_seconds=10, longest_pause_seconds=10
    )
    assert retrying.put("k", ARCHIVE).key == "k"
    assert len(slow.calls) == 13
    assert sum(clock.pauses) > 25  # longer than the budget, and yet it went on


def test_check_asks_once_because_it_tells_how_it_is_now() -> None:
    store = ScriptedStore(*down(1))
    with pytest.raises(StoreUnavailable):
        quick(store).check()
    assert len(store.calls) == 1
