"""The contract on Alibaba OSS, against a fake that checks signatures, and what only OSS has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fuploader_dagster.contracts.object_store import ObjectStore
from fuploader_dagster.errors import ConfigError, DigestMismatch, StoreRefused, StoreUnavailable
from fuploader_dagster.resources.object_stores import OSS
from fuploader_dagster.testing.object_store_contract import (
    MIB,
    ObjectStoreContract,
    OpenStore,
    PartsContract,
    make_archive,
)
from tests.servers.fake_oss import FakeOSS
from tests.servers.faulty_proxy import FaultyProxy


@pytest.fixture
def open_store(fake_oss: FakeOSS, monkeypatch: pytest.MonkeyPatch) -> OpenStore:
    monkeypatch.setenv("TEST_OSS_SECRET", fake_oss.secret)
    settings = {
        "bucket": fake_oss.bucket,
        "prefix": "archives/of-node-1",
        "endpoint": fake_oss.endpoint,
        "region": fake_oss.region,
        "access_key_id": fake_oss.key_id,
        "access_key_secret": dg.EnvVar("TEST_OSS_SECRET"),
        "part_size_bytes": MIB,
        "retry_budget_seconds": 0,
    }

    def open_it(**more: Any) -> ObjectStore:
        return OSS(**{**settings, **more}).open()

    return open_it


@pytest.fixture
def parts_sent(fake_oss: FakeOSS) -> Callable[[], int]:
    return lambda: fake_oss.counts["part"]


class TestOSS(ObjectStoreContract, PartsContract):
    part_bytes = MIB


class TestOSSWithKeysByDefault(PartsContract):
    """The bucket encrypts by default: no ETag is an md5, and the CRC-64 proves what is there."""

    part_bytes = MIB

    @pytest.fixture(autouse=True)
    def encrypts(self, fake_oss: FakeOSS) -> None:
        fake_oss.encrypts_with = "KMS"


@pytest.mark.parametrize("what", ["key", "secret", "bucket"])
def test_a_refusal_names_address_and_what_to_check_but_no_secret(
    open_store: OpenStore,
    fake_oss: FakeOSS,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    what: str,
) -> None:
    monkeypatch.setenv("TEST_WRONG_SECRET", "wrong-" + fake_oss.secret)
    wrong, code = {
        "key": ({"access_key_id": "nobody"}, "InvalidAccessKeyId"),
        "secret": ({"access_key_secret": dg.EnvVar("TEST_WRONG_SECRET")}, "SignatureDoesNotMatch"),
        "bucket": ({"bucket": "other-bucket"}, "NoSuchBucket"),
    }[what]
    store = open_store(**wrong)
    with pytest.raises(StoreRefused, match=code) as caught:
        store.check() if what == "bucket" else list(store.list())
    assert "oss://" in str(caught.value)
    assert caught.value.hint
    with pytest.raises(StoreRefused, match=code) as caught:  # its first request is a HEAD
        store.put("k", make_archive(tmp_path, 10))
    assert fake_oss.secret not in str(caught.value)


def test_temporary_credentials_send_their_token(
    open_store: OpenStore, fake_oss: FakeOSS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_oss.token = "token-of-sts"
    with pytest.raises(StoreRefused):
        open_store().put("k", make_archive(tmp_path, 10))
    monkeypatch.setenv("TEST_OSS_TOKEN", fake_oss.token)
    open_store(security_token=dg.EnvVar("TEST_OSS_TOKEN")).put("k", make_archive(tmp_path, 10))


def test_storage_class_encryption_and_tags_are_asked_for(
    open_store: OpenStore, fake_oss: FakeOSS, tmp_path: Path
) -> None:
    store = open_store(storage_class="IA", encryption="AES256", tags={"team": "a b"})
    store.put("k", make_archive(tmp_path, 10, pipeline="aweme"))
    headers = fake_oss.files["archives/of-node-1/k"].headers
    assert headers["x-oss-storage-class"] == "IA"
    assert headers["x-oss-server-side-encryption"] == "AES256"
    assert headers["x-oss-meta-pipeline"] == "aweme"
    assert headers["x-oss-tagging"] == "team=a%20b"


def test_an_error_that_comes_with_status_200_is_an_error(
    open_store: OpenStore, fake_oss: FakeOSS, tmp_path: Path
) -> None:
    archive = make_archive(tmp_path, 2 * MIB + 5)
    fake_oss.fail_late_once = True
    with pytest.raises(StoreUnavailable):
        open_store().put("k", archive)
    assert not fake_oss.fail_late_once
    assert not open_store().put("k", archive).already_there
    assert fake_oss.counts["part"] == 2


def test_without_a_region_requests_are_signed_by_v1(
    open_store: OpenStore, fake_oss: FakeOSS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, archive = open_store(region=None), make_archive(tmp_path, 2 * MIB + 5)
    store.put("a b/ü", archive)
    assert [each.key for each in store.list()] == ["a b/ü"]
    assert store.unfinished() == []
    monkeypatch.setenv("TEST_WRONG_SECRET", "wrong-" + fake_oss.secret)
    wrong = open_store(region=None, access_key_secret=dg.EnvVar("TEST_WRONG_SECRET"))
    with pytest.raises(StoreRefused, match="SignatureDoesNotMatch"):
        list(wrong.list())


def test_without_keys_the_environments_own_are_used(
    open_store: OpenStore, fake_oss: FakeOSS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OSS_ACCESS_KEY_ID", fake_oss.key_id)
    monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", fake_oss.secret)
    store = open_store(access_key_id=None, access_key_secret=None)
    assert not store.put("k", make_archive(tmp_path, 10)).already_there


def test_an_impossible_endpoint_is_a_configuration_error(open_store: OpenStore) -> None:
    with pytest.raises(ConfigError, match="endpoint"):
        open_store(endpoint="http://bad endpoint/")


def test_a_machines_role_gives_temporary_credentials(
    open_store: OpenStore, fake_oss: FakeOSS, tmp_path: Path
) -> None:
    fake_oss.token = "token-of-the-role"
    url = fake_oss.serve_role()
    store = open_store(access_key_id=None, access_key_secret=None, instance_role_url=url)
    assert not store.put("k", make_archive(tmp_path, 10)).already_there


def test_an_object_that_claims_our_digest_and_holds_other_bytes_is_a_mismatch(
    open_store: OpenStore, fake_oss: FakeOSS, tmp_path: Path
) -> None:
    archive = make_archive(tmp_path, 1_000)
    open_store().put("k", archive)
    fake_oss.files["archives/of-node-1/k"].content = b"x" * 1_000
    with pytest.raises(DigestMismatch, match="crc64ecma"):
        open_store().put("k", archive)


def test_requests_go_through_the_proxy_that_is_set(
    open_store: OpenStore, fake_oss: FakeOSS, tmp_path: Path
) -> None:
    proxy = FaultyProxy(fake_oss.port)
    proxy.start()
    open_store(proxy_url=proxy.endpoint).put("k", make_archive(tmp_path, 10))
    assert proxy.forwarded["put"] == fake_oss.counts["put"] == 1
    proxy.stop()


@pytest.mark.parametrize("size", [1_000, 2 * MIB + 5])
def test_what_is_erased_leaves_no_version_and_no_mark(
    open_store: OpenStore, fake_oss: FakeOSS, tmp_path: Path, size: int
) -> None:
    fake_oss.versioned = True
    store, kept = open_store(), make_archive(tmp_path, 10)
    store.put("kept", kept)
    store.put("k", make_archive(tmp_path, size))
    store.erase("k")
    store.erase("k")
    assert list(fake_oss.versions.values()) == ["archives/of-node-1/kept"]
    store.put("k", kept)
    store.delete("k")
    assert len(fake_oss.versions) == 3  # the object is still there, behind a mark
