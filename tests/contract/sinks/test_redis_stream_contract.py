"""The Redis stream's sink does what every sink does: with a field for each value, and with one."""

from __future__ import annotations

import json
import secrets
from typing import Any, ClassVar

import pytest

from fuploader_dagster.contracts.sink import Row, SinkSettings
from fuploader_dagster.resources.sinks.redis_stream import RedisStreamSink
from fuploader_dagster.testing import SinkContract
from fuploader_dagster.testing.sink_contract import SECRET
from tests.servers.redis import RedisServer


class _OnAStream(SinkContract):
    more: ClassVar[dict[str, Any]]

    @pytest.fixture
    def settings(self, redis_server: RedisServer) -> RedisStreamSink:
        self.server = redis_server
        self.stream = f"orders-{secrets.token_hex(4)}"
        return RedisStreamSink.model_validate(
            {"url": redis_server.url(), "stream": self.stream, **self.more}
        )

    def row(self, number: int, text: str = "") -> Row:
        return {"number": number, "label": text or f"no. {number}", "amount": None}

    def bad_row(self, number: int) -> Row:
        return {"number": number, "label": "bad", "amount": SECRET + "\ud800"}

    def numbers(self, settings: SinkSettings) -> list[int]:
        with self.server.client() as client:
            return [self.number(fields) for _, fields in client.xrange(self.stream)]

    def number(self, fields: dict[str, str]) -> int:
        raise NotImplementedError


class TestAFieldForEachValue(_OnAStream):
    more: ClassVar[dict[str, Any]] = {}

    def number(self, fields: dict[str, str]) -> int:
        assert set(fields) == {"number", "label"}
        return int(fields["number"])


class TestOneField(_OnAStream):
    more: ClassVar[dict[str, Any]] = {"json_field": "body", "max_length": 1_000_000}

    def number(self, fields: dict[str, str]) -> int:
        assert set(fields) == {"body"}
        return int(json.loads(fields["body"])["number"])


class TestAStreamWithAHashTag(_OnAStream):
    more: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def settings(self, redis_server: RedisServer) -> RedisStreamSink:
        self.server = redis_server
        self.stream = f"orders:{{{secrets.token_hex(4)}:shop}}:out"
        return RedisStreamSink.model_validate({"url": redis_server.url(), "stream": self.stream})

    def number(self, fields: dict[str, str]) -> int:
        return int(fields["number"])
