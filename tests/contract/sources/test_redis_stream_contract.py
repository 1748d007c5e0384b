"""What every message source and publisher does, on a stream of Redis."""

from __future__ import annotations

import secrets

import pytest

from fuploader_dagster.contracts.source import SourceSettings
from fuploader_dagster.resources.sources.redis_stream.source import RedisStream
from fuploader_dagster.testing import MessageSourceContract
from tests.servers.redis import RedisServer


class TestDeleting(MessageSourceContract):
    @pytest.fixture
    def settings(self, redis_server: RedisServer) -> SourceSettings:
        stream = f"stream-{secrets.token_hex(6)}"
        return RedisStream(url=redis_server.url(), stream=stream)  # type: ignore[arg-type]


class TestKeepingForOtherGroups(MessageSourceContract):
    @pytest.fixture
    def settings(self, redis_server: RedisServer) -> SourceSettings:
        stream = f"stream-{secrets.token_hex(6)}"
        with redis_server.client() as client:
            client.xgroup_create(stream, "others", mkstream=True)
        return RedisStream(url=redis_server.url(), stream=stream, delete=False)  # type: ignore[arg-type]
