"""Fixtures: private object stores, started when a test first asks for one."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.servers.fake_cos import FakeCOS
from tests.servers.fake_oss import FakeOSS
from tests.servers.faulty_proxy import FaultyProxy
from tests.servers.radosgw import RadosGateway
from tests.servers.swift import SwiftServer


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    """OpenStack Swift with the S3 API: `endpoint`, `access_key`, `secret_key`, `fresh_bucket()`."""
    server = SwiftServer(tmp_path_factory.mktemp("swift"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def swift_proxy(swift: SwiftServer) -> Iterator[FaultyProxy]:
    """A proxy in front of Swift that counts requests and plays faults."""
    proxy = FaultyProxy(swift.port)
    proxy.start()
    yield proxy
    proxy.stop()


@pytest.fixture
def fake_cos() -> Iterator[FakeCOS]:
    """An empty COS bucket that checks signatures."""
    fake = FakeCOS("bucket-1250000000", "AKIDexample", "s" + secrets.token_hex(8))
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def fake_oss() -> Iterator[FakeOSS]:
    """An empty OSS bucket that checks signatures, V1 and V4."""
    fake = FakeOSS("bucket-test", "LTAIexample", "s" + secrets.token_hex(8))
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture(scope="session")
def radosgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RadosGateway]:
    """Ceph's object gateway, over http and TLS."""
    server = RadosGateway(tmp_path_factory.mktemp("radosgw"))
    server.start()
    yield server
    server.stop()
