"""Shipping that was killed or failed: nothing of it is lost, and the next attempt brings it to its
end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.contracts.object_store import ArchiveFile, ObjectStore, StoredObject
from fuploader_dagster.delivery import recovery, upload
from fuploader_dagster.delivery.attempts import Done, Failed
from fuploader_dagster.delivery.failures import all_failures, note_failure
from fuploader_dagster.delivery.recovery import look, plan
from fuploader_dagster.delivery.ship import upload_partitions
from fuploader_dagster.disk import durable
from fuploader_dagster.disk.locks import FileLock
from fuploader_dagster.errors import DiskFull, StoreUnavailable
from fuploader_dagster.slots.receipts import find_receipt, keep_receipt
from fuploader_dagster.slots.sealing import find_sealed
from tests.settings import archived_files, pipeline, sealed
from tests.unit.delivery.test_recovery import FILES, OLD, receipt


class Killed(BaseException):
    """Stands for kill -9: nothing of ours may catch it and go on."""


STEPS = [
    (durable, "replace_durably"),
    (durable, "fsync_dir"),
    (upload, "keep_receipt"),
    (upload, "remove_local_data"),
    (upload, "clear_failure"),
    (upload, "forget_packed"),
    (upload, "remove_tree"),
    (durable.shutil, "rmtree"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("module", "name"), STEPS, ids=[name for _, name in STEPS])
def test_an_upload_killed_around_any_step_is_finished_by_recovery_with_nothing_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, after: bool
) -> None:
    settings = pipeline(tmp_path)
    slot = sealed(settings, FILES)
    store = settings.store.open()
    note_failure(settings.layout, slot.seal.partition, stage="pack", error="e", now=0)
    step = getattr(module, name)

    def killed(*arguments: Any, **values: Any) -> None:
        if after:
            step(*arguments, **values)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(module, name, killed)
        with pytest.raises(Killed):
            list(upload_partitions([slot.seal.partition], settings, store))
    assert settings.layout.sealed(0, 1).exists() or find_receipt(
        settings.layout, slot.seal.partition
    )
    for _ in range(2):
        made = plan(look(settings), settings, busy=[], now=2**32)
        recovery.apply(made, settings)
        list(upload_partitions(made.ask, settings, store))
    assert archived_files(tmp_path / "objects") == {name: [c] for name, c in FILES.items()}
    assert find_receipt(settings.layout, slot.seal.partition) is not None
    assert list(all_failures(settings.layout)) == []
    left = [path for path in settings.layout.root.rglob("*") if path.is_file()]
    assert {path.relative_to(settings.layout.root).parts[0] for path in left} <= {
        "active",  # next-number
        "catalog.sqlite",
        "catalog.sqlite.lock",
        "locks",
        "receipts",
        "seal-log",
        "shipped",  # the index
    }


def test_an_attempt_that_failed_inside_the_lock_lets_the_next_one_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = pipeline(tmp_path)
    slot = sealed(settings, FILES)
    keep_receipt(settings.layout, receipt(slot.seal.partition))

    def no_luck(*_: object) -> None:
        raise PermissionError(13, "not now")

    with monkeypatch.context() as patched:
        patched.setattr(upload, "remove_tree", no_luck)
        (failed,) = upload_partitions([slot.seal.partition], settings, settings.store.open())
    assert isinstance(failed, Failed)
    with FileLock(settings.layout.partition_lock(slot.seal.partition)):
        pass  # free: it would raise otherwise, and a second upload would wait for ever
    (done,) = upload_partitions([slot.seal.partition], settings, settings.store.open())
    assert isinstance(done, Done)


class Unreachable:
    """A store that never answers."""

    def listen(self, _: object) -> None:
        """Nothing is tried again."""

    def put(self, *_: object) -> None:
        raise StoreUnavailable("the store does not answer", hint="look at its address")


def test_a_store_that_does_not_answer_costs_nothing_and_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = pipeline(tmp_path)
    slots = [sealed(settings, FILES) for _ in range(2)]
    keys = [slot.seal.partition for slot in slots]
    unreachable: ObjectStore = Unreachable()  # type: ignore[assignment]
    failed = list(upload_partitions(keys, settings, unreachable))
    assert [type(one) for one in failed] == [Failed] * 2
    assert [one.attempts for one in all_failures(settings.layout)] == [1, 1]

    def full(*_: object, **__: object) -> None:
        raise DiskFull("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("fuploader_dagster.delivery.attempts.note_failure", full)
        failed = list(upload_partitions(keys, settings, unreachable))
    assert [type(one) for one in failed] == [Failed] * 2
    assert [find_sealed(settings.layout, key) for key in keys] == slots
    assert plan(look(settings), settings, busy=[], now=2**32).ask == keys


def test_an_error_that_nobody_foresaw_leaves_the_others_their_outcomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = pipeline(tmp_path)
    first, *others = [sealed(settings, {f"{n}": b"x"}).seal.partition for n in range(3)]
    store = settings.store.open()
    put = store.put

    def odd(key: str, archive: ArchiveFile, progress: Any = None) -> StoredObject:
        if first in key:
            raise KeyError("ETag of http://user:a-password@proxy")
        return put(key, archive, progress)

    monkeypatch.setattr(store, "put", odd)
    failed, *done = upload_partitions([first, *others], settings, store)
    assert isinstance(failed, Failed)
    assert "KeyError" in failed.error
    assert "a-password" not in failed.error
    assert not failed.permanent
    assert [(type(one), one.partition) for one in done] == [(Done, each) for each in others]
    assert [one.partition for one in all_failures(settings.layout)] == [first]


@pytest.mark.parametrize("key", ["../../x", "a/b", "", "20261120T234501123Z-../x-s0-000017"])
def test_a_partition_that_somebody_made_up_touches_no_file(tmp_path: Path, key: str) -> None:
    settings = pipeline(tmp_path)
    (failed,) = upload_partitions([key], settings, settings.store.open())
    assert isinstance(failed, Failed)
    assert failed.permanent
    assert "is no partition key of ours" in failed.error
    assert not settings.layout.root.exists()


def test_a_partition_without_data_fails_and_leaves_no_failure_behind(tmp_path: Path) -> None:
    settings = pipeline(tmp_path)
    (failed,) = upload_partitions([OLD], settings, settings.store.open())
    assert isinstance(failed, Failed)
    assert "there is no data of partition" in failed.error
    assert list(all_failures(settings.layout)) == []
