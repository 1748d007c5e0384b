"""An address in a store is opened by the pipeline that stores there, also by half of a mirror."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.delivery.attempts import Done
from fuploader_dagster.delivery.find_archive import find_archive
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.resources.object_stores import COS, OSS, Local, Mirror
from fuploader_dagster.resources.object_stores.resource import ObjectStoreResource
from fuploader_dagster.settings.loading import load_pipelines
from tests.servers.fake_cos import FakeCOS
from tests.servers.fake_oss import FakeOSS
from tests.settings import pipeline, sealed


def cos(fake: FakeCOS, monkeypatch: pytest.MonkeyPatch) -> COS:
    monkeypatch.setenv("TEST_COS_SECRET", fake.secret)
    return COS(
        bucket=fake.bucket,
        prefix="below",
        region=fake.region,
        address=f"127.0.0.1:{fake.port}",
        scheme="http",
        secret_id=fake.key_id,
        secret_key=dg.EnvVar("TEST_COS_SECRET"),
    )


def oss(fake: FakeOSS, monkeypatch: pytest.MonkeyPatch) -> OSS:
    monkeypatch.setenv("TEST_OSS_SECRET", fake.secret)
    return OSS(
        bucket=fake.bucket,
        endpoint=fake.endpoint,
        region=fake.region,
        access_key_id=fake.key_id,
        access_key_secret=dg.EnvVar("TEST_OSS_SECRET"),
    )


def check(folder: Path, store: ObjectStoreResource, scheme: str) -> None:
    """Ship a slot, and read a member of it by each address that its receipt shows."""
    other = pipeline(folder / "other", name="other")
    settings = pipeline(folder, store=store)
    sealed(settings, {"a.json": b"alpha"})
    (done,) = ship(settings, store.open())
    assert isinstance(done, Done)
    assert done.receipt is not None
    assert done.receipt.address.startswith(scheme)
    for target in (*done.receipt.address.split(" and "), done.partition):
        found = find_archive(target, {"other": other, "docs": settings})
        assert found.sha256 in (done.receipt.sha256, None)
        with Archive.open(found.source) as archive:
            assert archive.read("a.json") == b"alpha"


def test_a_cos_address(fake_cos: FakeCOS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check(tmp_path, cos(fake_cos, monkeypatch), "cos://")


def test_an_oss_address(fake_oss: FakeOSS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check(tmp_path, oss(fake_oss, monkeypatch), "oss://")


def test_both_addresses_of_a_mirror(
    fake_cos: FakeCOS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mirror = Mirror(first=cos(fake_cos, monkeypatch), second=Local(path=str(tmp_path / "objects")))
    check(tmp_path, mirror, "cos://")


def test_a_receipt_of_another_store_than_todays_still_leads_to_its_archive(tmp_path: Path) -> None:
    before = pipeline(tmp_path)
    sealed(before, {"a.json": b"alpha"})
    (done,) = ship(before, before.store.open())
    moved = pipeline(tmp_path, store=Local(path=str(tmp_path / "elsewhere")))
    with Archive.open(find_archive(done.partition, {"docs": moved}).source) as archive:
        assert archive.read("a.json") == b"alpha"


def test_a_former_store_is_read_from(
    fake_cos: FakeCOS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    former = cos(fake_cos, monkeypatch)
    before = pipeline(tmp_path, store=former)
    sealed(before, {"a.json": b"alpha"})
    (done,) = ship(before, former.open())
    moved = pipeline(tmp_path, former_stores=[former])
    with Archive.open(find_archive(done.partition, {"docs": moved}).source) as archive:
        assert archive.read("a.json") == b"alpha"


def test_former_stores_come_from_yaml_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "source": {"kind": "embedded", "path": "queue"},
        "state": {"kind": "sqlite", "path": "state.sqlite"},
        "store": {"kind": "local", "path": "new"},
        "former_stores": [{"kind": "local", "path": "old"}, {"kind": "s3", "bucket": "b"}],
    }
    path = tmp_path / "fuploader.yaml"
    path.write_text(yaml.safe_dump({"pipelines": {"docs": values}}))
    assert [one.describe() for one in load_pipelines(path)["docs"].former_stores] == [
        f"folder {tmp_path / 'old'}",
        "s3://b/",
    ]
    values["former_stores"][1]["bucker"] = "b"
    path.write_text(yaml.safe_dump({"pipelines": {"docs": values}}))
    with pytest.raises(ConfigError, match=r"former_stores\.1.*bucker"):
        load_pipelines(path)


def test_a_store_that_cannot_be_opened_is_named_with_the_reason(tmp_path: Path) -> None:
    unset = COS(
        bucket="b-1250000000",
        region="r",
        secret_id="i",
        secret_key=dg.EnvVar("TEST_IS_NOT_SET"),
    )
    with pytest.raises(ConfigError, match="TEST_IS_NOT_SET"):
        find_archive("cos://b-1250000000/k", {"docs": pipeline(tmp_path, store=unset)})
