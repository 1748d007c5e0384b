"""The contract on S3 as OpenStack Swift speaks it, and what only S3 has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fuploader_dagster.contracts.object_store import ArchiveFile, ObjectStore, counted_requests
from fuploader_dagster.errors import DigestMismatch, StoreRefused, StoreUnavailable
from fuploader_dagster.resources.object_stores import S3
from fuploader_dagster.testing.object_store_contract import (
    MIB,
    ObjectStoreContract,
    OpenStore,
    PartsContract,
    make_archive,
)
from tests.servers.faulty_proxy import Fault, FaultyProxy
from tests.servers.swift import SwiftServer


@pytest.fixture
def settings(swift: SwiftServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("TEST_SECRET", swift.secret_key)
    return swift.settings(
        prefix="archives/of-node-1", part_size_bytes=5 * MIB, retry_budget_seconds=0
    )


@pytest.fixture
def open_store(settings: dict[str, Any]) -> OpenStore:
    def open_it(**more: Any) -> ObjectStore:
        return S3(**{**settings, **more}).open()

    return open_it


@pytest.fixture
def parts_sent(settings: dict[str, Any], swift_proxy: FaultyProxy) -> Callable[[], int]:
    settings["endpoint_url"] = swift_proxy.endpoint
    return lambda: swift_proxy.forwarded["part"]


class TestS3OnSwift(ObjectStoreContract, PartsContract):
    presigns = True
    create_only_is_atomic = False


def test_everything_lies_below_the_prefix_and_other_prefixes_stay_invisible(
    open_store: OpenStore, swift: SwiftServer, settings: dict[str, Any], tmp_path: Path
) -> None:
    store, other = open_store(), open_store(prefix="elsewhere/")
    store.put("k", make_archive(tmp_path, 10))
    other.put("k", make_archive(tmp_path, 20, seed=1))
    answer = swift.client().list_objects_v2(Bucket=settings["bucket"])
    assert [each["Key"] for each in answer["Contents"]] == ["archives/of-node-1/k", "elsewhere/k"]
    assert [each.size_bytes for each in store.list()] == [10]
    assert store.address("k") == f"s3://{settings['bucket']}/archives/of-node-1/k"


def test_digest_and_the_archives_own_metadata_travel_with_the_object(
    open_store: OpenStore, swift: SwiftServer, settings: dict[str, Any], tmp_path: Path
) -> None:
    archive = make_archive(tmp_path, 10, messages="12", pipeline="aweme")
    open_store().put("k", archive)
    answer = swift.client().head_object(Bucket=settings["bucket"], Key="archives/of-node-1/k")
    assert answer["Metadata"] == {"messages": "12", "pipeline": "aweme", "sha256": archive.sha256}


def test_an_object_that_somebody_put_without_our_metadata_counts_if_its_content_is_ours(
    open_store: OpenStore, swift: SwiftServer, settings: dict[str, Any], tmp_path: Path
) -> None:
    archive = make_archive(tmp_path, 5_000)
    swift.client().put_object(
        Bucket=settings["bucket"], Key="archives/of-node-1/k", Body=archive.path.read_bytes()
    )
    assert open_store().put("k", archive).already_there


@pytest.mark.parametrize("size", [5_000, 12 * MIB])
def test_an_object_that_claims_our_digest_and_holds_other_bytes_is_a_mismatch(
    open_store: OpenStore,
    swift: SwiftServer,
    settings: dict[str, Any],
    tmp_path: Path,
    size: int,
) -> None:
    archive = make_archive(tmp_path, size)
    for content in (b"x" * size, archive.path.read_bytes() + b"trailer"):
        swift.client().put_object(
            Bucket=settings["bucket"],
            Key="archives/of-node-1/k",
            Body=content,
            Metadata={"sha256": archive.sha256},
        )
        with pytest.raises(DigestMismatch) as caught:
            open_store().put("k", archive)
        assert str(archive.path) in str(caught.value)


@pytest.mark.parametrize("what", ["key", "secret", "bucket"])
def test_a_refusal_names_address_code_and_what_to_check_but_no_secret(
    open_store: OpenStore,
    swift: SwiftServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    what: str,
) -> None:
    monkeypatch.setenv("TEST_WRONG_SECRET", "wrong-" + swift.secret_key)
    wrong, hint = {
        "key": ({"access_key_id": "test:nobody"}, "belongs to this access key"),
        "secret": ({"secret_access_key": dg.EnvVar("TEST_WRONG_SECRET")}, "check the secret key"),
        "bucket": ({"bucket": "there-is-no-such-bucket"}, "check the bucket's name"),
    }[what]
    store = open_store(**wrong)
    for attempt in (store.check, lambda: store.put("k", make_archive(tmp_path, 10))):
        with pytest.raises(StoreRefused) as caught:
            attempt()
        text = str(caught.value)
        assert "s3://" in text
        assert swift.secret_key not in text
    assert hint in text


def test_a_store_that_is_not_there_is_unavailable_and_the_error_names_its_address(
    open_store: OpenStore, tmp_path: Path
) -> None:
    store = open_store(endpoint_url="http://127.0.0.1:1")
    with pytest.raises(StoreUnavailable, match=r"http://127\.0\.0\.1:1") as caught:
        store.put("k", make_archive(tmp_path, 10))
    assert "check that the address" in caught.value.hint


def test_requests_go_through_the_proxy_that_is_set(
    open_store: OpenStore, swift_proxy: FaultyProxy, tmp_path: Path
) -> None:
    open_store(proxy_url=swift_proxy.endpoint).put("k", make_archive(tmp_path, 10))
    assert swift_proxy.forwarded["put"] == 1


def test_temporary_credentials_send_their_token_signed(
    settings: dict[str, Any], swift_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_S3_TOKEN", "a-token")
    settings |= {"endpoint_url": swift_proxy.endpoint, "session_token": dg.EnvVar("TEST_S3_TOKEN")}
    S3(**settings).open().head("k")
    assert swift_proxy.last_headers["x-amz-security-token"] == "a-token"
    assert "x-amz-security-token" in swift_proxy.last_headers["authorization"]


@pytest.mark.parametrize("size", [1_000, 12 * MIB])
def test_what_is_erased_leaves_no_version_and_no_mark(
    open_store: OpenStore,
    swift: SwiftServer,
    settings: dict[str, Any],
    tmp_path: Path,
    size: int,
) -> None:
    client, bucket = swift.client(), settings["bucket"]
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    store = open_store()
    store.put("k", make_archive(tmp_path, size))
    store.erase("k")
    left = client.list_object_versions(Bucket=bucket)
    assert left.get("Versions", []) == left.get("DeleteMarkers", []) == []


def test_an_archive_of_more_parts_than_the_service_takes_says_which_setting_to_raise(
    open_store: OpenStore, tmp_path: Path
) -> None:
    path, size = tmp_path / "huge.tar.zst", 1_010 * 5 * MIB
    with path.open("wb") as file:
        file.truncate(size)
    store = open_store(concurrency=1)
    with pytest.raises(StoreRefused, match="part 1010") as caught:
        store.put("huge", ArchiveFile(path, size, "0" * 64))
    assert "part_size_bytes to 5,295,309 or more" in caught.value.hint
    assert store.unfinished() == []


def test_a_wrong_region_is_named_with_the_right_one(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(region="eu-west-1")
    with pytest.raises(StoreRefused, match=r"AuthorizationHeaderMalformed.*us-east-1") as caught:
        store.put("k", make_archive(tmp_path, 10))
    assert "check the region" in caught.value.hint


@pytest.mark.parametrize(("size", "operation"), [(1_000, "put"), (12 * MIB, "part")])
def test_each_request_of_an_upload_counts_also_one_that_failed(
    settings: dict[str, Any], swift_proxy: FaultyProxy, tmp_path: Path, size: int, operation: str
) -> None:
    values = {"endpoint_url": swift_proxy.endpoint, "retry_budget_seconds": 60}
    store = S3(**{**settings, **values}).open()
    swift_proxy.play(Fault("503", operation))
    with counted_requests() as requests:
        store.put("k", make_archive(tmp_path, size))
    assert swift_proxy.hits["503", operation] == 1
    assert requests.number == swift_proxy.counts.total()
