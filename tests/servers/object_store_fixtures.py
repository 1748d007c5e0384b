"""Fixtures: private object stores, started when a test first asks for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.swift import SwiftServer


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    """OpenStack Swift with the S3 API: `endpoint`, `access_key`, `secret_key`, `fresh_bucket()`."""
    server = SwiftServer(tmp_path_factory.mktemp("swift"))
    server.start()
    yield server
    server.stop()
