"""The contract on S3 as Ceph's gateway speaks it, over http and over TLS, and encryption."""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import dagster as dg
import pytest

from fuploader_dagster.contracts.object_store import ObjectStore
from fuploader_dagster.errors import DigestMismatch, StoreRefused
from fuploader_dagster.resources.object_stores import S3
from fuploader_dagster.testing.object_store_contract import (
    MIB,
    ObjectStoreContract,
    OpenStore,
    PartsContract,
    make_archive,
    read_all,
)
from tests.servers.connect_proxy import ConnectProxy
from tests.servers.faulty_proxy import Fault, FaultyProxy
from tests.servers.radosgw import RadosGateway


@pytest.fixture
def settings(radosgw: RadosGateway, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("TEST_SECRET", radosgw.secret_key)
    return radosgw.settings(part_size_bytes=5 * MIB, retry_budget_seconds=0)


@pytest.fixture
def open_store(settings: dict[str, Any]) -> OpenStore:
    def open_it(**more: Any) -> ObjectStore:
        return S3(**{**settings, **more}).open()

    return open_it


@pytest.fixture
def proxy(radosgw: RadosGateway) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(radosgw.port)
    proxy.start()
    yield proxy
    proxy.stop()


@pytest.fixture
def parts_sent(settings: dict[str, Any], proxy: FaultyProxy) -> Callable[[], int]:
    settings["endpoint_url"] = proxy.endpoint
    return lambda: proxy.forwarded["part"]


class TestS3OnRadosgw(ObjectStoreContract, PartsContract):
    presigns = True


class TestS3OnRadosgwOverTLS(ObjectStoreContract):
    presigns = True

    @pytest.fixture(autouse=True)
    def _give_gateway(self, radosgw: RadosGateway) -> None:
        self._gateway = radosgw

    def downloaded(self, address: str) -> bytes:
        """A browser that trusts the gateway's certificate."""
        trusting = ssl.create_default_context(cafile=self._gateway.ca_bundle)
        with urlopen(address, timeout=60, context=trusting) as answer:  # noqa: S310
            content: bytes = answer.read()
            return content

    @pytest.fixture
    def open_store(self, settings: dict[str, Any], radosgw: RadosGateway) -> OpenStore:
        tls = {"endpoint_url": radosgw.tls_endpoint, "ca_bundle": radosgw.ca_bundle}

        def open_it(**more: Any) -> ObjectStore:
            return S3(**{**settings, **tls, **more}).open()

        return open_it

    def test_a_large_archive_goes_in_parts_over_tls(
        self, open_store: OpenStore, tmp_path: Path
    ) -> None:
        store, archive = open_store(), make_archive(tmp_path, 12 * MIB)
        store.put("big", archive)
        assert read_all(store, "big", 12 * MIB) == archive.path.read_bytes()

    def test_a_certificate_that_nobody_vouches_for_is_refused_with_what_to_set(
        self, open_store: OpenStore, tmp_path: Path
    ) -> None:
        with pytest.raises(StoreRefused, match="ca_bundle"):
            open_store(ca_bundle=None).put("k", make_archive(tmp_path, 10))


@pytest.mark.parametrize("style", ["virtual", "path"])
def test_a_bucket_in_the_host_name_is_reached_over_tls_through_a_proxy(
    settings: dict[str, Any], radosgw: RadosGateway, tmp_path: Path, style: str
) -> None:
    proxy = ConnectProxy(int(radosgw.tls_endpoint.rpartition(":")[2]))
    proxy.start()
    try:
        store = S3(
            **{
                **settings,
                "endpoint_url": f"https://{radosgw.dns_name}",
                "addressing_style": style,
                "ca_bundle": radosgw.ca_bundle,
                "proxy_url": proxy.endpoint,
            }
        ).open()
        archive = make_archive(tmp_path, 12 * MIB)
        store.put("a/big", archive)
        assert read_all(store, "a/big", 12 * MIB) == archive.path.read_bytes()
        assert [each.key for each in store.list("a/")] == ["a/big"]
    finally:
        proxy.stop()
    bucket = settings["bucket"] + "." if style == "virtual" else ""
    assert set(proxy.asked) == {f"{bucket}{radosgw.dns_name}:443"}


@pytest.mark.parametrize("size", [100_000, 12 * MIB])
@pytest.mark.parametrize("how", ["customer key", "kms"])
def test_an_encrypted_object_is_verified_by_reading_it_back(  # noqa: PLR0917 - fixtures
    open_store: OpenStore,
    proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    how: str,
    size: int,
) -> None:
    monkeypatch.setenv("TEST_SSE_KEY", base64.b64encode(os.urandom(32)).decode())
    more: dict[str, Any] = {
        "customer key": {"customer_key": dg.EnvVar("TEST_SSE_KEY")},
        "kms": {"encryption": "aws:kms", "kms_key_id": "testkey"},
    }[how]
    store, archive = open_store(**more, endpoint_url=proxy.endpoint), make_archive(tmp_path, size)
    receipt = store.put("k", archive)
    assert receipt.sha256 == archive.sha256
    assert proxy.forwarded["get"] >= 1
    assert read_all(store, "k", size) == archive.path.read_bytes()
    assert store.put("k", archive).already_there
    if how == "customer key":
        with pytest.raises(StoreRefused):
            open_store().get_range("k", 0, 10)


def test_what_is_read_back_and_differs_is_a_mismatch(
    open_store: OpenStore, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = open_store(encryption="aws:kms", kms_key_id="testkey", endpoint_url=proxy.endpoint)
    proxy.play(Fault("damaged_answer", "get"))
    with pytest.raises(DigestMismatch, match="sha256"):
        store.put("k", make_archive(tmp_path, 1_000))
    assert proxy.hits["damaged_answer", "get"] == 1


def test_tags_and_storage_class_arrive(
    open_store: OpenStore, radosgw: RadosGateway, settings: dict[str, Any], tmp_path: Path
) -> None:
    open_store(tags={"team": "data & more"}, storage_class="STANDARD").put(
        "k", make_archive(tmp_path, 10)
    )
    answer = radosgw.client().get_object_tagging(Bucket=settings["bucket"], Key="k")
    assert answer["TagSet"] == [{"Key": "team", "Value": "data & more"}]
