"""The rights that SECURITY.md lists are enough, and the requests that it lists are those made."""

from __future__ import annotations

import json
import re
import secrets
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fuploader_dagster.contracts.object_store import ObjectStore
from fuploader_dagster.errors import SourceRefused, StoreRefused
from fuploader_dagster.resources.object_stores import COS, OSS, S3
from fuploader_dagster.testing.object_store_contract import MIB, interrupt, make_archive
from tests.contract.sources.rabbitmq_sources import on
from tests.drains import backlog, draining, embedded, files, publish, wait_for
from tests.servers.fake_cos import FakeCOS
from tests.servers.fake_oss import FakeOSS
from tests.servers.faulty_proxy import FaultyProxy
from tests.servers.ports import LOOPBACK
from tests.servers.queue_fixtures import new_queue
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.radosgw import RadosGateway

PAGE = (Path(__file__).parents[3] / "SECURITY.md").read_text("utf-8")
ROWS: list[tuple[str, str, str, str]] = re.findall(
    r"^\| `([a-z]+)` \| .* \| `(s3:\w+)` \| `(name/cos:\w+)` \| `(oss:\w+)` \|$", PAGE, re.MULTILINE
)
OF_THE_WRITER = {"s3:GetObject", "s3:ListMultipartUploadParts"}
"""Ceph lets who wrote an object, or began an upload, read it without a right."""
REQUESTS = {row[0] for row in ROWS}


def limited(rabbitmq: RabbitMQServer, configure: str, write: str, read: str) -> str:
    user, password = f"least-{secrets.token_hex(4)}", secrets.token_hex(8)
    rabbitmq.ctl("add_user", user, password)
    rabbitmq.ctl("set_permissions", user, configure, write, read)
    return f"amqp://{user}:{password}@{LOOPBACK}:{rabbitmq.port}/%2F"


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_read_on_the_queue_is_enough_to_drain_and_write_on_the_default_exchange_to_publish(
    rabbitmq: RabbitMQServer, tmp_path: Path, queue_type: str
) -> None:
    queue = new_queue(rabbitmq, queue_type)
    reads = limited(rabbitmq, "^$", "^$", f"^{queue}$")
    writes = limited(rabbitmq, "^$", r"^amq\.default$", "^$")
    producer = embedded(tmp_path, source=on(rabbitmq, queue, url=writes))
    settings = embedded(tmp_path, source=on(rabbitmq, queue, url=reads))
    publish(producer, files(50))
    with draining(settings):
        wait_for(lambda: backlog(settings) == 0, settings, "the drain")
    with pytest.raises(SourceRefused, match="permissions"):
        publish(settings, files(1))
    with pytest.raises(SourceRefused, match="permissions"):
        producer.source.source(prefetch=1).open()


def lived(store: ObjectStore, folder: Path) -> None:
    """All that a pipeline, a check, a scrub, housekeeping and doctor ask of a store."""
    store.check()
    small, large = make_archive(folder, 1000), make_archive(folder, 11 * MIB)
    for key, archive in (("a/small", small), ("a/large", large)):
        assert store.head(key) is None
        store.put(key, archive)
        store.put(key, archive)
        found = store.head(key)
        assert found is not None
        assert found.sha256 == archive.sha256
        assert store.get_range(key, 10, 20) == archive.path.read_bytes()[10:30]
    assert [one.key for one in store.list("a/")] == ["a/large", "a/small"]
    assert store.unfinished("a/") == []
    interrupt(store, other := make_archive(folder, 16 * MIB, seed=1), after_parts=2)
    uploads = store.unfinished("")
    assert [one.key for one in uploads] == ["big"]
    store.abort(uploads[0])
    interrupt(store, other, after_parts=2)
    store.put("big", other)
    assert store.unfinished("") == []
    store.delete("a/small")
    assert store.head("a/small") is None


def on_ceph(
    radosgw: RadosGateway, endpoint: str, user: tuple[str, str, str], bucket: str, monkeypatch: Any
) -> ObjectStore:
    _, key, secret = user
    monkeypatch.setenv("LEAST_SECRET", secret)
    return S3(
        bucket=bucket,
        endpoint_url=endpoint,
        region=radosgw.region,
        addressing_style="path",
        access_key_id=key,
        secret_access_key=dg.EnvVar("LEAST_SECRET"),
        part_size_bytes=5 * MIB,
        concurrency=1,
        retry_budget_seconds=0,
    ).open()


def grant(radosgw: RadosGateway, bucket: str, user: str, actions: set[str]) -> None:
    """These actions, on the bucket and all in it, and no others."""
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": [f"arn:aws:iam:::user/{user}"]},
        "Action": sorted(actions),
        "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
    }
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    radosgw.client().put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))


def test_the_documented_rights_are_enough_on_s3_and_the_requests_are_those_documented(
    radosgw: RadosGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, user = radosgw.fresh_bucket(), radosgw.another_user()
    grant(radosgw, bucket, user[0], {row[1] for row in ROWS})
    proxy = FaultyProxy(radosgw.port)
    proxy.start()
    try:
        lived(on_ceph(radosgw, proxy.endpoint, user, bucket, monkeypatch), tmp_path)
    finally:
        proxy.stop()
    assert set(proxy.counts) == REQUESTS


@pytest.mark.parametrize("missing", sorted({row[1] for row in ROWS} - OF_THE_WRITER))
def test_none_of_the_rights_on_s3_is_too_many(
    radosgw: RadosGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    bucket, user = radosgw.fresh_bucket(), radosgw.another_user()
    grant(radosgw, bucket, user[0], {row[1] for row in ROWS} - {missing})
    with pytest.raises((StoreRefused, AssertionError)):
        lived(on_ceph(radosgw, radosgw.endpoint, user, bucket, monkeypatch), tmp_path)


def test_the_requests_to_cos_are_those_documented(
    fake_cos: FakeCOS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEAST_SECRET", fake_cos.secret)
    store = COS(
        bucket=fake_cos.bucket,
        region="ap-test",
        scheme="http",
        address=f"{LOOPBACK}:{fake_cos.port}",
        secret_id=fake_cos.key_id,
        secret_key=dg.EnvVar("LEAST_SECRET"),
        part_size_bytes=5 * MIB,
        concurrency=1,
        retry_budget_seconds=0,
    )
    lived(store.open(), tmp_path)
    assert set(fake_cos.counts) == REQUESTS


def test_the_requests_to_oss_are_those_documented(
    fake_oss: FakeOSS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEAST_SECRET", fake_oss.secret)
    store = OSS(
        bucket=fake_oss.bucket,
        endpoint=fake_oss.endpoint,
        region=fake_oss.region,
        access_key_id=fake_oss.key_id,
        access_key_secret=dg.EnvVar("LEAST_SECRET"),
        part_size_bytes=5 * MIB,
        concurrency=1,
        retry_budget_seconds=0,
    )
    lived(store.open(), tmp_path)
    assert set(fake_oss.counts) == REQUESTS
