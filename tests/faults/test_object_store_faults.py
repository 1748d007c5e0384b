"""The fault matrix: whatever happens on the way, the archive is stored once and intact.

For each fault, operation and backend the test asserts that the fault was really played, that the
object is there exactly once with its exact bytes and nothing unfinished beside it, or that the
error is a permanent one that says what it is. `FAULTS` and `BACKENDS` span the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fuploader_dagster.contracts.object_store import ObjectStore
from fuploader_dagster.errors import DigestMismatch, StoreRefused, StoreUnavailable
from fuploader_dagster.resources.object_stores import COS, OSS, S3
from fuploader_dagster.resources.object_stores.resource import ObjectStoreResource
from fuploader_dagster.resources.object_stores.retrying import RetryingObjectStore
from fuploader_dagster.testing.object_store_contract import MIB, make_archive
from tests.servers.fake_cos import FakeCOS
from tests.servers.fake_oss import FakeOSS
from tests.servers.faulty_proxy import Fault, FaultyProxy
from tests.servers.swift import SwiftServer

SMALL, LARGE = 300_000, 0  # one request; two parts, however large these are

BACKENDS = ["S3 on Swift", "COS", "OSS"]

FAULTS = [
    # kind, operation, size
    *((kind, "put", SMALL) for kind in ("500", "503", "429", "skewed")),
    *((kind, "put", SMALL) for kind in ("reset_before", "reset_after", "answer_lost")),
    *((kind, "put", SMALL) for kind in ("truncated", "damaged", "trickle", "hang")),
    *((kind, "part", LARGE) for kind in ("500", "503", "429", "skewed")),
    *((kind, "part", LARGE) for kind in ("reset_before", "reset_after", "answer_lost")),
    *((kind, "part", LARGE) for kind in ("truncated", "damaged", "trickle", "hang")),
    ("wrong_digest", "part", LARGE),
    *((kind, "begin", LARGE) for kind in ("500", "reset_after", "answer_lost", "hang")),
    *((kind, "complete", LARGE) for kind in ("500", "503", "reset_after", "answer_lost", "hang")),
    *((kind, "uploads", LARGE) for kind in ("500", "reset_before", "truncated_answer")),
    *((kind, "head", SMALL) for kind in ("500", "503", "reset_before", "hang", "trickle")),
]


@dataclass
class Backend:
    """A backend behind a proxy: how to open it, and what really lies in its bucket."""

    proxy: FaultyProxy
    settings: ObjectStoreResource
    objects: Callable[[], dict[str, bytes]]

    def parts(self, count: int) -> int:
        """The size of an archive that is stored in so many."""
        return count * int(self.settings.part_size_bytes) + 5  # type: ignore[attr-defined]

    def open(
        self, budget_seconds: float = 30, *, read_timeout_seconds: float = 30, concurrency: int = 4
    ) -> ObjectStore:
        own = {"read_timeout_seconds": read_timeout_seconds, "concurrency": concurrency}
        return RetryingObjectStore(
            self.settings.model_copy(update=own).resolved().connect(),
            budget_seconds=budget_seconds,
            first_pause_seconds=0.02,
            longest_pause_seconds=0.2,
        )


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    built = _BUILD[request.param](request, monkeypatch)
    yield built
    built.proxy.stop()


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize(("kind", "operation", "size"), FAULTS)
def test_an_archive_is_stored_once_and_intact_whatever_happens_once(
    backend: Backend, tmp_path: Path, kind: str, operation: str, size: int
) -> None:
    archive = make_archive(tmp_path, size or backend.parts(2))
    store = backend.open(read_timeout_seconds=2 if kind == "hang" else 30)
    backend.proxy.play(Fault(kind, operation))
    receipt = store.put("k", archive)
    assert backend.proxy.hits[kind, operation] == 1, "the fault was not played"
    assert receipt.sha256 == archive.sha256
    assert backend.objects() == {"k": archive.path.read_bytes()}
    # One that was begun and whose answer was lost is for the housekeeping.
    left = 1 if (kind, operation) in (("answer_lost", "begin"), ("hang", "begin")) else 0
    assert len(store.unfinished()) <= left


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize(("operation", "size"), [("put", SMALL), ("complete", LARGE)])
def test_what_was_stored_although_the_answer_got_lost_is_not_sent_again(
    backend: Backend, tmp_path: Path, operation: str, size: int
) -> None:
    archive = make_archive(tmp_path, size or backend.parts(2))
    backend.proxy.play(Fault("answer_lost", operation))
    receipt = backend.open().put("k", archive)
    assert backend.proxy.hits["answer_lost", operation] == 1
    assert backend.proxy.counts[operation] == 1
    assert receipt.already_there


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_a_failed_part_costs_that_part_alone(backend: Backend, tmp_path: Path) -> None:
    archive = make_archive(tmp_path, backend.parts(5))
    backend.proxy.play(Fault("500", "part", times=3, skip=2))
    # One after the other: else the faults may hit the last part, without which the next attempt
    # begins anew.
    backend.open(concurrency=1).put("k", archive)
    assert backend.proxy.hits["500", "part"] == 3
    assert backend.proxy.forwarded["part"] == 5
    assert backend.objects() == {"k": archive.path.read_bytes()}


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_a_digest_that_is_not_ours_is_an_error_that_names_both_and_keeps_the_archive(
    backend: Backend, tmp_path: Path
) -> None:
    archive = make_archive(tmp_path, SMALL)
    backend.proxy.play(Fault("wrong_digest", "head", times=99, skip=1))  # not of the first look
    with pytest.raises(DigestMismatch, match="the service states") as caught:
        backend.open().put("k", archive)
    assert backend.proxy.hits["wrong_digest", "head"] == 1  # permanent: not tried again
    assert str(archive.path) in str(caught.value)
    assert archive.path.exists()


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("operation", ["put", "head"])
def test_a_refusal_is_not_tried_again(backend: Backend, tmp_path: Path, operation: str) -> None:
    backend.proxy.play(Fault("403", operation, times=99))
    with pytest.raises(StoreRefused):
        backend.open().put("k", make_archive(tmp_path, SMALL))
    assert backend.proxy.hits["403", operation] == 1
    assert backend.objects() == {}


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("kind", ["500", "reset_before", "truncated_answer"])
def test_reading_back_survives_what_happens_on_the_way(
    backend: Backend, tmp_path: Path, kind: str
) -> None:
    archive, store = make_archive(tmp_path, SMALL), backend.open()
    store.put("k", archive)
    backend.proxy.play(Fault(kind, "get"), Fault(kind, "list"))
    assert store.get_range("k", 0, SMALL) == archive.path.read_bytes()
    assert [each.key for each in store.list()] == ["k"]
    assert backend.proxy.hits[kind, "get"] == 1
    assert backend.proxy.hits[kind, "list"] == 1


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_a_store_that_stays_broken_ends_in_the_error_that_says_so(
    backend: Backend, tmp_path: Path
) -> None:
    archive = make_archive(tmp_path, SMALL)
    backend.proxy.play(Fault("503", "put", times=10_000))
    with pytest.raises(StoreUnavailable, match="503"):
        backend.open(budget_seconds=2).put("k", archive)
    assert backend.proxy.hits["503", "put"] > 1
    assert archive.path.exists()
    assert backend.objects() == {}


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_the_retry_after_of_the_server_arrives_at_the_retries(
    backend: Backend, tmp_path: Path
) -> None:
    backend.proxy.play(Fault("429", "put"))
    with pytest.raises(StoreUnavailable) as caught:
        backend.settings.resolved().connect().put("k", make_archive(tmp_path, SMALL))
    assert caught.value.retry_after_seconds == 1


def test_a_store_that_dies_and_comes_back_gets_the_archive(
    swift: SwiftServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TEST_SECRET", swift.secret_key)
    store = S3(**swift.settings(part_size_bytes=5 * MIB)).open()
    first, second = make_archive(tmp_path, SMALL), make_archive(tmp_path, SMALL, seed=1)
    store.put("first", first)
    swift.kill()
    try:
        quick = RetryingObjectStore(
            store.store if isinstance(store, RetryingObjectStore) else store, budget_seconds=0
        )
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1"):
            quick.put("second", second)
    finally:
        swift.start()
    assert store.put("first", first).already_there
    assert not store.put("second", second).already_there


def _on_swift(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    swift: SwiftServer = request.getfixturevalue("swift")
    monkeypatch.setenv("TEST_SECRET", swift.secret_key)
    proxy = FaultyProxy(swift.port)
    proxy.start()
    values = swift.settings(endpoint_url=proxy.endpoint, part_size_bytes=5 * MIB)  # the least of S3

    def objects() -> dict[str, bytes]:
        client, bucket = swift.client(), values["bucket"]
        listed = client.list_objects_v2(Bucket=bucket).get("Contents", [])
        return {
            each["Key"]: client.get_object(Bucket=bucket, Key=each["Key"])["Body"].read()
            for each in listed
        }

    return Backend(proxy, S3(**values), objects)


def _cos(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    fake: FakeCOS = request.getfixturevalue("fake_cos")
    monkeypatch.setenv("TEST_SECRET", fake.secret)
    proxy = FaultyProxy(fake.port)
    proxy.start()
    settings = COS(
        bucket=fake.bucket,
        region=fake.region,
        address=f"127.0.0.1:{proxy.port}",
        scheme="http",
        secret_id=fake.key_id,
        secret_key={"env": "TEST_SECRET"},
        part_size_bytes=MIB,
    )
    return Backend(proxy, settings, lambda: {k: v.content for k, v in fake.files.items()})


def _oss(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    fake: FakeOSS = request.getfixturevalue("fake_oss")
    monkeypatch.setenv("TEST_SECRET", fake.secret)
    proxy = FaultyProxy(fake.port)
    proxy.start()
    settings = OSS(
        bucket=fake.bucket,
        region=fake.region,
        endpoint=proxy.endpoint,
        access_key_id=fake.key_id,
        access_key_secret={"env": "TEST_SECRET"},
        part_size_bytes=MIB,
    )
    return Backend(proxy, settings, lambda: {k: v.content for k, v in fake.files.items()})


_BUILD = {"S3 on Swift": _on_swift, "COS": _cos, "OSS": _oss}
