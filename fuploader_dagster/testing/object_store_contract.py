"""What every object store must do, written once. A backend's test module subclasses both classes.

`ObjectStoreContract` is for all, `PartsContract` for those that send large archives in parts.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from functools import cached_property
from pathlib import Path
from urllib.request import urlopen

import pytest

from fuploader_dagster import errors
from fuploader_dagster.contracts.object_store import (
    ArchiveFile,
    ObjectInfo,
    ObjectStore,
    StoredObject,
)

MIB = 1 << 20

OpenStore = Callable[..., ObjectStore]
"""Opens a store on the test's own empty bucket or folder; keywords are the backend's settings."""


def make_archive(folder: Path, size_bytes: int, seed: int = 0, **metadata: str) -> ArchiveFile:
    """An archive of incompressible bytes that depend on the seed alone."""
    path = folder / f"archive-{seed}-{size_bytes}.tar.zst"
    content = random.Random(seed).randbytes(size_bytes)
    path.write_bytes(content)
    return ArchiveFile(path, size_bytes, hashlib.sha256(content).hexdigest(), metadata)


def read_all(store: ObjectStore, key: str, size_bytes: int) -> bytes:
    return store.get_range(key, 0, size_bytes + 1)


class _Given:
    """What each test has: a store of its own, and archives to put into it."""

    @pytest.fixture(autouse=True)
    def _give(self, open_store: OpenStore, tmp_path: Path) -> None:
        self._open_store, self._folder = open_store, tmp_path

    @cached_property
    def _store(self) -> ObjectStore:
        return self._open_store()

    def _archive(self, size_bytes: int, seed: int = 0, **metadata: str) -> ArchiveFile:
        return make_archive(self._folder, size_bytes, seed, **metadata)


class ObjectStoreContract(_Given):
    """Needs a fixture `open_store` of type `OpenStore`."""

    create_only_is_atomic = True
    """False: the server checks only at the beginning of a put whether the key is taken."""
    presigns = False
    """Whether the store has presigned addresses."""

    def test_a_stored_archive_comes_back_with_its_exact_bytes(self) -> None:
        store, archive = self._store, self._archive(100_000, pipeline="aweme")
        receipt = store.put("a/b/one.tar.zst", archive)
        address = store.address("a/b/one.tar.zst")
        assert receipt == StoredObject(address, "a/b/one.tar.zst", 100_000, archive.sha256)
        assert read_all(store, "a/b/one.tar.zst", 100_000) == archive.path.read_bytes()

    def test_whoever_has_a_presigned_address_downloads_the_object(self) -> None:
        """Where there is such a thing; unusual keys are part of it."""
        store, archive = self._store, self._archive(3_000)
        key = "tasks/ü x/a+b=c&d.tar.zst"
        store.put(key, archive)
        address = store.presigned(key, 60)
        if self.presigns:
            assert address is not None
            assert self.downloaded(address) == archive.path.read_bytes()
        else:
            assert address is None

    def downloaded(self, address: str) -> bytes:
        """What a browser gets."""
        with urlopen(address, timeout=60) as answer:  # noqa: S310 - the store made it
            content: bytes = answer.read()
            return content

    def test_an_empty_archive_is_an_object_like_any_other(self) -> None:
        store, archive = self._store, self._archive(0)
        store.put("empty", archive)
        assert store.head("empty") == ObjectInfo("empty", 0, archive.sha256)
        assert store.put("empty", archive).already_there

    def test_repeating_a_put_succeeds_and_says_that_nothing_was_sent(self) -> None:
        store, archive = self._store, self._archive(5_000)
        first, second = store.put("k", archive), store.put("k", archive)
        assert not first.already_there
        assert second.already_there
        assert second.address == first.address

    @pytest.mark.parametrize("other_size", [5_000, 5_001, 0])
    def test_an_object_with_other_content_is_a_conflict_and_stays(self, other_size: int) -> None:
        mine, other = self._archive(5_000), self._archive(other_size, seed=1)
        self._store.put("k", other)
        with pytest.raises(errors.ObjectConflict) as caught:
            self._store.put("k", mine)
        assert mine.sha256 in str(caught.value)
        assert other.sha256 in str(caught.value)
        assert read_all(self._store, "k", other_size) == other.path.read_bytes()

    def test_an_archive_that_changed_since_it_was_packed_is_not_stored(self) -> None:
        store, archive = self._store, self._archive(5_000)
        content = bytearray(archive.path.read_bytes())
        content[4_000] ^= 1
        archive.path.write_bytes(content)
        with pytest.raises(errors.DamagedArchive):
            store.put("k", archive)
        assert store.head("k") is None

    @pytest.mark.parametrize("what", ["gone", "truncated"])
    def test_an_archive_that_is_gone_or_cut_is_damaged_not_stored(self, what: str) -> None:
        store, archive = self._store, self._archive(5_000)
        if what == "gone":
            archive.path.unlink()
        else:
            archive.path.write_bytes(archive.path.read_bytes()[:-1])
        with pytest.raises(errors.DamagedArchive):
            store.put("k", archive)
        assert store.head("k") is None

    def test_head_states_size_and_digest_and_none_for_a_missing_object(self) -> None:
        store, archive = self._store, self._archive(777)
        store.put("x/y", archive)
        assert store.head("x/y") == ObjectInfo("x/y", 777, archive.sha256)
        assert store.head("x") is None
        assert store.head("x/y/z") is None
        assert store.head("missing") is None

    def test_ranges_are_exact_and_shorter_only_at_the_end(self) -> None:
        store, archive = self._store, self._archive(1_000)
        content = archive.path.read_bytes()
        store.put("k", archive)
        for offset, length in [(0, 1), (0, 1_000), (500, 100), (999, 1), (900, 500)]:
            assert store.get_range("k", offset, length) == content[offset : offset + length]
        assert store.get_range("k", 10, 0) == b""
        assert store.get_range("k", 1_000, 10) == b""
        assert store.get_range("k", 5_000, 10) == b""

    def test_a_range_of_a_missing_object_is_refused(self) -> None:
        with pytest.raises(errors.StoreRefused, match="missing"):
            self._store.get_range("missing", 0, 10)

    def test_a_listing_is_complete_in_key_order_and_below_its_prefix(self) -> None:
        keys = ["a", "a-1/x", "a/1", "a/10", "a/2", "b/ü/1", "b/z"]
        for number, key in enumerate(k for k in keys if k != "a"):
            self._store.put(key, self._archive(number + 1))
        found = [(each.key, each.size_bytes) for each in self._store.list()]
        assert [key for key, _ in found] == sorted(k for k in keys if k != "a")
        assert [each.key for each in self._store.list("a/")] == ["a/1", "a/10", "a/2"]
        assert [each.key for each in self._store.list("a/1")] == ["a/1", "a/10"]
        assert dict(found)["a-1/x"] == 1
        assert list(self._store.list("nothing/")) == []

    def test_delete_removes_and_may_be_repeated(self) -> None:
        self._store.put("k", self._archive(10))
        self._store.delete("k")
        assert self._store.head("k") is None
        self._store.delete("k")
        self._store.delete("never/there")

    def test_what_is_erased_is_gone_and_that_may_be_repeated(self) -> None:
        store, archive = self._store, self._archive(10)
        store.put("k", archive)
        store.erase("k")
        assert store.head("k") is None
        assert list(store.list()) == []
        store.erase("k")
        store.erase("never/there")
        assert not store.put("k", archive).already_there

    @pytest.mark.parametrize(
        "key",
        ["with space", "plus+sign", "per%20cent", "ü/日本", "a&b=c?d#e", "x" * 200, "~;,@!'()*"],
    )
    def test_keys_with_unusual_characters_are_kept_exactly(self, key: str) -> None:
        store, archive = self._store, self._archive(100)
        store.put(key, archive)
        assert [each.key for each in store.list()] == [key]
        assert read_all(store, key, 100) == archive.path.read_bytes()
        store.delete(key)
        assert store.head(key) is None

    @pytest.mark.parametrize(
        "key", ["", "/a", "a//b", "a/", "../a", "a/../b", ".", "a/./b", "a\0b", "a\nb", "é" * 600]
    )
    def test_keys_that_could_leave_the_prefix_or_break_are_refused(self, key: str) -> None:
        with pytest.raises(errors.StoreRefused, match="cannot be an object key"):
            self._store.put(key, self._archive(10))
        assert list(self._store.list()) == []

    def test_of_many_puts_of_one_archive_at_once_all_get_a_receipt(self) -> None:
        store, archive = self._store, self._archive(200_000)
        with ThreadPoolExecutor(4) as pool:
            receipts = list(pool.map(lambda _: store.put("k", archive), range(4)))
        assert {receipt.sha256 for receipt in receipts} == {archive.sha256}
        assert read_all(store, "k", 200_000) == archive.path.read_bytes()

    def test_of_different_archives_put_at_once_under_one_key_one_wins_whole(self) -> None:
        store = self._store
        archives = [self._archive(200_000, seed=seed) for seed in range(4)]

        def put(archive: ArchiveFile) -> StoredObject | errors.FuploaderError:
            try:
                return store.put("k", archive)
            except (errors.ObjectConflict, errors.StoreUnavailable) as error:
                return error

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(put, archives))
        winners = [each for each in results if isinstance(each, StoredObject)]
        stored = read_all(store, "k", 200_000)
        assert hashlib.sha256(stored).hexdigest() in {archive.sha256 for archive in archives}
        if self.create_only_is_atomic:
            assert len(winners) == 1
            assert hashlib.sha256(stored).hexdigest() == winners[0].sha256

    def test_a_working_store_passes_its_check_and_the_check_leaves_nothing(self) -> None:
        self._store.check()
        assert list(self._store.list()) == []
        assert self._store.unfinished() == []


class PartsContract(_Given):
    """Needs `open_store` with parts of `part_bytes` by default, and `parts_sent`.

    `parts_sent()` counts the part uploads that the server received so far.
    """

    part_bytes = 5 * MIB
    parts = 4

    @property
    def size_bytes(self) -> int:
        return self.parts * self.part_bytes + 4_321

    def test_a_large_archive_is_stored_in_parts_and_confirmed_as_a_whole(
        self, parts_sent: Callable[[], int]
    ) -> None:
        store, archive = self._store, self._archive(self.size_bytes)
        seen: list[tuple[int, int]] = []
        receipt = store.put("big", archive, lambda done, total: seen.append((done, total)))
        assert receipt.sha256 == archive.sha256
        assert parts_sent() == self.parts
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert seen[-1] == (self.size_bytes, self.size_bytes)
        assert len(seen) == self.parts
        assert read_all(store, "big", self.size_bytes) == archive.path.read_bytes()
        assert store.unfinished() == []
        assert store.put("big", archive).already_there

    def test_an_interrupted_upload_goes_on_with_the_parts_that_are_there(
        self, parts_sent: Callable[[], int]
    ) -> None:
        store, archive = self._open_store(concurrency=1), self._archive(self.size_bytes)
        interrupt(store, archive, after_parts=2)
        before = parts_sent()
        assert 2 <= before < self.parts
        assert [each.key for each in store.unfinished()] == ["big"]
        first: list[int] = []
        store.put("big", archive, lambda done, _: first.append(done))
        assert parts_sent() == self.parts  # none was sent twice
        assert first[0] > self.size_bytes * (before - 1) // self.parts
        assert read_all(store, "big", self.size_bytes) == archive.path.read_bytes()
        assert store.unfinished() == []

    def test_parts_of_another_archive_of_the_same_size_are_not_taken_for_ours(
        self, parts_sent: Callable[[], int]
    ) -> None:
        store = self._open_store(concurrency=1)
        interrupt(store, self._archive(self.size_bytes, seed=1), after_parts=2)
        before = parts_sent()
        archive = self._archive(self.size_bytes, seed=2)
        store.put("big", archive)
        assert parts_sent() == before + self.parts
        assert read_all(store, "big", self.size_bytes) == archive.path.read_bytes()

    def test_an_unfinished_upload_is_listed_below_its_prefix_with_its_time_and_can_be_aborted(
        self,
    ) -> None:
        store, archive = self._open_store(concurrency=1), self._archive(self.size_bytes)
        interrupt(store, archive, after_parts=1)
        assert store.unfinished("other/") == []
        (upload,) = store.unfinished("bi")
        assert upload.key == "big"
        assert abs(datetime.now(timezone.utc) - upload.begun_at) < timedelta(hours=1)
        store.abort(upload)
        assert store.unfinished() == []
        store.abort(upload)  # may be repeated

    def test_a_large_archive_that_changed_since_it_was_packed_never_becomes_an_object(self) -> None:
        store, archive = self._store, self._archive(self.size_bytes)
        with archive.path.open("r+b") as file:
            file.seek(1_000)
            file.write(b"rot")
        with pytest.raises(errors.DamagedArchive):
            store.put("big", archive)
        assert store.head("big") is None

    def test_a_large_archive_never_replaces_an_object_of_other_content(self) -> None:
        small = self._archive(10)
        self._store.put("big", small)
        with pytest.raises(errors.ObjectConflict):
            self._store.put("big", self._archive(self.size_bytes))
        assert read_all(self._store, "big", 10) == small.path.read_bytes()


class Interrupted(Exception):
    """Whatever may end a put in the middle."""


def interrupt(store: ObjectStore, archive: ArchiveFile, after_parts: int) -> None:
    """A put that ends after some parts are confirmed."""
    reports = 0

    def stop(confirmed: int, total: int) -> None:
        nonlocal reports
        reports += 1
        if reports == after_parts:
            raise Interrupted

    with pytest.raises(Interrupted):
        store.put("big", archive, stop)
