"""The contract on a local folder, and what only a folder has."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path

import pytest

from fuploader_dagster.contracts.object_store import ObjectStore
from fuploader_dagster.errors import StoreRefused
from fuploader_dagster.resources.object_stores import Local
from fuploader_dagster.testing.object_store_contract import (
    ObjectStoreContract,
    OpenStore,
    make_archive,
)


@pytest.fixture
def open_store(tmp_path: Path) -> OpenStore:
    def open_it() -> ObjectStore:
        return Local(path=str(tmp_path / "store"), retry_budget_seconds=0).open()

    return open_it


class TestLocal(ObjectStoreContract):
    pass


def test_a_torn_temporary_file_is_no_object_and_can_be_aborted(
    open_store: OpenStore, tmp_path: Path
) -> None:
    store = open_store()
    store.put("a/k", make_archive(tmp_path, 10))
    torn = tmp_path / "store" / "a" / ".tmp-0123456789abcdef-k2"
    torn.write_bytes(b"half")
    assert [each.key for each in store.list()] == ["a/k"]
    assert [each.key for each in store.unfinished("a/")] == ["a/k2"]
    begun = datetime(2026, 1, 2, tzinfo=timezone.utc)
    os.utime(torn, (begun.timestamp(),) * 2)
    (upload,) = store.unfinished()
    assert upload.begun_at == begun
    store.abort(upload)
    assert not torn.exists()


def test_a_folder_that_cannot_be_made_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = Local(path=str(tmp_path / "file" / "store")).open()
    with pytest.raises(StoreRefused, match="file"):
        store.check()
    with pytest.raises(StoreRefused, match="file"):
        store.put("k", make_archive(tmp_path, 10))


def test_a_key_below_an_object_is_refused(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    store.put("a", make_archive(tmp_path, 10))
    with pytest.raises(StoreRefused):
        store.put("a/b", make_archive(tmp_path, 10))
