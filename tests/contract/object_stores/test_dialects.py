"""S3 as services document it that nobody can start here: default KMS, no conditions, cold classes.

Each is a proxy before a real server (`tests/servers/s3_dialects.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.contracts.object_store import ObjectStore
from fuploader_dagster.errors import (
    ColdObject,
    ConfigError,
    DigestMismatch,
    ObjectConflict,
    StoreRefused,
    StoreUnavailable,
)
from fuploader_dagster.resources.object_stores import S3
from fuploader_dagster.testing.object_store_contract import (
    MIB,
    ObjectStoreContract,
    PartsContract,
    interrupt,
    make_archive,
    read_all,
)
from tests.servers.s3_dialects import (
    DefaultKms,
    Dialect,
    DialectProxy,
    Drops,
    Refuses,
    refusal,
)
from tests.servers.swift import SwiftServer

LARGE = 12 * MIB
Behind = Callable[..., tuple[ObjectStore, DialectProxy]]

NO_CONDITIONS = refusal(
    501, "NotImplemented", "A header you provided implies functionality that is not implemented"
)


@pytest.fixture
def behind(swift: SwiftServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Behind]:
    """Opens a store on an empty bucket of Swift behind a proxy of the dialects."""
    monkeypatch.setenv("TEST_SECRET", swift.secret_key)
    settings = swift.settings(part_size_bytes=5 * MIB, retry_budget_seconds=0)
    with ExitStack() as running:

        def open_it(*dialects: Dialect, **more: Any) -> tuple[ObjectStore, DialectProxy]:
            proxy = running.enter_context(DialectProxy(swift.port, *dialects))
            return S3(**{**settings, "endpoint_url": proxy.endpoint, **more}).open(), proxy

        yield open_it


class TestS3WithDefaultKms(ObjectStoreContract, PartsContract):
    """Promise 4 under encryption by default: what is there is read back before it counts."""

    presigns = True
    create_only_is_atomic = False

    @pytest.fixture
    def proxies(self) -> list[DialectProxy]:
        return []

    @pytest.fixture
    def open_store(self, behind: Behind, proxies: list[DialectProxy]) -> Any:
        kms = DefaultKms()

        def open_it(**more: Any) -> ObjectStore:
            store, proxy = behind(kms, **more)
            proxies.append(proxy)
            return store

        return open_it

    @pytest.fixture
    def parts_sent(self, proxies: list[DialectProxy]) -> Callable[[], int]:
        return lambda: sum(proxy.count("part") for proxy in proxies)

    @pytest.mark.parametrize("size", [100_000, LARGE])
    def test_each_byte_is_read_back_before_the_receipt(
        self, open_store: Any, proxies: list[DialectProxy], tmp_path: Path, size: int
    ) -> None:
        open_store().put("k", make_archive(tmp_path, size))
        assert proxies[0].count("get") == -(-size // (8 * MIB))

    def test_what_is_read_back_and_differs_is_a_mismatch(
        self, behind: Behind, tmp_path: Path
    ) -> None:
        class Rots(Dialect):
            def before(self, operation: str, body: bytes) -> bytes:
                return body

            def after(self, operation: str, request: Any, reply: Any) -> Any:
                if operation != "get":
                    return reply
                return type(reply)(reply.status, reply.headers, b"\0" * len(reply.body))

        store, _ = behind(DefaultKms(), Rots())
        with pytest.raises(DigestMismatch, match="sha256"):
            store.put("k", make_archive(tmp_path, 1_000))

    def test_another_process_begins_anew_and_still_gets_it_through(
        self, behind: Behind, tmp_path: Path
    ) -> None:
        archive = make_archive(tmp_path, LARGE)
        interrupt(behind(DefaultKms(), concurrency=1)[0], archive, after_parts=1)
        store, _ = behind(DefaultKms())
        assert store.put("big", archive).sha256 == archive.sha256


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("ExpiredToken", "renew the temporary credentials"),
        ("SignatureDoesNotMatch", "check the secret key"),
        ("InvalidAccessKeyId", "check the access key id"),
        ("AuthorizationHeaderMalformed", "check the region"),
        ("AccountProblem", "account"),
        ("RequestTimeTooSkewed", "clock"),
    ],
)
@pytest.mark.parametrize("status", [400, 403])
def test_what_a_head_conceals_is_asked_once_and_said(
    behind: Behind, tmp_path: Path, status: int, code: str, hint: str
) -> None:
    refuses = Refuses(refusal(status, code), "head", "get", "put", "list", "begin")
    store, proxy = behind(refuses)
    for attempt in (lambda: store.head("k"), lambda: store.put("k", make_archive(tmp_path, 10))):
        proxy.requests.clear()
        with pytest.raises((StoreRefused, StoreUnavailable), match=code) as caught:
            attempt()
        assert hint in caught.value.hint
        asked = [method for method, path in proxy.requests if "/k" in path]  # not of the bucket
        assert asked == ["HEAD", "GET"]


def test_a_head_that_is_forbidden_while_reading_is_not_stays_a_refusal(
    behind: Behind, tmp_path: Path
) -> None:
    behind()[0].put("k", make_archive(tmp_path, 10))
    store, _ = behind(Refuses(refusal(403, "AccessDenied"), "head"))
    with pytest.raises(StoreRefused, match="403"):
        store.head("k")


@pytest.mark.parametrize("size", [1_000, LARGE])
def test_a_service_without_conditions_is_asked_without_after_a_look(
    behind: Behind, tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    store, proxy = behind(Refuses(NO_CONDITIONS, "put", "complete", header="If-None-Match"))
    archive, operation = make_archive(tmp_path, size), "put" if size < LARGE else "complete"
    with caplog.at_level(logging.WARNING):
        assert not store.put("a", archive).already_there
        assert not store.put("b", archive).already_there
    assert proxy.count(operation) == 3  # only the first was tried with the condition
    assert sum("If-None-Match" in record.getMessage() for record in caplog.records) == 1
    assert store.put("a", archive).already_there
    with pytest.raises(ObjectConflict):
        store.put("a", make_archive(tmp_path, size, seed=1))
    assert read_all(store, "a", size) == archive.path.read_bytes()
    store.check()


def test_what_is_put_meanwhile_is_seen_by_the_look_before_an_unconditional_put(
    behind: Behind, tmp_path: Path
) -> None:
    other, _ = behind()
    mine, theirs = make_archive(tmp_path, 1_000), make_archive(tmp_path, 1_000, seed=1)

    class Overtakes(Refuses):
        def instead(self, operation: str, request: Any) -> Any:
            answer = super().instead(operation, request)
            if answer is not None:
                other.put("k", theirs)
            return answer

    store, _ = behind(Overtakes(NO_CONDITIONS, "put", header="If-None-Match"))
    with pytest.raises(ObjectConflict):
        store.put("k", mine)
    assert read_all(store, "k", 1_000) == theirs.path.read_bytes()


@pytest.mark.parametrize("answer", [NO_CONDITIONS, refusal(403, "AccessDenied")])
def test_a_service_that_lists_no_unfinished_uploads_gets_large_archives_all_the_same(
    behind: Behind, tmp_path: Path, answer: Any
) -> None:
    store, _ = behind(Refuses(answer, "uploads"))
    archive = make_archive(tmp_path, LARGE)
    assert not store.put("k", archive).already_there
    assert read_all(store, "k", LARGE) == archive.path.read_bytes()
    with pytest.raises(StoreRefused):
        store.unfinished()


@pytest.mark.parametrize("size", [1_000, LARGE])
def test_without_an_etag_the_object_is_read_back(behind: Behind, tmp_path: Path, size: int) -> None:
    store, proxy = behind(Drops("ETag", "head", "part", "put"))
    archive = make_archive(tmp_path, size)
    assert not store.put("k", archive).already_there
    assert proxy.count("get") >= 1
    assert store.put("k", archive).already_there


def test_parts_without_any_etag_are_refused_with_what_to_set(
    behind: Behind, tmp_path: Path
) -> None:
    store, _ = behind(Drops("ETag", "part", listed=False))
    with pytest.raises(StoreRefused, match="ETag") as caught:
        store.put("k", make_archive(tmp_path, LARGE))
    assert "part_size_bytes" in caught.value.hint
    assert store.unfinished() == []
    with pytest.raises(StoreRefused, match="ETag"):  # the doctor's look finds what a put would
        store.check()


def test_a_size_that_head_does_not_state_is_taken_from_the_listing(
    behind: Behind, tmp_path: Path
) -> None:
    store, _ = behind(Drops("Content-Length", "head"))
    archive = make_archive(tmp_path, 1_000)
    assert not store.put("k", archive).already_there
    head = store.head("k")
    assert head is not None
    assert head.size_bytes == 1_000


def test_a_cold_object_is_said_to_be_cold_and_its_put_may_be_repeated(
    behind: Behind, tmp_path: Path
) -> None:
    archive = make_archive(tmp_path, 1_000)
    behind()[0].put("k", archive)
    store, _ = behind(Refuses(refusal(403, "InvalidObjectState"), "get"))
    assert store.put("k", archive).already_there  # its digest is stated without reading it
    with pytest.raises(ColdObject, match="InvalidObjectState") as caught:
        store.get_range("k", 0, 10)
    assert "restore" in caught.value.hint
    assert "rights" not in caught.value.hint


def test_a_cold_object_that_must_be_read_back_says_why_it_cannot_be_confirmed(
    behind: Behind, tmp_path: Path
) -> None:
    store, _ = behind(DefaultKms(), Refuses(refusal(403, "InvalidObjectState"), "get"))
    with pytest.raises(ColdObject, match="confirmed only by reading it back") as caught:
        store.put("k", make_archive(tmp_path, 1_000))
    assert "storage_class" in caught.value.hint


@pytest.mark.parametrize("storage_class", ["GLACIER", "DEEP_ARCHIVE"])
@pytest.mark.parametrize(
    "by",
    [{"encryption": "aws:kms"}, {"encryption": "aws:kms:dsse"}, {"customer_key": {"env": "K"}}],
)
def test_what_could_never_be_confirmed_is_refused_at_load(
    storage_class: str, by: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=storage_class):
        S3(bucket="b", storage_class=storage_class, **by)
    monkeypatch.setenv("TEST_CLASS", storage_class)
    monkeypatch.setenv("K", "k")
    with pytest.raises(ConfigError, match=storage_class):
        S3(bucket="b", storage_class={"env": "TEST_CLASS"}, **by).open()
    S3(bucket="b", storage_class=storage_class, encryption="AES256")
    S3(bucket="b", storage_class="GLACIER_IR", **by)
