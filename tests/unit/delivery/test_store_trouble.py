"""A store that does not answer is noted soon, one process waits for it, and nothing waits after."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from fuploader_dagster.contracts.object_store import (
    ArchiveFile,
    ObjectStore,
    Progress,
    Retry,
    StoredObject,
)
from fuploader_dagster.delivery import store_trouble
from fuploader_dagster.delivery.attempts import Done, Failed
from fuploader_dagster.delivery.failures import (
    all_failures,
    clear_failure,
    find_failure,
    note_failure,
)
from fuploader_dagster.delivery.ship import upload_partitions
from fuploader_dagster.delivery.store_trouble import (
    Patience,
    StoreTrouble,
    end_refusal,
    end_trouble,
    find_refusal,
    find_trouble,
    known_trouble,
    look,
    look_again,
    note_refusal,
    note_trouble,
)
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.disk.temporaries import is_held
from fuploader_dagster.errors import StoreAwaited, StoreRefused, StoreUnavailable
from fuploader_dagster.resources.object_stores.mirror import MirroredObjectStore
from fuploader_dagster.resources.object_stores.retrying import RetryingObjectStore
from fuploader_dagster.slots.sealing import sealed_partitions
from tests.servers.ports import wait_until
from tests.settings import pipeline, sealed


class Switched(ObjectStore):
    """A store that can be down: it refuses, or hangs until it is up again."""

    def __init__(self, folder_store: ObjectStore, *, hangs: bool = False) -> None:
        self.inner = folder_store
        self.up = threading.Event()
        self.hangs = hangs
        self.asked = 0

    def _ask(self) -> None:
        self.asked += 1
        if self.hangs:
            self.up.wait(60)
        elif not self.up.is_set():
            raise StoreUnavailable("connection refused")

    def put(self, key: str, archive: ArchiveFile, progress: Progress | None = None) -> StoredObject:
        self._ask()
        return self.inner.put(key, archive, progress)

    def check(self) -> None:
        self._ask()

    def head(self, key: str) -> None:
        raise NotImplementedError

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        raise NotImplementedError

    def list(self, prefix: str = "") -> Iterator[None]:  # type: ignore[override]
        raise NotImplementedError

    def delete(self, key: str) -> None:
        raise NotImplementedError

    def address(self, key: str) -> str:
        return self.inner.address(key)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "data" / "docs")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_trouble, "LASTING_SECONDS", 0.05)
    monkeypatch.setattr(store_trouble, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(store_trouble, "LOOK_SECONDS", 0.1)


def in_a_thread(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def test_of_two_processes_one_waits_for_a_dead_store_and_the_other_ends_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each retry is told while it waits; when the store is back, the one that waited gets through,
    and nothing is left of the trouble."""
    monkeypatch.setattr(store_trouble, "QUIET_SECONDS", 600)  # a slow start is no silence
    settings = pipeline(tmp_path)
    first, second, third = (sealed(settings, {f"{n}": b"x"}).seal.partition for n in range(3))
    store = Switched(settings.store.open())
    told: list[str] = []
    outcomes: list[Done | Failed] = []
    retrying = RetryingObjectStore(store, first_pause_seconds=0.2, longest_pause_seconds=0.2)
    waiting = in_a_thread(
        lambda: outcomes.extend(upload_partitions([first], settings, retrying, tell=told.append))
    )
    wait_until(
        lambda: bool(find_trouble(settings.layout)) and is_held(settings.layout.store_wait_lock),
        seconds=60,
        what="the note",
        diagnose=lambda: str(told),
    )
    other = Switched(settings.store.open())
    for partition in (second, third):
        (failed,) = upload_partitions([partition], settings, RetryingObjectStore(other))
        assert isinstance(failed, Failed)
        assert failed.permanent
        assert "connection refused" in failed.error
        assert "waits for the store" in failed.error
    assert other.asked == 0
    assert list(all_failures(settings.layout)) == []
    assert any("attempt 1 failed, next in" in sentence for sentence in told)
    store.up.set()
    waiting.join(60)
    assert [type(one) for one in outcomes] == [Done]
    assert find_trouble(settings.layout) is None
    other.up.set()
    assert all(isinstance(one, Done) for one in upload_partitions([second, third], settings, other))
    assert sealed_partitions(settings.layout) == []


def test_a_store_that_hangs_is_noted_long_before_its_time_out(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    key = sealed(settings, {"a": b"x"}).seal.partition
    store = Switched(settings.store.open(), hangs=True)
    uploading = in_a_thread(lambda: list(upload_partitions([key], settings, store)))
    wait_until(
        lambda: "no answer within" in str(find_trouble(settings.layout)),
        seconds=30,
        what="the note",
        diagnose=str,
    )
    store.up.set()
    uploading.join(60)
    assert find_trouble(settings.layout) is None


def test_a_failure_that_the_next_attempt_mends_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_trouble, "LASTING_SECONDS", 60.0)
    settings = pipeline(tmp_path)
    key = sealed(settings, {"a": b"x"}).seal.partition
    store = Switched(settings.store.open())
    seen: list[StoreTrouble | None] = []

    def tell(_: str) -> None:
        seen.append(find_trouble(settings.layout))
        store.up.set()

    (done,) = upload_partitions(
        [key], settings, RetryingObjectStore(store, first_pause_seconds=0.01), tell=tell
    )
    assert isinstance(done, Done)
    assert seen == [None]
    assert find_trouble(settings.layout) is None


def test_a_note_that_nobody_renews_stops_nothing(layout: Layout) -> None:
    """Also one of the future: the clock was set back."""
    note_trouble(layout, "away")
    trouble = find_trouble(layout)
    assert trouble is not None
    for seen_at in (time.time() - 301, time.time() + 1000):
        changed = msgspec.structs.replace(trouble, seen_at=seen_at)
        layout.store_trouble.write_bytes(msgspec.json.encode(changed))
        assert find_trouble(layout) is None
    for junk in (b"", b"{}", b"\xff", b'{"since": "x"}', b"[" * 100_000):
        layout.store_trouble.write_bytes(junk)
        assert find_trouble(layout) is None


class Refusing(Switched):
    """A store that refuses uploads, looks, or both."""

    def __init__(self, folder_store: ObjectStore, *, uploads: bool, looks: bool) -> None:
        super().__init__(folder_store)
        self.up.set()
        self.uploads, self.looks = uploads, looks

    def put(self, key: str, archive: ArchiveFile, progress: Progress | None = None) -> StoredObject:
        if self.uploads:
            raise StoreRefused("403 AccessDenied for putting")
        return super().put(key, archive, progress)

    def check(self) -> None:
        if self.looks:
            raise StoreRefused("403 AccessDenied for looking")


def test_a_refusal_that_an_upload_met_ends_with_an_upload_and_not_with_a_look(
    tmp_path: Path,
) -> None:
    """A login may see the bucket and have no right to write."""
    settings = pipeline(tmp_path)
    layout = settings.layout
    key = sealed(settings, {"a": b"x"}).seal.partition
    store = Refusing(settings.store.open(), uploads=True, looks=False)
    (failed,) = upload_partitions([key], settings, store)
    assert isinstance(failed, Failed)
    assert find_trouble(layout) is None, "no other process has to wait"
    assert look_again(layout, store) is None
    refusal = find_refusal(layout)
    assert refusal is not None
    assert "refused us since" in str(refusal)
    assert str(refusal).endswith("403 AccessDenied for putting")
    store.uploads = False
    (done,) = upload_partitions([key], settings, store)
    assert isinstance(done, Done)
    assert find_refusal(layout) is None


def test_a_refusal_that_looks_met_ends_with_a_look_and_so_does_one_of_a_slot_that_is_gone(
    tmp_path: Path,
) -> None:
    layout = pipeline(tmp_path).layout
    store = Refusing(pipeline(tmp_path).store.open(), uploads=False, looks=True)
    assert look_again(layout, store) is None
    first = find_refusal(layout)
    assert first is not None
    assert first.error == "403 AccessDenied for looking"
    assert look_again(layout, store) is None
    later = find_refusal(layout)
    assert later is not None
    assert later.since == first.since
    store.looks = False
    look_again(layout, store)
    assert find_refusal(layout) is None
    note_refusal(layout, "403", by_upload=True)
    note_failure(layout, "p", stage="upload", error="403", now=time.time())
    look_again(layout, store)
    assert find_refusal(layout) is not None
    clear_failure(layout, "p")
    look_again(layout, store)
    assert find_refusal(layout) is None


def test_when_a_look_is_not_refused_any_more_the_slots_that_were_are_due(layout: Layout) -> None:
    """A key that is mended, or a bucket that is made: nobody waits an hour for the next attempt."""
    store = Refusing(pipeline(layout.root).store.open(), uploads=True, looks=True)
    note_refusal(layout, "403", by_upload=True)
    look_again(layout, store)
    for _ in range(9):
        note_failure(layout, "p", stage="upload", error="403", now=time.time())
    look_again(layout, store)
    assert find_failure(layout, "p").attempts == 9  # type: ignore[union-attr]
    store.looks = False
    look_again(layout, store)
    assert find_failure(layout, "p").attempts == 1  # type: ignore[union-attr]
    assert find_refusal(layout) is not None, "no upload got through"
    note_failure(layout, "p", stage="upload", error="403", now=time.time())
    note_refusal(layout, "403", by_upload=True)
    look_again(layout, store)
    assert find_failure(layout, "p").attempts == 2, "looks are fine all the time"  # type: ignore[union-attr]


def test_while_the_store_does_not_answer_what_it_refused_is_not_forgotten(layout: Layout) -> None:
    note_refusal(layout, "403", by_upload=False)
    note_trouble(layout, "away")
    assert known_trouble(layout) == find_trouble(layout)
    end_trouble(layout)
    assert known_trouble(layout) == find_refusal(layout)
    end_refusal(layout)
    end_refusal(layout)
    assert known_trouble(layout) is None


def test_since_when_stays_while_the_error_changes(layout: Layout) -> None:
    note_trouble(layout, "refused")
    first = find_trouble(layout)
    note_trouble(layout, "timed out")
    later = find_trouble(layout)
    assert first is not None
    assert later is not None
    assert later.since == first.since
    assert str(later).endswith(" UTC: timed out")


def test_what_failed_while_the_store_was_away_is_due_soon_when_it_is_back(layout: Layout) -> None:
    before, during, packing = "before", "during", "packing"
    for _ in range(9):
        note_failure(layout, before, stage="upload", error="x", now=time.time() - 60)
    note_trouble(layout, "away")
    for _ in range(9):
        note_failure(layout, during, stage="upload", error="away", now=time.time())
        note_failure(layout, packing, stage="pack", error="no 7z", now=time.time())
    end_trouble(layout)
    end_trouble(layout)
    attempts = {key: find_failure(layout, key).attempts for key in (before, during, packing)}  # type: ignore[union-attr]
    assert attempts == {before: 9, during: 1, packing: 9}


def test_a_look_at_a_store_that_refuses_us_raises_what_it_said(tmp_path: Path) -> None:
    store = Switched(pipeline(tmp_path).store.open())
    assert look(store) == "connection refused"
    store.up.set()
    assert look(store) == ""

    def refuse() -> None:
        raise StoreRefused("check the key's rights")

    store._ask = refuse  # type: ignore[method-assign]
    with pytest.raises(StoreRefused, match="rights"):
        look(store)


def test_who_waited_gives_the_place_back_whatever_happened(layout: Layout, tmp_path: Path) -> None:
    store = Switched(pipeline(tmp_path).store.open())
    note_trouble(layout, "away")
    with pytest.raises(ZeroDivisionError), Patience(layout, store, str) as patience:
        patience.begin()
        with pytest.raises(StoreAwaited), Patience(layout, store, str) as other:
            other.begin()
        raise ZeroDivisionError
    with FileLock(layout.store_wait_lock):
        pass


def test_both_stores_of_a_mirror_are_heard(tmp_path: Path) -> None:
    stores = [Switched(pipeline(tmp_path).store.open()) for _ in range(2)]
    mirror = MirroredObjectStore(
        [RetryingObjectStore(one, budget_seconds=0.5, first_pause_seconds=0.1) for one in stores]
    )
    heard: list[Retry] = []
    mirror.listen(heard.append)
    with pytest.raises(StoreUnavailable):
        mirror.put("key", ArchiveFile(tmp_path / "archive", 1, "0" * 64))
    assert len([one for one in heard if one.attempt == 1]) == 2
