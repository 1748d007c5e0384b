"""What every message source and publisher does, on a list of Redis."""

from __future__ import annotations

import secrets

import pytest

from fuploader_dagster.contracts.source import SourceSettings
from fuploader_dagster.resources.sources.redis_list.source import RedisList
from fuploader_dagster.testing import MessageSourceContract
from tests.servers.redis import RedisServer


@pytest.mark.parametrize("end", ["right", "left"])
class TestBothEnds(MessageSourceContract):
    @pytest.fixture
    def settings(self, redis_server: RedisServer, end: str) -> SourceSettings:
        key = f"list-{secrets.token_hex(6)}"
        return RedisList.model_validate({"url": redis_server.url(), "key": key, "end": end})
