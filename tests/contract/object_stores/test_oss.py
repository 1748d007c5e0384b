"""The contract on Alibaba OSS, against a fake that checks signatures, and what only OSS has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fuploader_dagster.contracts.object_store import ObjectStore
from fuploader_dagster.errors import ConfigError, StoreRefused
from fuploader_dagster.resources.object_stores import OSS
from fuploader_dagster.testing.object_store_contract import (
    MIB,
    ObjectStoreContract,
    OpenStore,
    PartsContract,
    make_archive,
)
from tests.contract.object_stores.cos_and_oss import CosAndOss, KeysByDefault
from tests.servers.fake_oss import FakeOSS


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
def fake(fake_oss: FakeOSS) -> FakeOSS:
    return fake_oss


@pytest.fixture
def parts_sent(fake_oss: FakeOSS) -> Callable[[], int]:
    return lambda: fake_oss.counts["part"]


class TestOSS(CosAndOss, ObjectStoreContract, PartsContract):
    presigns = True
    part_bytes = MIB
    scheme = "oss"
    key_setting = "access_key_id"
    secret_setting = "access_key_secret"
    token_setting = "security_token"
    storage_class = "IA"
    other_bucket = "other-bucket"


class TestOSSWithKeysByDefault(KeysByDefault):
    encryption = "KMS"


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
