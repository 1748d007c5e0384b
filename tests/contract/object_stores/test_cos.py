"""The contract on Tencent COS, against a fake that checks signatures, and what only COS has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fuploader_dagster.contracts.object_store import ObjectStore
from fuploader_dagster.errors import ConfigError, DigestMismatch, StoreRefused, StoreUnavailable
from fuploader_dagster.resources.object_stores import COS
from fuploader_dagster.testing.object_store_contract import (
    MIB,
    ObjectStoreContract,
    OpenStore,
    PartsContract,
    make_archive,
)
from tests.servers.fake_cos import FakeCOS
from tests.servers.faulty_proxy import FaultyProxy


@pytest.fixture
def open_store(fake_cos: FakeCOS, monkeypatch: pytest.MonkeyPatch) -> OpenStore:
    monkeypatch.setenv("TEST_COS_SECRET", fake_cos.secret)
    settings = {
        "bucket": fake_cos.bucket,
        "prefix": "archives/of-node-1",
        "region": fake_cos.region,
        "address": f"127.0.0.1:{fake_cos.port}",
        "scheme": "http",
        "secret_id": fake_cos.key_id,
        "secret_key": dg.EnvVar("TEST_COS_SECRET"),
        "part_size_bytes": MIB,
        "retry_budget_seconds": 0,
    }

    def open_it(**more: Any) -> ObjectStore:
        return COS(**{**settings, **more}).open()

    return open_it


@pytest.fixture
def parts_sent(fake_cos: FakeCOS) -> Callable[[], int]:
    return lambda: fake_cos.counts["part"]


class TestCOS(ObjectStoreContract, PartsContract):
    part_bytes = MIB


class TestCOSWithKeysByDefault(PartsContract):
    """The bucket encrypts by default: no ETag is an md5, and the CRC-64 proves what is there."""

    part_bytes = MIB

    @pytest.fixture(autouse=True)
    def encrypts(self, fake_cos: FakeCOS) -> None:
        fake_cos.encrypts_with = "cos/kms"


@pytest.mark.parametrize("what", ["key", "secret", "bucket"])
def test_a_refusal_names_address_and_what_to_check_but_no_secret(
    open_store: OpenStore,
    fake_cos: FakeCOS,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    what: str,
) -> None:
    monkeypatch.setenv("TEST_WRONG_SECRET", "wrong-" + fake_cos.secret)
    wrong, code = {
        "key": ({"secret_id": "nobody"}, "InvalidAccessKeyId"),
        "secret": ({"secret_key": dg.EnvVar("TEST_WRONG_SECRET")}, "SignatureDoesNotMatch"),
        "bucket": ({"bucket": "other-1250000000"}, "NoSuchBucket"),
    }[what]
    store = open_store(**wrong)
    with pytest.raises(StoreRefused, match=code) as caught:
        store.check() if what == "bucket" else list(store.list())
    assert "cos://" in str(caught.value)
    assert caught.value.hint
    with pytest.raises(StoreRefused, match=code) as caught:  # its first request is a HEAD
        store.put("k", make_archive(tmp_path, 10))
    assert fake_cos.secret not in str(caught.value)


def test_temporary_credentials_send_their_token(
    open_store: OpenStore, fake_cos: FakeCOS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_cos.token = "token-of-sts"
    with pytest.raises(StoreRefused):
        open_store().put("k", make_archive(tmp_path, 10))
    monkeypatch.setenv("TEST_COS_TOKEN", fake_cos.token)
    open_store(token=dg.EnvVar("TEST_COS_TOKEN")).put("k", make_archive(tmp_path, 10))


def test_storage_class_encryption_and_tags_are_asked_for(
    open_store: OpenStore, fake_cos: FakeCOS, tmp_path: Path
) -> None:
    store = open_store(storage_class="STANDARD_IA", encryption="AES256", tags={"team": "a b"})
    store.put("k", make_archive(tmp_path, 10, pipeline="aweme"))
    headers = fake_cos.files["archives/of-node-1/k"].headers
    assert headers["x-cos-storage-class"] == "STANDARD_IA"
    assert headers["x-cos-server-side-encryption"] == "AES256"
    assert headers["x-cos-meta-pipeline"] == "aweme"
    assert headers["x-cos-tagging"] == "team=a%20b"


def test_an_error_that_comes_with_status_200_is_an_error(
    open_store: OpenStore, fake_cos: FakeCOS, tmp_path: Path
) -> None:
    archive = make_archive(tmp_path, 2 * MIB + 5)
    fake_cos.fail_late_once = True
    with pytest.raises(StoreUnavailable):
        open_store().put("k", archive)
    assert not fake_cos.fail_late_once
    assert not open_store().put("k", archive).already_there
    assert fake_cos.counts["part"] == 2


def test_neither_region_nor_endpoint_is_a_configuration_error(open_store: OpenStore) -> None:
    with pytest.raises(ConfigError, match="bucket-1250000000"):
        open_store(region=None)


def test_an_object_that_claims_our_digest_and_holds_other_bytes_is_a_mismatch(
    open_store: OpenStore, fake_cos: FakeCOS, tmp_path: Path
) -> None:
    archive = make_archive(tmp_path, 1_000)
    open_store().put("k", archive)
    fake_cos.files["archives/of-node-1/k"].content = b"x" * 1_000
    with pytest.raises(DigestMismatch, match="crc64ecma"):
        open_store().put("k", archive)


def test_requests_go_through_the_proxy_that_is_set(
    open_store: OpenStore, fake_cos: FakeCOS, tmp_path: Path
) -> None:
    proxy = FaultyProxy(fake_cos.port)
    proxy.start()
    open_store(proxy_url=proxy.endpoint).put("k", make_archive(tmp_path, 10))
    assert proxy.forwarded["put"] == fake_cos.counts["put"] == 1
    proxy.stop()


def test_a_machines_role_gives_temporary_credentials_and_new_ones_before_they_expire(
    open_store: OpenStore, fake_cos: FakeCOS, tmp_path: Path
) -> None:
    fake_cos.token = "token-of-the-role"
    role = {"secret_id": None, "secret_key": None, "instance_role_url": fake_cos.serve_role()}
    store = open_store(**role)
    for key in ("a", "b"):
        assert not store.put(key, make_archive(tmp_path, 10)).already_there
    assert fake_cos.roles_asked == 1
    fake_cos.credentials_last_seconds = 60
    short = open_store(**role)
    asked = fake_cos.roles_asked
    short.head("a")
    short.head("b")
    assert fake_cos.roles_asked >= asked + 2


def test_a_machine_without_the_role_is_told_so(open_store: OpenStore, fake_cos: FakeCOS) -> None:
    url = f"http://127.0.0.1:{fake_cos.port}/latest/meta-data/cam/security-credentials/other"
    with pytest.raises(StoreRefused, match="gives no credentials"):
        open_store(secret_id=None, secret_key=None, instance_role_url=url).head("k")


def test_without_keys_those_of_the_environment_are_used(
    open_store: OpenStore, fake_cos: FakeCOS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COS_SECRET_ID", fake_cos.key_id)
    monkeypatch.setenv("COS_SECRET_KEY", fake_cos.secret)
    store = open_store(secret_id=None, secret_key=None)
    assert not store.put("k", make_archive(tmp_path, 10)).already_there


@pytest.mark.parametrize("size", [1_000, 2 * MIB + 5])
def test_what_is_erased_leaves_no_version_and_no_mark(
    open_store: OpenStore, fake_cos: FakeCOS, tmp_path: Path, size: int
) -> None:
    fake_cos.versioned = True
    store, kept = open_store(), make_archive(tmp_path, 10)
    store.put("kept", kept)
    store.put("k", make_archive(tmp_path, size))
    store.erase("k")
    store.erase("k")
    assert list(fake_cos.versions.values()) == ["archives/of-node-1/kept"]
    store.put("k", kept)
    store.delete("k")
    assert len(fake_cos.versions) == 3  # the object is still there, behind a mark
