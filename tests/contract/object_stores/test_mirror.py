"""The contract on a mirror of two stores, and what a mirror adds to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pydantic
import pytest

from fuploader_dagster.contracts.object_store import (
    ObjectStore,
    OpensObjectStore,
    counted_requests,
)
from fuploader_dagster.errors import ConfigError, DigestMismatch, ObjectConflict, StoreUnavailable
from fuploader_dagster.resources.object_stores import COS, Local, Mirror
from fuploader_dagster.testing.object_store_contract import (
    MIB,
    ObjectStoreContract,
    OpenStore,
    interrupt,
    make_archive,
    read_all,
)
from tests.servers.fake_cos import FakeCOS, downloaded_of


@pytest.fixture
def settings(fake_cos: FakeCOS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    return _mirror(fake_cos, tmp_path, monkeypatch)


def _mirror(
    fake_cos: FakeCOS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> Mirror:
    monkeypatch.setenv("TEST_COS_SECRET", fake_cos.secret)
    values = {
        "bucket": fake_cos.bucket,
        "region": fake_cos.region,
        "address": f"127.0.0.1:{fake_cos.port}",
        "scheme": "http",
        "secret_id": fake_cos.key_id,
        "secret_key": dg.EnvVar("TEST_COS_SECRET"),
        "part_size_bytes": MIB,
        "retry_budget_seconds": 0,
    }
    local = Local(path=str(tmp_path / "store"), retry_budget_seconds=0)
    return Mirror(first=COS(**{**values, **more}), second=local)


@pytest.fixture
def open_store(fake_cos: FakeCOS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenStore:
    return lambda **more: _mirror(fake_cos, tmp_path, monkeypatch, **more).open()


class TestMirror(ObjectStoreContract):
    # Two stores may be won by two different archives; then neither counts as stored.
    create_only_is_atomic = False
    presigns = True

    @pytest.fixture(autouse=True)
    def _give_fake(self, fake_cos: FakeCOS) -> None:
        self._fake = fake_cos

    def downloaded(self, address: str) -> bytes:
        return downloaded_of(self._fake, address)


def test_an_archive_counts_as_stored_only_when_both_have_confirmed(
    settings: Mirror, fake_cos: FakeCOS, tmp_path: Path
) -> None:
    archive, store = make_archive(tmp_path, 1_000), settings.open()
    local = settings.second.open()
    fake_cos.stop()
    with pytest.raises(StoreUnavailable, match="cos://"):
        store.put("k", archive)
    assert local.head("k") is not None  # what one has confirmed stays


def test_the_next_attempt_sends_to_the_store_that_lacks_it_alone(
    settings: Mirror, fake_cos: FakeCOS, tmp_path: Path
) -> None:
    archive, store = make_archive(tmp_path, 1_000), settings.open()
    settings.first.open().put("k", archive)
    assert store.head("k") is None
    assert list(store.list()) == []
    before = fake_cos.counts.total()
    with counted_requests() as requests:
        receipt = store.put("k", archive)
    assert requests.number == fake_cos.counts.total() - before > 0
    assert not receipt.already_there
    assert fake_cos.counts["put"] == 1
    assert receipt.address == f"cos://{fake_cos.bucket}/k and {(tmp_path / 'store/k').as_uri()}"
    assert [each.key for each in store.list()] == ["k"]
    assert store.put("k", archive).already_there


def test_reading_falls_back_to_the_other_store(
    settings: Mirror, fake_cos: FakeCOS, tmp_path: Path
) -> None:
    archive, store = make_archive(tmp_path, 1_000), settings.open()
    store.put("k", archive)
    fake_cos.files.clear()
    assert read_all(store, "k", 1_000) == archive.path.read_bytes()
    fake_cos.stop()
    assert read_all(store, "k", 1_000) == archive.path.read_bytes()


def test_stores_that_hold_different_objects_are_a_mismatch(
    settings: Mirror, tmp_path: Path
) -> None:
    settings.first.open().put("k", make_archive(tmp_path, 10, seed=1))
    settings.second.open().put("k", make_archive(tmp_path, 10, seed=2))
    with pytest.raises(DigestMismatch, match="cos://"):
        settings.open().head("k")
    with pytest.raises(ObjectConflict):
        settings.open().put("k", make_archive(tmp_path, 10, seed=1))


def test_unfinished_uploads_of_both_are_listed_and_aborted(
    settings: Mirror, fake_cos: FakeCOS, tmp_path: Path
) -> None:
    store = settings.open()
    interrupt(settings.first.open(), make_archive(tmp_path, 2 * MIB + 5), after_parts=1)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".tmp-0123456789abcdef-k").write_bytes(b"half")
    assert [each.key for each in store.unfinished()] == ["big", "k"]
    for upload in store.unfinished():
        store.abort(upload)
    assert fake_cos.uploads == {}
    assert list((tmp_path / "store").iterdir()) == []


def test_progress_is_what_both_have_confirmed(settings: Mirror, tmp_path: Path) -> None:
    seen: list[int] = []
    settings.open().put(
        "big", make_archive(tmp_path, 2 * MIB + 5), lambda done, _: seen.append(done)
    )
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert seen[-1] == 2 * MIB + 5


def test_a_mirror_works_as_a_dagster_resource(settings: Mirror, tmp_path: Path) -> None:
    addresses = []

    @dg.asset
    def archive(store: dg.ResourceParam[OpensObjectStore]) -> None:
        opened: ObjectStore = store.open()
        addresses.append(opened.put("k", make_archive(tmp_path, 10)).address)

    assert dg.materialize([archive], resources={"store": settings}).success
    assert addresses[0].startswith("cos://")
    assert "file://" in addresses[0]
    assert "mirrored to folder" in settings.describe()


def test_a_mirror_is_built_from_yaml_values(tmp_path: Path) -> None:
    stores = {
        "first": {"kind": "s3", "bucket": "b", "secret_access_key": {"env": "TEST_SECRET"}},
        "second": {"kind": "local", "path": str(tmp_path)},
    }
    built = pydantic.TypeAdapter(Mirror).validate_python(stores)
    assert built.describe() == f"s3://b/, mirrored to folder {tmp_path}"
    with pytest.raises(ConfigError, match=r"Mirror\.first\.kind"):
        Mirror(first={"kind": "floppy"}, second=Local(path="x"))
