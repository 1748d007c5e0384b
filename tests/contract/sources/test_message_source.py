"""What every message source and publisher does: RabbitMQ (classic, quorum) and embedded.

The backends' own troubles have their own files: `test_rabbitmq.py`, `test_rabbitmq_outages.py`,
`test_embedded_queue.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fuploader_dagster.contracts.source import SourceSettings
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.resources.sources.rabbitmq import deliveries, pika_internals
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from fuploader_dagster.testing import MessageSourceContract
from tests.servers.rabbitmq import RabbitMQServer


class TestMessageSource(MessageSourceContract):
    @pytest.fixture(params=["classic", "quorum", "embedded"])
    def settings(self, request: pytest.FixtureRequest, tmp_path: Path) -> SourceSettings:
        """Each backend with an empty queue."""
        if request.param == "embedded":
            return EmbeddedQueue(path=tmp_path / "queue")
        server: RabbitMQServer = request.getfixturevalue("rabbitmq")
        fresh_queue: Callable[..., str] = request.getfixturevalue("fresh_queue")
        return RabbitMQ(url=server.url, queue=fresh_queue(request.param))  # type: ignore[arg-type]


class TestMessageSourceOnAnUnknownPika(MessageSourceContract):
    """A pika that lacks the private names: what is public must do."""

    @pytest.fixture
    def settings(
        self, rabbitmq: RabbitMQServer, queue: str, monkeypatch: pytest.MonkeyPatch
    ) -> SourceSettings:
        for module in (deliveries, pika_internals):
            monkeypatch.setattr(module, "impl", lambda *_: None)
        return RabbitMQ(url=rabbitmq.url, queue=queue)
