"""The contract on Tencent COS, against a fake that checks signatures, and what only COS has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fuploader_dagster.contracts.object_store import ObjectStore
from fuploader_dagster.errors import ConfigError, StoreRefused
from fuploader_dagster.resources.object_stores import COS
from fuploader_dagster.testing.object_store_contract import (
    MIB,
    ObjectStoreContract,
    OpenStore,
    PartsContract,
    make_archive,
)
from tests.contract.object_stores.cos_and_oss import CosAndOss, KeysByDefault
from tests.servers.fake_cos import FakeCOS, downloaded_of


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
def fake(fake_cos: FakeCOS) -> FakeCOS:
    return fake_cos


@pytest.fixture
def parts_sent(fake_cos: FakeCOS) -> Callable[[], int]:
    return lambda: fake_cos.counts["part"]


class TestCOS(CosAndOss, ObjectStoreContract, PartsContract):
    presigns = True

    @pytest.fixture(autouse=True)
    def _give_fake(self, fake: FakeCOS) -> None:
        self._fake = fake

    def downloaded(self, address: str) -> bytes:
        return downloaded_of(self._fake, address)

    part_bytes = MIB
    scheme = "cos"
    key_setting = "secret_id"
    secret_setting = "secret_key"
    token_setting = "token"
    storage_class = "STANDARD_IA"
    other_bucket = "other-1250000000"


class TestCOSWithKeysByDefault(KeysByDefault):
    encryption = "cos/kms"


def test_neither_region_nor_endpoint_is_a_configuration_error(open_store: OpenStore) -> None:
    with pytest.raises(ConfigError, match="bucket-1250000000"):
        open_store(region=None)


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
